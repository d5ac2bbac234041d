//! From a configuration and the machine to a generation in force.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use glb_common::{second_chance::abi::PeerNextHop, trace::TraceSettings};
use glb_host::{
    bpffs::PinFolder,
    generations,
    next_hop::{NextHop, NextHops, Snapshot},
    tcx_link,
};
use tracing::{debug, error, info, warn};

use super::{CLAMPS, Error};
use crate::{
    config::Config,
    counters::Slots,
    generation::{COUNTERS_FOLDER, Generation},
    host_state::Machine,
    image::{self, Image},
    self_test, vip,
    vlan::{self, Vlan},
};

/// How long a new generation waits for the answers of peers that were never asked for before.
const NEXT_HOP_PATIENCE: Duration = Duration::from_secs(2);

/// Puts the VIPs on lo if they are to be there; those that were not there yet. That comes before the
/// swap, since the kernel would answer what the program takes for an address that it does not have;
/// whoever is refused later has them taken back.
pub(super) async fn put_vips(config: &Config) -> Result<BTreeSet<IpAddr>, Error> {
    Ok(if config.vips_on_lo { vip::put(&config.vips).await? } else { BTreeSet::new() })
}

pub(super) fn image(config: &Config, machine: &Machine) -> Result<Image, Error> {
    let own = &machine.own;
    let mut image = Image::new(config, own);
    if let Some(mss) = &config.mss {
        let limits = image::mss_limits(mss, config, machine.mtu);
        (image.settings.mss_v4, image.settings.mss_v6) = (limits.v4.into(), limits.v6.into());
        info!(v4 = limits.v4, v6 = limits.v6, "the MSS that clients are told at most");
    }
    let list =
        |set: &BTreeSet<IpAddr>| set.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    if own.is_empty() {
        warn!("this machine has no address that the tunnel can end at: nothing will be taken");
    }
    info!(own = list(own), peers = list(&image.peers), "addresses");
    Ok(image)
}

/// Puts the generation's tc program where replies leave, or takes it off. What cannot be done is
/// said and does not stop a backend: only large packets would suffer.
fn clamp(config: &Config, pins: &PinFolder, generation: &mut Generation) {
    let folder = pins.join(CLAMPS);
    let interfaces = config.mss.as_ref().map_or(&[][..], |mss| &mss.interfaces);
    let mut attach = |interface: &String| -> Result<(), Error> {
        pins.make(&folder)?;
        tcx_link::attach_egress(
            generation.clamp()?,
            interface,
            &folder.join(generations::link_name(interface)),
        )?;
        Ok(())
    };
    for interface in interfaces {
        if let Err(error) = attach(interface) {
            warn!(
                "the MSS of SYN-ACKs is not lowered: {error}\n  Uploads hang if the data centre's \
                 MTU has no room for the tunnel; `mss_clamp = false` ends this warning."
            );
        }
    }
    match generations::remove_links_but(&folder, interfaces) {
        Ok(gone) if gone.is_empty() => {}
        Ok(gone) => info!(interfaces = gone.join(","), "the MSS is no longer lowered"),
        Err(error) => warn!("{error}"),
    }
}

/// Tries, loads, pins and swaps in a generation.
pub(super) async fn build(
    config: &Config,
    machine: &Machine,
    image: &Image,
    next_hops: &NextHops,
    number: u64,
    pins: &PinFolder,
    shows: Option<&TraceSettings>,
) -> Result<Generation, Error> {
    let test = if shows.is_some() { self_test::run_traced } else { self_test::run };
    let packets = test(config, &machine.own, image)?;
    debug!(packets, "self-test passed");
    let snapshot = next_hops.wait_resolved(NEXT_HOP_PATIENCE).await;
    for peer in &image.peers {
        if let Some(Err(reason)) = snapshot.get(peer) {
            warn!(%peer, "no way to this backend yet: {reason}");
        }
    }
    let folder = generations::folder(pins, number);
    pins.make(&folder)?;
    let attempt = || -> Result<Generation, Error> {
        pins.make(&pins.join(COUNTERS_FOLDER))?;
        let mut image = image.clone();
        image.count_apart(Slots::open_or_create(pins)?.assign(&config.vips)?);
        let mut generation = match shows {
            None => Generation::load(&image, Some(pins))?,
            Some(settings) => {
                let mut generation = Generation::load_traced(&image, Some(pins))?;
                generation.show(settings)?;
                generation
            }
        };
        enter(&mut generation, &image, &snapshot);
        generation.pin(&folder)?;
        generations::swap(
            generation.program()?,
            &config.interfaces,
            pins,
            glb_host::xdp_link::Mode::Native,
        )?;
        Ok(generation)
    };
    attempt()
        .map(|mut generation| {
            clamp(config, pins, &mut generation);
            generation
        })
        .inspect_err(|_| {
            // The first error says more than one that follows from it.
            if let Err(error) = pins.remove(&folder) {
                warn!(%error, "an unfinished generation is left behind");
            }
        })
}

/// Enters the ways to all peers into a generation.
pub(super) fn enter(generation: &mut Generation, image: &Image, snapshot: &Snapshot) {
    let vlans = vlan::interfaces();
    for address in &image.peers {
        let peer = match snapshot.get(address) {
            Some(Ok(NextHop { interface, own_mac, mac, .. })) => match vlans.get(interface) {
                None => PeerNextHop::new(*mac, *own_mac, *interface),
                Some(Vlan { below: Some(below), tag }) => {
                    PeerNextHop { tag: *tag, ..PeerNextHop::new(*mac, *own_mac, *below) }
                }
                // Two tags: no way that could be entered.
                Some(Vlan { below: None, .. }) => PeerNextHop::default(),
            },
            Some(Err(_)) | None => PeerNextHop::default(),
        };
        match generation.enter_peer(*address, peer) {
            Ok(false) => {}
            Ok(true) if peer.interface == 0 => warn!(peer = %address, "the way to it is lost"),
            Ok(true) => info!(peer = %address, "the way to it is known"),
            Err(error) => error!(peer = %address, %error, "the way to it was not entered"),
        }
    }
}
