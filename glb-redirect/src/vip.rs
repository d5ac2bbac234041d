//! VIPs on the loopback interface, which make this host's kernel accept packets for them.

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

/// Marks addresses that this program added to lo (`ip address` shows it as `proto 71`). The kernel
/// keeps the mark with the address (Linux 5.18 or newer), so that a restarted daemon recognises its
/// own addresses.
const ORIGIN: AddressProtocol = AddressProtocol::Other(71);

/// A VIP could not be added to the loopback interface, or removed from it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VipError {
    /// There is no loopback interface.
    #[error("cannot add VIPs: there is no loopback interface `lo`: {0}")]
    NoLoopback(std::io::Error),
    /// No netlink socket.
    #[error("cannot open a netlink route socket to change the addresses on lo: {0}")]
    Open(std::io::Error),
    /// CAP_NET_ADMIN is missing.
    #[error(
        "not permitted to add {vip} to lo.\n  Run as root or with CAP_NET_ADMIN; or add the VIPs by \
         other means and set `vips_on_lo = false`."
    )]
    NotPermitted {
        /// The VIP.
        vip: IpAddr,
    },
    /// The addresses of the loopback interface could not be listed.
    #[error("cannot list the addresses on lo: {0}")]
    List(rtnetlink::Error),
    /// The kernel refused for another reason.
    #[error("cannot {action} lo: {vip}: {source}")]
    Other {
        /// The operation and its preposition.
        action: &'static str,
        /// The VIP.
        vip: IpAddr,
        /// The kernel's answer.
        source: rtnetlink::Error,
    },
}

/// A netlink connection that changes the loopback interface.
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

    /// The addresses on lo that this program added.
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
                // Every backend has this address, so duplicate address detection must not run.
                message.header.flags |= AddressHeaderFlags::Nodad;
                message
            }
        }
    }
}

/// The address, if this program added it.
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

/// Adds the VIPs that are missing to lo, all or none; returns those that were missing.
pub(crate) async fn add(vips: &BTreeSet<IpAddr>) -> Result<BTreeSet<IpAddr>, VipError> {
    let lo = Loopback::open()?;
    let mut added = BTreeSet::new();
    for vip in vips {
        let mut request = lo.handle.address().add(lo.index, *vip, 32);
        *request.message_mut() = lo.message(*vip);
        request.message_mut().attributes.push(AddressAttribute::Protocol(ORIGIN));
        let error = match request.execute().await {
            Ok(()) => {
                tracing::info!(%vip, "VIP added to lo");
                added.insert(*vip);
                continue;
            }
            Err(error) => error,
        };
        let error = match errno(&error) {
            Some(Errno::EEXIST) => continue,
            Some(Errno::EPERM | Errno::EACCES) => VipError::NotPermitted { vip: *vip },
            _ => VipError::Other { action: "add to", vip: *vip, source: error },
        };
        roll_back(&added).await;
        return Err(error);
    }
    Ok(added)
}

/// Removes what [`add`] added for a configuration that is refused after all.
pub(crate) async fn roll_back(added: &BTreeSet<IpAddr>) {
    if added.is_empty() {
        return;
    }
    // The caller reports the error that made this necessary.
    if let Err(error) = remove(added).await {
        tracing::warn!(%error, "cannot remove a refused configuration's VIP from lo");
    }
}

/// Removes those of `vips` from lo that this program added, in this process or a former one. Addresses
/// that others added stay.
pub(crate) async fn remove_owned(vips: &BTreeSet<IpAddr>) -> Result<(), VipError> {
    if vips.is_empty() {
        return Ok(());
    }
    let own = Loopback::open()?.own().await?;
    let (own, others): (BTreeSet<IpAddr>, BTreeSet<IpAddr>) =
        vips.iter().partition(|vip| own.contains(vip));
    for vip in others {
        tracing::info!(%vip, "not a VIP any more; it stays on lo if another program added it");
    }
    remove(&own).await
}

/// Removes `vips` from lo, whoever added them.
pub(crate) async fn remove(vips: &BTreeSet<IpAddr>) -> Result<(), VipError> {
    let lo = Loopback::open()?;
    for vip in vips {
        match lo.handle.address().del(lo.message(*vip)).execute().await {
            Ok(()) => tracing::info!(%vip, "VIP removed from lo"),
            Err(error) if errno(&error) == Some(Errno::EADDRNOTAVAIL) => {}
            Err(source) => {
                return Err(VipError::Other { action: "remove from", vip: *vip, source });
            }
        }
    }
    Ok(())
}
