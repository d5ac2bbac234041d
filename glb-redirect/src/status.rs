//! The answer to `status`: how the daemon is, and what is wrong.

use std::{collections::BTreeSet, net::IpAddr};

use glb_host::{
    bpffs::PinFolder,
    generations,
    xdp_link::{self, Mode},
};
use serde::{Deserialize, Serialize};

use crate::{
    connections::ConnectionMonitor,
    daemon_state::{DaemonState, Phase},
};

/// How the daemon is. Fields are added, never renamed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's release.
    pub release: String,
    /// Its process.
    pub pid: u32,
    /// How long it has run, in seconds.
    pub uptime_seconds: f64,
    /// What it is doing.
    pub phase: Phase,
    /// What is wrong; empty if all is well.
    pub problems: Vec<Problem>,
    /// The interfaces that the program is meant to be attached to.
    pub interfaces: Vec<InterfaceStatus>,
    /// The VIPs that this backend serves.
    pub vips: Vec<VipStatus>,
    /// Number of the generation in force.
    pub generation: Option<u64>,
    /// Since when it has been in force, in seconds since the epoch.
    pub generation_since: Option<f64>,
    /// For how many seconds it has been in force.
    pub generation_age_seconds: Option<f64>,
    /// Number of fellow backends.
    pub peers: usize,
    /// Fellow backends without a usable next hop.
    pub unresolved_peers: Vec<UnresolvedPeer>,
    /// Clients' live connections; nothing while they cannot be listed.
    pub live_connections: Option<usize>,
    /// Successful reloads.
    pub reloads: u64,
    /// Failed reloads.
    pub failed_reloads: u64,
    /// The last reload.
    pub last_reload: Option<LastReload>,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// A name for programs, one of [`PROBLEMS`]; never renamed.
    pub name: String,
    /// For people: what is wrong, and what to do.
    pub message: String,
}

/// Every problem that `status` can report, which are also the values of the metric's label.
pub const PROBLEMS: [&str; 7] = [
    "not_ready",
    "reload_failed",
    "host_change_failed",
    "pins_lost",
    "not_attached",
    "vip_missing",
    "peer_unresolved",
];

/// An interface that the program is meant to be attached to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// `native`, `generic`, or nothing if this backend's program is not attached.
    pub mode: Option<String>,
    /// Why the program is not attached.
    pub problem: Option<String>,
}

/// A VIP that this backend serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipStatus {
    /// The address.
    pub address: IpAddr,
    /// Whether it is an address of this host now, so that the kernel accepts its packets.
    pub local: bool,
}

/// A fellow backend that no packet can be forwarded to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnresolvedPeer {
    /// Its address.
    pub address: IpAddr,
    /// Why there is no usable next hop.
    pub reason: String,
}

/// The last reload.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LastReload {
    /// When it ended, in seconds since the epoch.
    pub at: f64,
    /// How many seconds ago it ended.
    pub age_seconds: f64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

/// Which XDP program is attached to an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attachment {
    /// None.
    Nothing,
    /// Another one than this backend's.
    Foreign,
    /// This backend's.
    Own(Mode),
}

impl Attachment {
    /// Looks at an interface. `pins` is this backend's pin folder, if it exists.
    ///
    /// # Errors
    /// When the interface does not exist.
    pub(crate) fn of(
        interface: &str,
        pins: Option<&PinFolder>,
    ) -> Result<Self, xdp_link::AttachError> {
        let own = pins.and_then(|pins| {
            xdp_link::program_behind(&generations::link_pin(pins, interface)).ok().flatten()
        });
        Ok(match xdp_link::attached(interface)? {
            None => Self::Nothing,
            Some((mode, program)) if program == own => Self::Own(mode),
            Some(_) => Self::Foreign,
        })
    }
}

