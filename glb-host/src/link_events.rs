//! Notification of interfaces that appear, disappear or change.

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

/// A netlink socket that reports changes of this network namespace's interfaces.
#[derive(Debug)]
pub struct LinkEvents(AsyncFd<OwnedFd>);

impl LinkEvents {
    /// Opens the socket in this thread's network namespace.
    ///
    /// # Errors
    /// When the kernel refuses.
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

    /// Waits until an interface has changed. The future can be dropped and called again.
    ///
    /// # Errors
    /// When the socket is broken.
    pub async fn changed(&self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        // The caller reads the new state; a lost message (ENOBUFS) counts as a change too.
        let mut buffer = [0; 16_384];
        while recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())
            .is_ok_and(|length| length > 0)
        {}
        ready.clear_ready();
        Ok(())
    }
}
