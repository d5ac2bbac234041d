//! The self-test passes for correct program data and names the packet that broken data handles wrongly.
//! Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;
#[path = "../../glb-common/tests/support/mod.rs"]
mod support;

use std::{collections::BTreeSet, net::IpAddr, path::Path};

use common::in_namespace;
use glb_common::second_chance::abi::{AddressEntry, INLINE_SLOTS, RedirectConfig};
use glb_redirect::{
    config::Config,
    program_data::ProgramData,
    self_test::{self, SelfTestError},
};

fn config(vips: usize, more: &str) -> Config {
    let vips: Vec<String> = (0..vips)
        .flat_map(|n| [format!("203.0.113.{}", 10 + n), format!("2001:db8::{}", 10 + n)])
        .collect();
    let text = format!(
        "interfaces = [\"eth0\"]\nvips = {vips:?}\ndirectors = [\"10.0.2.8/30\", \"fd00:2::10\"]\n\
         backends = [\"10.0.2.21\", \"10.0.2.22\", \"fd00:2::22\"]\n{more}"
    );
    Config::parse(&text, Path::new("x")).unwrap()
}

fn own() -> BTreeSet<IpAddr> {
    ["10.0.2.21", "fd00:2::21"].iter().map(|address| address.parse().unwrap()).collect()
}

#[test]
fn correct_data_passes() {
    in_namespace(|_| {
        for (vips, more) in
            [(1, ""), (20, ""), (1, "second_chance = false"), (1, "unknown_senders = \"pass\"")]
        {
            let config = config(vips, more);
            let image = ProgramData::new(&config, &own());
            let packets = self_test::run(&config, &own(), &image).unwrap();
            assert!(packets >= 20, "{packets} packets");
        }
    });
}

fn forget(image: &mut ProgramData, address: &str) {
    assert!(image.known.remove(&support::ip(address)).is_some());
}

#[test]
fn broken_data_fails_with_the_packet() {
    type Break = fn(&mut ProgramData);
    const BREAKS: [(&str, Break); 6] = [
        ("another VIP", |image| forget(image, "203.0.113.10")),
        ("another own address", |image| forget(image, "10.0.2.21")),
        ("a VIP that is a peer", |image| {
            image.known.get_mut(&support::ip("2001:db8::10")).unwrap().roles = AddressEntry::PEER;
        }),
        ("no second chance", |image| image.settings.flags &= !RedirectConfig::SECOND_CHANCE),
        ("unknown senders passed", |image| {
            image.settings.flags |= RedirectConfig::PASS_UNKNOWN_SENDERS
        }),
        ("everybody may send", |image| image.settings.nets_v4 = [[0, 0]; INLINE_SLOTS]),
    ];
    in_namespace(|_| {
        let config = config(1, "");
        for (what, spoil) in BREAKS {
            let mut image = ProgramData::new(&config, &own());
            spoil(&mut image);
            match self_test::run(&config, &own(), &image) {
                Err(SelfTestError::Differs { packet, .. }) => assert!(!packet.is_empty()),
                other => panic!("{what}: {other:?}"),
            }
        }
    });
}