fn interface_status(name: &str, pins: Option<&PinFolder>) -> InterfaceStatus {
    let (mode, problem) = match Attachment::of(name, pins) {
        Ok(Attachment::Own(Mode::Native)) => (Some("native"), None),
        Ok(Attachment::Own(Mode::Generic)) => (Some("generic"), None),
        Ok(Attachment::Nothing) => (None, Some("no XDP program is attached".to_owned())),
        Ok(Attachment::Foreign) => (None, Some("another XDP program is attached".to_owned())),
        Err(error) => (None, Some(error.to_string())),
    };
    InterfaceStatus { name: name.to_owned(), mode: mode.map(str::to_owned), problem }
}

/// All addresses of this thread's network namespace.
fn host_addresses() -> BTreeSet<IpAddr> {
    let all = nix::ifaddrs::getifaddrs().into_iter().flatten();
    all.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or(address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    })
    .collect()
}

impl Status {
    /// The status of the daemon with this state.
    #[must_use]
    pub fn of(state: &DaemonState) -> Self {
        let snapshot = state.snapshot();
        let pins = PinFolder::open(state.bpffs_dir(), crate::PIN_OWNER).ok().flatten();
        let interfaces: Vec<InterfaceStatus> =
            snapshot.interfaces.iter().map(|name| interface_status(name, pins.as_ref())).collect();
        let addresses = host_addresses();
        let vips: Vec<VipStatus> = snapshot
            .vips
            .iter()
            .map(|vip| VipStatus { address: *vip, local: addresses.contains(vip) })
            .collect();
        let connections = state.connections().and_then(ConnectionMonitor::newest);

        let mut problems = Vec::new();
        let mut problem = |name: &str, message: String| {
            problems.push(Problem { name: name.to_owned(), message });
        };
        if snapshot.generation.is_none() {
            problem("not_ready", "no generation of this process is in force yet".to_owned());
        }
        if let Some(error) = snapshot.last_reload.as_ref().and_then(|last| last.error.as_ref()) {
            problem("reload_failed", format!("the last reload failed: {error}"));
        }
        if let Some(error) = &snapshot.host_problem {
            let text = format!("a change of addresses or interfaces was not followed: {error}");
            problem("host_change_failed", text);
        }
        if let Some(error) = &snapshot.pins_problem {
            let text = format!(
                "pins were removed and cannot be restored: the program ends with this process: \
                 {error}"
            );
            problem("pins_lost", text);
        }
        for interface in &interfaces {
            if let Some(what) = &interface.problem {
                problem("not_attached", format!("interface {}: {what}", interface.name));
            }
        }
        for vip in vips.iter().filter(|vip| !vip.local) {
            let text = format!(
                "{} is not an address of this host: its packets are not accepted. \
                 `glb-redirect doctor` shows the command that adds it",
                vip.address
            );
            problem("vip_missing", text);
        }
        for (address, reason) in &snapshot.unresolved_peers {
            let text = format!("no packet can be forwarded to backend {address}: {reason}");
            problem("peer_unresolved", text);
        }
        Self {
            release: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: state.uptime().as_secs_f64(),
            phase: snapshot.phase,
            problems,
            interfaces,
            vips,
            generation: snapshot.generation.map(|(number, _)| number),
            generation_since: snapshot.generation.map(|(_, since)| since.epoch_seconds()),
            generation_age_seconds: snapshot.generation.map(|(_, since)| since.age_seconds()),
            peers: snapshot.peers,
            unresolved_peers: snapshot
                .unresolved_peers
                .into_iter()
                .map(|(address, reason)| UnresolvedPeer { address, reason })
                .collect(),
            live_connections: connections.map(|report| report.live),
            reloads: snapshot.reloads,
            failed_reloads: snapshot.failed_reloads,
            last_reload: snapshot.last_reload.map(|last| LastReload {
                at: last.at.epoch_seconds(),
                age_seconds: last.at.age_seconds(),
                seconds: last.took.as_secs_f64(),
                error: last.error,
            }),
        }
    }
}
