//! Next hops: the outgoing interface and destination MAC address for each target.
//!
//! They come from the kernel's routes, links and neighbours, and netlink notifications keep them
//! fresh. The kernel is asked to resolve an unknown neighbour (`NTF_USE`) until it answers. XDP
//! programs bypass the kernel's neighbour table, so entries in constant use would expire; regular
//! probes keep them.

mod egress;
mod kernel;
mod resolve;
mod watch;
mod xdp_features;

use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::watch::{Receiver, Sender},
    task::JoinHandle,
};

pub use egress::Transmit;
pub use kernel::NetlinkError;

/// A resolved next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NextHop {
    /// Index of the outgoing interface.
    pub interface: u32,
    /// MAC address of the outgoing interface.
    pub own_mac: [u8; 6],
    /// MAC address of the next hop: the gateway, or the target itself on a shared segment.
    pub mac: [u8; 6],
    /// Source address that the kernel would use.
    pub source: Option<IpAddr>,
    /// Largest IP packet for this route, in bytes: the route's MTU, else the interface's.
    pub mtu: u32,
    /// MTU of the outgoing interface.
    pub link_mtu: u32,
}

/// Why a target has no next hop now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unresolved {
    /// The kernel has no route, or one that forbids traffic.
    #[error("the kernel has no route: {0}; see `ip route get`")]
    NoRoute(String),
    /// The address is one of this machine's.
    #[error("the address is this machine's own")]
    Local,
    /// The route's interface does not carry Ethernet.
    #[error("interface {interface} is not an Ethernet interface")]
    NotEthernet {
        /// The interface's index.
        interface: u32,
    },
    /// The route's interface is down or has no carrier.
    #[error("interface {interface} is down or has no carrier")]
    LinkDown {
        /// The interface's index.
        interface: u32,
    },
    /// The neighbour does not answer ARP or neighbour discovery.
    #[error("{address} on interface {interface} does not answer ARP or neighbour discovery")]
    NoAnswer {
        /// The index of the interface.
        interface: u32,
        /// The neighbour: the gateway, or the target itself.
        address: IpAddr,
    },
    /// XDP cannot transmit through the route's interface.
    #[error("XDP cannot transmit through {interface}: {why}")]
    CannotTransmit {
        /// The interface's name.
        interface: String,
        /// The reason and the remedy.
        why: String,
    },
    /// The kernel's answer is not usable.
    #[error("netlink: {0}")]
    Kernel(String),
}

/// The next hop of each target, or why there is none.
pub type Snapshot = HashMap<IpAddr, Result<NextHop, Unresolved>>;

/// A configured gateway: the next hop of every target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// The gateway's MAC address.
    pub mac: [u8; 6],
    /// The interface towards the gateway, for targets that no route covers.
    pub interface: Option<String>,
}

impl From<[u8; 6]> for Gateway {
    fn from(mac: [u8; 6]) -> Self {
        Self { mac, interface: None }
    }
}

impl Gateway {
    /// Returns the route to a target that no route of the kernel covers.
    fn route(&self, to: IpAddr) -> Option<resolve::Route> {
        let name = self.interface.as_ref()?;
        let interface = interface_index(name).ok()?;
        let addresses = nix::ifaddrs::getifaddrs().into_iter().flatten();
        let addresses = addresses.filter(|entry| entry.interface_name == *name);
        let source = addresses
            .filter_map(|entry| {
                let address = entry.address?;
                let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
                v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
            })
            .find(|address| match address {
                IpAddr::V4(_) => to.is_ipv4(),
                IpAddr::V6(address) => to.is_ipv6() && !address.is_unicast_link_local(),
            });
        Some(resolve::Route { interface, gateway: None, source, mtu: None })
    }
}

/// Resolves the next hops of a set of targets and keeps them fresh until it is dropped.
///
/// It works in the network namespace of the thread that starts it.
#[derive(Debug)]
pub struct NextHops {
    targets: Sender<BTreeSet<IpAddr>>,
    snapshots: Receiver<Arc<Snapshot>>,
    task: JoinHandle<()>,
}

