//! Where to send a frame so that it reaches an address: the outgoing interface and the MAC of the
//! next machine on the way, taken from the kernel's routes, links and neighbours and kept fresh by
//! netlink.
//!
//! Nothing is guessed: a neighbour that the kernel does not know is asked for (`NTF_USE`), and
//! asked for again while it does not answer. An XDP program sends past the kernel's neighbour
//! table, so the kernel would let an entry age that is in constant use; asking in time keeps it.

mod kernel;
mod resolve;
mod watch;

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

pub use kernel::NetlinkError;

/// The way to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NextHop {
    /// Index of the outgoing interface.
    pub interface: u32,
    /// MAC of the outgoing interface.
    pub own_mac: [u8; 6],
    /// MAC of the next machine: the gateway's, or the host's own on a shared segment.
    pub mac: [u8; 6],
    /// Address that this machine's kernel would send from.
    pub source: Option<IpAddr>,
    /// Largest IP packet that fits, in bytes: the route's, else the interface's.
    pub mtu: u32,
    /// Largest IP packet that fits the outgoing interface.
    pub link_mtu: u32,
}

/// Why there is no way to an address just now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unresolved {
    /// The routing table has no way, or forbids it.
    #[error("the kernel has no route: {0} (check `ip route get`)")]
    NoRoute(String),
    /// The address is this machine's own.
    #[error("the address is this machine's own")]
    Local,
    /// The route leads into an interface that does not carry Ethernet.
    #[error("interface {interface} is not an Ethernet interface")]
    NotEthernet {
        /// Its index.
        interface: u32,
    },
    /// The route's interface is down or has no carrier.
    #[error("interface {interface} is down or has no carrier")]
    LinkDown {
        /// Its index.
        interface: u32,
    },
    /// The next machine has not answered the kernel's request for its MAC.
    #[error("{address} on interface {interface} does not answer ARP or neighbour discovery")]
    NoAnswer {
        /// Index of the interface that was asked on.
        interface: u32,
        /// Who was asked for: the gateway, or the host itself.
        address: IpAddr,
    },
    /// The kernel did not answer as it should.
    #[error("netlink: {0}")]
    Kernel(String),
}

/// What is known of each target.
pub type Snapshot = HashMap<IpAddr, Result<NextHop, Unresolved>>;

/// Keeps the next hops of a set of targets fresh until it is dropped.
///
/// Works in the network namespace of the thread that starts it.
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

    /// As [`Self::start`]. With a `gateway`, that is everyone's next hop and nobody is asked for a MAC;
    /// interface, source address and MTU are still those of the kernel's routes.
    ///
    /// # Errors
    /// When netlink cannot be opened or does not answer.
    pub async fn start_with_gateway(
        gateway: Option<[u8; 6]>,
        targets: impl IntoIterator<Item = IpAddr>,
    ) -> Result<Self, NetlinkError> {
        let kernel = kernel::Netlink::open(gateway)?;
        let events = kernel::Events::open()?;
        let (targets, targets_seen) = tokio::sync::watch::channel(targets.into_iter().collect());
        let (publish, snapshots) = tokio::sync::watch::channel(Arc::default());
        let mut watcher = watch::Watcher::new(kernel, targets_seen, publish);
        watcher.resolve().await;
        let task = tokio::spawn(watcher.run(events));
        Ok(Self { targets, snapshots, task })
    }

    /// Follows other targets from now on. What is known of those that stay is kept.
    pub fn set_targets(&self, targets: impl IntoIterator<Item = IpAddr>) {
        self.targets.send_replace(targets.into_iter().collect());
    }

    /// A channel that always holds the newest snapshot; it changes only when the contents do.
    #[must_use]
    pub fn subscribe(&self) -> Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }

    /// The newest snapshot.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshots.borrow().clone()
    }

    /// Waits until every present target is resolved or `patience` has passed; the snapshot then.
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

/// The index of a network interface.
///
/// # Errors
/// When there is no interface of that name in this network namespace.
pub fn interface_index(name: &str) -> io::Result<u32> {
    Ok(nix::net::if_::if_nametoindex(name)?)
}

/// The name of the network interface with this index in this network namespace, if there is one.
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
