//! What a generation takes from the machine it runs on, and when that changes.

use std::{collections::BTreeSet, io, net::IpAddr, time::Duration};

use futures::{StreamExt as _, channel::mpsc::UnboundedReceiver};
use glb_host::xdp_link::{self, AttachError};
use rtnetlink::{
    MulticastGroup, packet_core::NetlinkMessage, packet_route::RouteNetlinkMessage, sys::SocketAddr,
};
use tokio::time::{Instant, sleep_until};

use crate::{config::Config, local_addresses};

/// The facts that are built into a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    /// Where the tunnel may end.
    pub(crate) own: BTreeSet<IpAddr>,
    /// What fits on every interface that tunnelled packets come in by.
    pub(crate) mtu: u32,
    /// The interfaces by number: one that was removed and made anew has another.
    indices: Vec<u32>,
}

/// Why the machine cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MachineError {
    #[error("cannot list this machine's addresses: {0}")]
    Addresses(io::Error),
    #[error(transparent)]
    Interface(#[from] AttachError),
}

impl Machine {
    /// The machine as it is now.
    pub(crate) fn look(config: &Config) -> Result<Self, MachineError> {
        let own = local_addresses::addresses(config).map_err(MachineError::Addresses)?;
        let mut mtu = u32::MAX;
        let mut indices = Vec::new();
        for name in &config.interfaces {
            indices.push(xdp_link::interface_index(name)?);
            mtu = mtu.min(xdp_link::interface_mtu(name)?);
        }
        Ok(Self { own, mtu, indices })
    }
}

/// Changes come in flocks: one look answers them all.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// A look is taken at least this often, whatever is heard: messages can be lost.
const EVERY: Duration = Duration::from_secs(10);

/// Tells when addresses or interfaces of this network namespace may have changed.
pub(crate) struct Changes {
    messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    task: tokio::task::JoinHandle<()>,
    due: Instant,
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Changes {
    pub(crate) fn follow() -> io::Result<Self> {
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let (connection, _, messages) = rtnetlink::new_multicast_connection(&groups)?;
        Ok(Self { messages, task: tokio::spawn(connection), due: Instant::now() + EVERY })
    }

    /// Returns when it is time to look. Nothing is lost if it is given up half-way.
    pub(crate) async fn next(&mut self) {
        loop {
            tokio::select! {
                () = sleep_until(self.due) => {
                    self.due = Instant::now() + EVERY;
                    return;
                }
                message = self.messages.next() => match message {
                    Some(_) => self.due = self.due.min(Instant::now() + DEBOUNCE),
                    // Netlink is gone; what is left is to look now and then.
                    None => sleep_until(self.due).await,
                },
            }
        }
    }
}