impl NextHops {
    /// Resolves `targets` once, then follows every change.
    ///
    /// Targets that need an answer from the network may still be unresolved on return; see
    /// [`Self::wait_resolved`].
    ///
    /// # Errors
    /// When netlink cannot be opened or does not answer.
    pub async fn start(targets: impl IntoIterator<Item = IpAddr>) -> Result<Self, NetlinkError> {
        Self::start_with_gateway(None, targets).await
    }

    /// Works as [`Self::start`], but uses the gateway's MAC address for every target.
    ///
    /// Interface, source address and MTU still come from the kernel's routes; for a target without a
    /// route, from the gateway's interface.
    ///
    /// # Errors
    /// When netlink cannot be opened or does not answer.
    pub async fn start_with_gateway(
        gateway: Option<Gateway>,
        targets: impl IntoIterator<Item = IpAddr>,
    ) -> Result<Self, NetlinkError> {
        Self::start_with(gateway, Transmit::AnyDevice, targets).await
    }

    /// Works as [`Self::start_with_gateway`]. A target is resolved only if frames can be sent as
    /// `transmit` says.
    ///
    /// # Errors
    /// When netlink cannot be opened or does not answer.
    pub async fn start_with(
        gateway: Option<Gateway>,
        transmit: Transmit,
        targets: impl IntoIterator<Item = IpAddr>,
    ) -> Result<Self, NetlinkError> {
        let kernel = kernel::Netlink::open(gateway, transmit)?;
        let events = kernel::Events::open()?;
        let (targets, targets_seen) = tokio::sync::watch::channel(targets.into_iter().collect());
        let (publish, snapshots) = tokio::sync::watch::channel(Arc::default());
        let mut watcher = watch::Watcher::new(kernel, targets_seen, publish);
        watcher.resolve().await;
        let task = tokio::spawn(watcher.run(events));
        Ok(Self { targets, snapshots, task })
    }

    /// Replaces the targets. Results for targets that stay are kept.
    pub fn set_targets(&self, targets: impl IntoIterator<Item = IpAddr>) {
        self.targets.send_replace(targets.into_iter().collect());
    }

    /// Returns a channel that holds the newest snapshot; it changes only when the contents do.
    #[must_use]
    pub fn subscribe(&self) -> Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }

    /// Returns the newest snapshot.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshots.borrow().clone()
    }

    /// Waits until every target is resolved or `patience` has passed; returns the snapshot then.
    pub async fn wait_resolved(&self, patience: Duration) -> Arc<Snapshot> {
        let mut snapshots = self.snapshots.clone();
        let all = |snapshot: &Arc<Snapshot>| {
            let targets = self.targets.borrow();
            targets.iter().all(|target| match snapshot.get(target) {
                Some(Ok(_) | Err(Unresolved::Local)) => true,
                Some(Err(_)) | None => false,
            })
        };
        let done = tokio::time::timeout(patience, snapshots.wait_for(all)).await;
        drop(done);
        self.snapshot()
    }
}

impl Drop for NextHops {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Returns the index of a network interface.
///
/// # Errors
/// When this network namespace has no interface of that name.
pub fn interface_index(name: &str) -> io::Result<u32> {
    Ok(nix::net::if_::if_nametoindex(name)?)
}

/// Returns the name of the interface with this index in this network namespace.
#[must_use]
pub fn interface_name(index: u32) -> Option<String> {
    let mut name = [0; libc::IF_NAMESIZE];
    // SAFETY: the buffer is as long as the call wants it, and outlives the call.
    let found = unsafe { libc::if_indextoname(index, name.as_mut_ptr()) };
    if found.is_null() {
        return None;
    }
    let bytes: Vec<u8> =
        name.iter().map(|byte| byte.to_ne_bytes()[0]).take_while(|byte| *byte != 0).collect();
    String::from_utf8(bytes).ok()
}
