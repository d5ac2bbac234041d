//! The traced program: it reports what it decides, and decides what the plain program decides. Needs
//! root.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;
#[path = "../../glb-common/tests/support/mod.rs"]
mod support;

use std::{collections::BTreeSet, path::PathBuf};

use common::in_namespace;
use glb_common::{reason::Action, second_chance::abi::PeerNextHop, trace::TraceSettings};
use glb_host::{
    bpffs::PinFolder,
    packet_trace::{
        filter::TraceFilter,
        replay::{TEST_INTERFACE, test_run},
        trace::{EventReader, TraceRecord},
    },
};
use glb_redirect::{
    config::{Config, UnknownSenders},
    generation::Generation,
    program_data::ProgramData,
    replay::REASONS,
};
use support::{
    FakeHost, OWN_MAC, backend, golden, ip,
    packet::{ACK, SYN, Segment, gue, gue_v6, segment},
    peer_mac, run, socket,
};

/// The traced program with the configuration of a host, and its events.
struct Traced {
    generation: Generation,
    events: EventReader,
}

impl Traced {
    fn new(host: &FakeHost, pins: &PinFolder, name: &str) -> Self {
        let net = |(ip, bits): &(std::net::IpAddr, u8)| ipnet::IpNet::new(*ip, *bits).unwrap();
        let config = Config {
            path: PathBuf::new(),
            interfaces: Vec::new(),
            bpffs_dir: PathBuf::new(),
            vips: host.vips.iter().copied().collect(),
            directors: host.senders.iter().map(net).collect(),
            backends: host.peers.keys().copied().collect(),
            table: None,
            metrics: None,
            addresses: None,
            second_chance: true,
            unknown_senders: UnknownSenders::Drop,
            vips_on_lo: false,
            mss: None,
            control: glb_host::control::RawControlConfig::default()
                .check("".as_ref(), "unused")
                .unwrap(),
        };
        let own: BTreeSet<_> = host.own.iter().copied().collect();
        let image = ProgramData::new(&config, &own);
        let mut generation = Generation::load_traced(&image, None).unwrap();
        for (address, peer) in &host.peers {
            generation.set_next_hop(*address, *peer).unwrap();
        }
        let folder = pins.join(name);
        pins.make(&folder).unwrap();
        generation.pin(&folder).unwrap();
        Self { generation, events: EventReader::open(&folder).unwrap() }
    }

    fn configure(&mut self, filter: &str, settings: TraceSettings) {
        let wanted = TraceFilter::parse(&[filter.to_owned()], &REASONS).unwrap();
        let filter = wanted.compile(&REASONS, None).unwrap();
        self.generation.configure_trace(&TraceSettings { filter, ..settings }).unwrap();
    }

    fn run(&mut self, frame: &[u8]) -> (u32, Vec<u8>) {
        test_run(self.generation.program().unwrap(), frame).unwrap()
    }

    fn shown(&mut self) -> Vec<TraceRecord> {
        std::iter::from_fn(|| self.events.next_record()).collect()
    }
}

const ALL: TraceSettings = {
    let filter = glb_common::trace::DecisionFilter {
        reasons: u64::MAX,
        networks: [glb_common::trace::NetworkMatch { address: [0; 2], mask: [0; 2], family: 0 }; 2],
        ports: [glb_common::trace::ANY; 2],
        protocol: glb_common::trace::ANY,
        slot: glb_common::trace::ANY,
    };
    TraceSettings { filter, sample: 0, per_second: 0, snap: 4096, padding: 0 }
};

fn in_namespace_with_pins(test: impl FnOnce(PinFolder) + Send + 'static) {
    in_namespace(|_wire| test(PinFolder::private().unwrap()));
}

#[test]
fn reported_decisions_are_the_reference_decisions() {
    in_namespace_with_pins(|pins| {
        let mut seen = BTreeSet::new();
        let cases = golden::cases().into_iter().filter(|case| case.flow.is_none());
        for (number, mut case) in cases.enumerate() {
            for peer in case.host.peers.values_mut() {
                peer.interface = TEST_INTERFACE;
            }
            let mut traced = Traced::new(&case.host, &pins, &format!("case{number}"));
            traced.configure("", ALL);
            let expected = run(&case.host, &case.frame);
            let (verdict, frame) = traced.run(&case.frame);
            assert_eq!(frame, expected.frame, "{}", case.name);
            let shown = traced.shown();
            let [shown] = &shown[..] else { panic!("{}: {shown:?}", case.name) };
            assert_eq!(shown.event.verdict, verdict, "{}", case.name);
            assert_eq!(shown.event.reason, expected.reason as u32, "{}", case.name);
            assert_eq!(shown.event.interface, TEST_INTERFACE);
            assert_eq!(shown.before, case.frame, "{}", case.name);
            let leaves = matches!(expected.action, Action::Send | Action::Take);
            assert_eq!(shown.after, leaves.then_some(frame), "{}", case.name);
            assert_eq!(traced.events.tally().unwrap().shown, 1);
            seen.insert(expected.reason);
        }
        assert!(seen.len() >= 10, "{seen:?}");
    });
}

