//! VIPs on the loopback interface: what makes this machine's kernel take packets for them.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use futures::TryStreamExt as _;
use nix::errno::Errno;
use rtnetlink::{
    AddressMessageBuilder, Handle,
    packet_core::ErrorMessage,
    packet_route::address::{
        AddressAttribute, AddressHeaderFlags, AddressMessage, AddressProtocol,
    },
};

/// What an address that was put on lo by this program says of its origin (`ip address` shows it as
/// `proto`). The kernel keeps it with the address, so that a daemon that was restarted still knows
/// its own. Kernels before 5.18 do not: there, a VIP counts as somebody else's.
const ORIGIN: AddressProtocol = AddressProtocol::Other(71);

/// A VIP could not be put on the loopback interface, or taken off it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VipError {
    /// There is no loopback interface.
    #[error("there is no loopback interface `lo` to put VIPs on: {0}")]
    NoLoopback(std::io::Error),
    /// Netlink could not be opened.
    #[error("cannot open a netlink route socket: {0}")]
    Open(std::io::Error),
    /// Not allowed.
    #[error(
        "not permitted to put {vip} on lo.\n  Run as root, or with CAP_NET_ADMIN; or put the VIPs \
         on by other means and set `vips_on_lo = false`."
    )]
    NotPermitted {
        /// Which.
        vip: IpAddr,
    },
    /// The addresses of the loopback interface could not be listed.
    #[error("cannot list the addresses on lo: {0}")]
    List(rtnetlink::Error),
    /// Anything else.
    #[error("cannot {action} {vip} on lo: {source}")]
    Other {
        /// What was tried.
        action: &'static str,
        /// Which.
        vip: IpAddr,
        /// Why not.
        source: rtnetlink::Error,
    },
}

/// A netlink connection to the loopback interface.
struct Loopback {
    handle: Handle,
    index: u32,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Loopback {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Loopback {
    fn open() -> Result<Self, VipError> {
        let index = glb_host::next_hop::interface_index("lo").map_err(VipError::NoLoopback)?;
        let (connection, handle, _) = rtnetlink::new_connection().map_err(VipError::Open)?;
        Ok(Self { handle, index, task: tokio::spawn(connection) })
    }

    /// The addresses that this program has put there.
    async fn own(&self) -> Result<BTreeSet<IpAddr>, VipError> {
        let request = self.handle.address().get().set_link_index_filter(self.index);
        let all: Vec<AddressMessage> =
            request.execute().try_collect().await.map_err(VipError::List)?;
        Ok(all.iter().filter_map(own_address).collect())
    }

    fn message(&self, vip: IpAddr) -> AddressMessage {
        match vip {
            IpAddr::V4(vip) => {
                AddressMessageBuilder::<Ipv4Addr>::new().index(self.index).address(vip, 32).build()
            }
            IpAddr::V6(vip) => {
                let mut message = AddressMessageBuilder::<Ipv6Addr>::new()
                    .index(self.index)
                    .address(vip, 128)
                    .build();
                // Every backend has this address: none of them is a duplicate.
                message.header.flags |= AddressHeaderFlags::Nodad;
                message
            }
        }
    }
}

/// The address, if this program has put it there.
fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    if !message.attributes.contains(&AddressAttribute::Protocol(ORIGIN)) {
        return None;
    }
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    })
}

fn errno(error: &rtnetlink::Error) -> Option<Errno> {
    match error {
        rtnetlink::Error::NetlinkError(ErrorMessage { code: Some(code), .. }) => {
            Some(Errno::from_raw(-code.get()))
        }
        _ => None,
    }
}

/// Puts each VIP on the loopback interface that is not there yet; those that were not. If one
/// cannot be put there, none is.
pub(crate) async fn put(vips: &BTreeSet<IpAddr>) -> Result<BTreeSet<IpAddr>, VipError> {
    let lo = Loopback::open()?;
    let mut done = BTreeSet::new();
    for vip in vips {
        let mut request = lo.handle.address().add(lo.index, *vip, 32);
        *request.message_mut() = lo.message(*vip);
        request.message_mut().attributes.push(AddressAttribute::Protocol(ORIGIN));
        let error = match request.execute().await {
            Ok(()) => {
                tracing::info!(%vip, "put on lo");
                done.insert(*vip);
                continue;
            }
            Err(error) => error,
        };
        let error = match errno(&error) {
            Some(Errno::EEXIST) => continue,
            Some(Errno::EPERM | Errno::EACCES) => VipError::NotPermitted { vip: *vip },
            _ => VipError::Other { action: "put", vip: *vip, source: error },
        };
        take_back(&done).await;
        return Err(error);
    }
    Ok(done)
}

/// Takes off what [`put`] has put there for a configuration that is not used after all.
pub(crate) async fn take_back(put: &BTreeSet<IpAddr>) {
    if put.is_empty() {
        return;
    }
    // The error that made this necessary says more.
    if let Err(error) = remove(put).await {
        tracing::warn!("a VIP of a refused configuration is left on lo: {error}");
    }
}

/// Takes each VIP off the loopback interface that this program has put there, now or in a former
/// life. Those of others stay.
pub(crate) async fn remove_own(vips: &BTreeSet<IpAddr>) -> Result<(), VipError> {
    if vips.is_empty() {
        return Ok(());
    }
    let own = Loopback::open()?.own().await?;
    let (own, others): (BTreeSet<IpAddr>, BTreeSet<IpAddr>) =
        vips.iter().partition(|vip| own.contains(vip));
    for vip in others {
        tracing::info!(%vip, "no VIP any more; left as it is: if it is on lo, somebody else put it there");
    }
    remove(&own).await
}

/// Takes each VIP off the loopback interface that is there.
pub(crate) async fn remove(vips: &BTreeSet<IpAddr>) -> Result<(), VipError> {
    let lo = Loopback::open()?;
    for vip in vips {
        match lo.handle.address().del(lo.message(*vip)).execute().await {
            Ok(()) => tracing::info!(%vip, "taken off lo"),
            Err(error) if errno(&error) == Some(Errno::EADDRNOTAVAIL) => {}
            Err(source) => return Err(VipError::Other { action: "remove", vip: *vip, source }),
        }
    }
    Ok(())
}
