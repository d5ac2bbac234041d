//! Hearing that network interfaces come, go or change.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::{Interest, unix::AsyncFd};

/// RTMGRP_LINK of linux/rtnetlink.h.
const LINKS: u32 = 1;

/// A socket on which the kernel tells of this network namespace's interfaces.
#[derive(Debug)]
pub struct LinkEvents(AsyncFd<OwnedFd>);

impl LinkEvents {
    /// Opens it, in the network namespace of this thread.
    ///
    /// # Errors
    /// When the kernel says no.
    pub fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkRoute,
        )?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, LINKS))?;
        // SAFETY: the descriptor is owned by what is registered.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
        Ok(Self(socket?))
    }

    /// Waits until something about some interface has changed. Can be dropped and called again.
    ///
    /// # Errors
    /// When the socket is broken.
    pub async fn changed(&self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        // What exactly is asked of the kernel anew; lost messages (ENOBUFS) are as good as any.
        let mut buffer = [0; 16_384];
        while recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())
            .is_ok_and(|length| length > 0)
        {}
        ready.clear_ready();
        Ok(())
    }
}