#[test]
fn the_filter_is_evaluated_in_the_kernel() {
    in_namespace_with_pins(|pins| {
        let mut host = backend();
        host.peers.insert(ip("10.0.2.22"), PeerNextHop::new(peer_mac(22), OWN_MAC, TEST_INTERFACE));
        let mut traced = Traced::new(&host, &pins, "filter");
        let (client, vip) = (socket("198.51.100.7:40000"), socket("203.0.113.10:80"));
        let v6 = (socket("[2001:db8:9::7]:40000"), socket("[2001:db8::10]:80"));
        let syn = gue(segment(client, vip, SYN).packet());
        let ack = gue(segment(client, vip, ACK).packet());
        let other = gue(segment(socket("198.51.100.8:40001"), vip, SYN).packet());
        let syn_v6 = gue_v6(segment(v6.0, v6.1, SYN).packet());
        let about = gue(support::packet::too_big(ip("192.0.2.9"), client, vip));
        let mut unknown_sender = gue(segment(client, vip, SYN).packet());
        unknown_sender.source = ip("192.0.2.66");
        let frames =
            [&syn, &ack, &other, &syn_v6, &about, &unknown_sender].map(|packet| packet.frame());
        for (filter, wanted) in [
            ("", &[0, 1, 2, 3, 4, 5][..]),
            ("198.51.100.7", &[0, 1, 4, 5]),
            ("198.51.100.0/24", &[0, 1, 2, 4, 5]),
            ("port 40001", &[2]),
            ("2001:db8:9::/48 port 80", &[3]),
            ("verdict sent", &[1, 4]),
            ("reason taken_syn 198.51.100.7", &[0]),
            ("192.0.2.66", &[5]),
            ("udp port 40000", &[]),
            ("tcp verdict taken", &[0, 2, 3]),
        ] {
            traced.configure(filter, ALL);
            let mut got = Vec::new();
            for (index, frame) in frames.iter().enumerate() {
                traced.run(frame);
                let shown = traced.shown();
                assert!(shown.iter().all(|shown| shown.before == *frame), "{filter}");
                got.extend(shown.iter().map(|_| index));
            }
            assert_eq!(got, wanted, "{filter}");
        }
    });
}

#[test]
fn sampling_rate_limit_and_snap_length_are_applied() {
    in_namespace_with_pins(|pins| {
        let mut traced = Traced::new(&backend(), &pins, "rate");
        let (client, vip) = (socket("198.51.100.7:40000"), socket("203.0.113.10:80"));
        let data = Segment { data: 1000, ..segment(client, vip, SYN) };
        let frame = gue(data.packet()).frame();
        traced.configure("", TraceSettings { sample: 4, snap: 100, ..ALL });
        for _ in 0..400 {
            traced.run(&frame);
        }
        let shown = traced.shown();
        let tally = traced.events.tally().unwrap();
        assert_eq!((tally.wanted, tally.shown), (400, shown.len() as u64));
        assert_eq!(tally.shown + tally.not_in_sample, 400);
        // One in four: a correct program misses this range once in millions of runs.
        assert!((40..200).contains(&shown.len()), "{tally:?}");
        for shown in &shown {
            assert_eq!(shown.before, frame[..100]);
            assert_eq!(shown.event.received as usize, frame.len());
            let after = shown.after.as_ref().unwrap();
            assert_eq!((after.len(), shown.event.left as usize), (100, frame.len() - 40));
        }
        traced.configure("", TraceSettings { per_second: 3, ..ALL });
        for _ in 0..100 {
            traced.run(&frame);
        }
        let shown = traced.shown();
        let tally = traced.events.tally().unwrap();
        assert!(tally.over_rate > 0 && shown.len() < 100, "{tally:?}");
        // Without a reader, events that do not fit are counted, and packets are handled as before.
        traced.configure("", ALL);
        let before = tally;
        let large = gue(Segment { data: 3_000, ..data }.packet()).frame();
        for _ in 0..900 {
            assert_eq!(traced.run(&large).0, 2);
        }
        let tally = traced.events.tally().unwrap();
        assert!(tally.buffer_full > 0, "{tally:?}");
        let new = tally.shown - before.shown;
        assert_eq!(new + tally.buffer_full, 900);
        assert_eq!(traced.shown().len() as u64, new);
    });
}

#[test]
fn the_plain_program_has_no_trace_maps() {
    let names = |object: &[u8]| -> Vec<&str> {
        ["TRACE_EVENTS", "TRACE_RECORD", "TRACE_SETTINGS", "TRACE_TALLY"]
            .into_iter()
            .filter(|name| object.windows(name.len()).any(|window| window == name.as_bytes()))
            .collect()
    };
    assert_eq!(names(glb_host::REDIRECT_OBJECT), [""; 0]);
    assert_eq!(names(glb_host::DIRECTOR_OBJECT), [""; 0]);
    assert_eq!(names(glb_host::REDIRECT_TRACE_OBJECT).len(), 4);
}
