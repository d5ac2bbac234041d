//! The facts about this host that a generation is built from, and when they change.

use std::{collections::BTreeSet, io, net::IpAddr, time::Duration};

use futures::{StreamExt as _, channel::mpsc::UnboundedReceiver};
use glb_host::xdp_link::{self, AttachError};
use rtnetlink::{
    MulticastGroup, packet_core::NetlinkMessage, packet_route::RouteNetlinkMessage, sys::SocketAddr,
};
use tokio::time::{Instant, sleep_until};

use crate::{config::Config, local_addresses};

/// The facts that are compiled into a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostState {
    /// The addresses at which the tunnel may end.
    pub(crate) own: BTreeSet<IpAddr>,
    /// The smallest MTU of the interfaces that tunnelled packets arrive on.
    pub(crate) mtu: u32,
    /// The interfaces' indices: an interface that is deleted and created again has a new one.
    indices: Vec<u32>,
}

/// Why the host's state cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostStateError {
    #[error("cannot list this host's addresses (getifaddrs): {0}")]
    Addresses(io::Error),
    #[error(transparent)]
    Interface(#[from] AttachError),
}

impl HostState {
    /// Reads the state as it is now.
    pub(crate) fn read(config: &Config) -> Result<Self, HostStateError> {
        let own = local_addresses::tunnel_ends(config).map_err(HostStateError::Addresses)?;
        let mut mtu = u32::MAX;
        let mut indices = Vec::new();
        for name in &config.interfaces {
            indices.push(xdp_link::interface_index(name)?);
            mtu = mtu.min(xdp_link::interface_mtu(name)?);
        }
        Ok(Self { own, mtu, indices })
    }
}

/// Netlink messages that arrive within this time are answered by one look.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// The state is read at least this often, since netlink messages can be lost.
const POLL_INTERVAL: Duration = Duration::from_secs(10);

/// A subscription to changes of addresses and links in this network namespace.
pub(crate) struct HostChanges {
    messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    task: tokio::task::JoinHandle<()>,
    due: Instant,
}

impl Drop for HostChanges {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl HostChanges {
    /// Joins the netlink multicast groups of links and addresses.
    pub(crate) fn subscribe() -> io::Result<Self> {
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let (connection, _, messages) = rtnetlink::new_multicast_connection(&groups)?;
        Ok(Self { messages, task: tokio::spawn(connection), due: Instant::now() + POLL_INTERVAL })
    }

    /// Returns when the state may have changed. Cancellation loses no change.
    pub(crate) async fn next(&mut self) {
        loop {
            tokio::select! {
                () = sleep_until(self.due) => {
                    self.due = Instant::now() + POLL_INTERVAL;
                    return;
                }
                message = self.messages.next() => match message {
                    Some(_) => self.due = self.due.min(Instant::now() + DEBOUNCE),
                    // Without netlink, polling remains.
                    None => sleep_until(self.due).await,
                },
            }
        }
    }
}
