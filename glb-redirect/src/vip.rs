//! VIPs on the loopback interface: what makes this machine's kernel take packets for them.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use nix::errno::Errno;
use rtnetlink::{
    AddressMessageBuilder, Handle,
    packet_core::ErrorMessage,
    packet_route::address::{AddressHeaderFlags, AddressMessage},
};

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

fn errno(error: &rtnetlink::Error) -> Option<Errno> {
    match error {
        rtnetlink::Error::NetlinkError(ErrorMessage { code: Some(code), .. }) => {
            Some(Errno::from_raw(-code.get()))
        }
        _ => None,
    }
}

/// Puts each VIP on the loopback interface that is not there yet.
pub(crate) async fn put(vips: &BTreeSet<IpAddr>) -> Result<(), VipError> {
    let lo = Loopback::open()?;
    for vip in vips {
        let mut request = lo.handle.address().add(lo.index, *vip, 32);
        *request.message_mut() = lo.message(*vip);
        match request.execute().await {
            Ok(()) => tracing::info!(%vip, "put on lo"),
            Err(error) => match errno(&error) {
                Some(Errno::EEXIST) => {}
                Some(Errno::EPERM | Errno::EACCES) => {
                    return Err(VipError::NotPermitted { vip: *vip });
                }
                _ => return Err(VipError::Other { action: "put", vip: *vip, source: error }),
            },
        }
    }
    Ok(())
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
