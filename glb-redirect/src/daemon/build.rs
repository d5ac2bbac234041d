//! How one generation is built: self-test, load, fill, pin, attach.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use glb_common::{second_chance::abi::PeerNextHop, trace::TraceSettings};
use glb_host::{
    bpffs::PinFolder,
    generations,
    next_hop::{NextHop, NextHops, Snapshot},
    tc_egress::{self, Hook},
};
use tracing::{debug, error, info, warn};

use super::{CLAMPS, Error};
use crate::{
    config::Config,
    counters::CounterSlots,
    generation::{COUNTERS_FOLDER, Generation},
    host_state::HostState,
    program_data::{self, ProgramData},
    self_test, vip,
    vlan::{self, Vlan},
};

/// How long a new generation waits for neighbour resolution of peers that are new.
const NEXT_HOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Adds the VIPs to lo if the configuration says so; returns those that were not there before. This
/// comes before the swap: the kernel would answer packets for an address that it does not have with an
/// error. A caller whose build fails removes them again.
pub(super) async fn add_vips(config: &Config) -> Result<BTreeSet<IpAddr>, Error> {
    Ok(if config.vips_on_lo { vip::add(&config.vips).await? } else { BTreeSet::new() })
}

/// The constants and map contents that `config` leads to on this host.
pub(super) fn program_data(config: &Config, host: &HostState) -> Result<ProgramData, Error> {
    let own = &host.own;
    let mut data = ProgramData::new(config, own);
    if let Some(mss) = &config.mss {
        let limits = program_data::mss_limits(mss, config, host.mtu);
        (data.settings.mss_v4, data.settings.mss_v6) = (limits.v4.into(), limits.v6.into());
        info!(v4 = limits.v4, v6 = limits.v6, "largest MSS that SYN-ACKs may announce");
    }
    let list =
        |set: &BTreeSet<IpAddr>| set.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    if own.is_empty() {
        warn!(
            "this host has no address at which the tunnel can end: no tunnelled packet is taken. \
             Give an interface an address, or set `addresses`"
        );
    }
    info!(own = list(own), peers = list(&data.peers), "tunnel addresses");
    Ok(data)
}

/// Attaches the generation's MSS clamp to the egress of the interfaces where replies leave, and
/// detaches it from all others. A failure is logged and does not stop the backend: only connections
/// with large packets suffer.
fn attach_mss_clamp(config: &Config, pins: &PinFolder, generation: &mut Generation) {
    let folder = pins.join(CLAMPS);
    let interfaces = config.mss.as_ref().map_or(&[][..], |mss| &mss.interfaces);
    let mut attach = |interface: &String| -> Result<Hook, Error> {
        pins.make(&folder)?;
        Ok(tc_egress::attach(generation.mss_clamp()?, interface, &folder)?)
    };
    for interface in interfaces {
        match attach(interface) {
            Ok(hook) => info!(%interface, hook = hook.name(), "MSS clamp attached"),
            Err(error) => warn!(
                "cannot attach the MSS clamp to {interface}: {error}\n  Uploads hang if the MTU of \
                 the data centre has no room for the tunnel. `glb-redirect doctor` says whether it \
                 has; `mss_clamp = false` turns the clamp and this warning off."
            ),
        }
    }
    match tc_egress::detach_all_but(&folder, interfaces) {
        Ok(gone) if gone.is_empty() => {}
        Ok(gone) => info!(interfaces = gone.join(","), "MSS clamp detached"),
        Err(error) => warn!(%error, "cannot detach the MSS clamp"),
    }
}

/// Tests, loads, fills, pins and attaches a generation. With trace settings it is the traced program
/// build.
pub(super) async fn build(
    config: &Config,
    host: &HostState,
    data: &ProgramData,
    next_hops: &NextHops,
    number: u64,
    pins: &PinFolder,
    trace: Option<&TraceSettings>,
) -> Result<Generation, Error> {
    let test = if trace.is_some() { self_test::run_traced } else { self_test::run };
    let packets = test(config, &host.own, data)?;
    debug!(packets, "self-test passed");
    let snapshot = next_hops.wait_resolved(NEXT_HOP_TIMEOUT).await;
    for peer in &data.peers {
        if let Some(Err(reason)) = snapshot.get(peer) {
            warn!(%peer, %reason, "no usable next hop for this backend yet");
        }
    }
    let folder = generations::folder(pins, number);
    pins.make(&folder)?;
    let attempt = || -> Result<Generation, Error> {
        pins.make(&pins.join(COUNTERS_FOLDER))?;
        let mut data = data.clone();
        data.assign_counters(CounterSlots::open_or_create(pins)?.assign(&config.vips)?);
        let mut generation = match trace {
            None => Generation::load(&data, Some(pins))?,
            Some(settings) => {
                let mut generation = Generation::load_traced(&data, Some(pins))?;
                generation.configure_trace(settings)?;
                generation
            }
        };
        enter_next_hops(&mut generation, &data, &snapshot);
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
            attach_mss_clamp(config, pins, &mut generation);
            generation
        })
        .inspect_err(|_| {
            // The caller reports the first error; this one only follows from it.
            if let Err(error) = pins.remove(&folder) {
                warn!(%error, "cannot remove the pins of an unfinished generation");
            }
        })
}

/// Writes the next hops of all peers into a generation. Returns the peers without a usable one, each
/// with the reason.
pub(super) fn enter_next_hops(
    generation: &mut Generation,
    data: &ProgramData,
    snapshot: &Snapshot,
) -> Vec<(IpAddr, String)> {
    let vlans = vlan::interfaces();
    let mut unresolved = Vec::new();
    for address in &data.peers {
        let peer = match snapshot.get(address) {
            Some(Ok(next_hop)) => through_vlan(next_hop, &vlans),
            Some(Err(reason)) => Err(reason.to_string()),
            None => Err("not resolved yet".to_owned()),
        };
        let peer = peer.unwrap_or_else(|reason| {
            unresolved.push((*address, reason));
            PeerNextHop::default()
        });
        match generation.set_next_hop(*address, peer) {
            Ok(false) => {}
            Ok(true) if peer.interface == 0 => warn!(peer = %address, "next hop lost"),
            Ok(true) => info!(peer = %address, "next hop resolved"),
            Err(error) => error!(peer = %address, %error, "cannot write the next hop"),
        }
    }
    unresolved
}

/// The next hop as the program needs it: XDP cannot transmit through a VLAN interface, so the frame
/// leaves by the interface below it, with its tag.
fn through_vlan(next_hop: &NextHop, vlans: &BTreeMap<u32, Vlan>) -> Result<PeerNextHop, String> {
    let NextHop { interface, own_mac, mac, .. } = next_hop;
    match vlans.get(interface) {
        None => Ok(PeerNextHop::new(*mac, *own_mac, *interface)),
        Some(Vlan { below: Some(below), tag }) => {
            Ok(PeerNextHop { tag: *tag, ..PeerNextHop::new(*mac, *own_mac, *below) })
        }
        Some(Vlan { below: None, .. }) => {
            Err("the route leads through a VLAN on a VLAN: two tags are not supported".to_owned())
        }
    }
}
