//! Sending Ethernet frames through a packet socket.

use std::{io, os::fd::AsRawFd as _};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Sends `frame`, from its Ethernet header on, out of the interface with this index. It needs
/// CAP_NET_RAW.
///
/// # Errors
/// When the kernel refuses.
pub fn send_frame(interface: u32, frame: &[u8]) -> io::Result<()> {
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: all-zero bytes are a valid `sockaddr_ll`.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = interface as i32;
    to.sll_halen = 6;
    if let Some(address) = frame.get(..6) {
        to.sll_addr[..6].copy_from_slice(address);
    }
    // SAFETY: frame and address outlive the call, and their lengths are their own.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            std::ptr::from_ref(&to).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
