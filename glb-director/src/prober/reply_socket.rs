//! Sockets that receive the answers to probes.

use std::{
    io,
    mem::MaybeUninit,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd as _,
    sync::OnceLock,
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

/// The sockets that were opened before the process gave up its privileges.
static OPENED: OnceLock<Vec<ReplySocket>> = OnceLock::new();

/// Opens the sockets while the process may still do so. Errors are reported by `sockets`.
pub fn open_reply_sockets() {
    drop(OPENED.set(open_all()));
}

/// The sockets, one for each address family that the machine has.
pub(super) fn sockets() -> &'static [ReplySocket] {
    OPENED.get_or_init(open_all)
}

/// Receives ICMP echo replies.
#[derive(Debug)]
pub(super) struct ReplySocket {
    socket: Socket,
    pub(super) is_v4: bool,
    /// Raw IPv4 sockets deliver the IP header too.
    has_header: bool,
    /// The identifier of echo requests whose replies arrive here.
    pub(super) identifier: u16,
}

fn open_all() -> Vec<ReplySocket> {
    [true, false].into_iter().filter_map(|is_v4| open(is_v4).ok()).collect()
}

fn open(is_v4: bool) -> io::Result<ReplySocket> {
    let (domain, protocol) =
        if is_v4 { (Domain::IPV4, Protocol::ICMPV4) } else { (Domain::IPV6, Protocol::ICMPV6) };
    match Socket::new(domain, Type::RAW, Some(protocol)) {
        Ok(socket) => {
            socket.set_nonblocking(true)?;
            only_replies(&socket, is_v4)?;
            let identifier = std::process::id() as u16;
            Ok(ReplySocket { socket, is_v4, has_header: is_v4, identifier })
        }
        // Without CAP_NET_RAW: a ping socket, if `net.ipv4.ping_group_range` allows it.
        Err(_) => {
            let socket = Socket::new(domain, Type::DGRAM, Some(protocol))?;
            socket.set_nonblocking(true)?;
            let any: IpAddr =
                if is_v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            socket.bind(&SocketAddr::new(any, 0).into())?;
            let bound = socket.local_addr()?.as_socket();
            let identifier = bound.map_or(0, |bound| bound.port());
            Ok(ReplySocket { socket, is_v4, has_header: false, identifier })
        }
    }
}

/// Has the kernel deliver echo replies only.
fn only_replies(socket: &Socket, is_v4: bool) -> io::Result<()> {
    const SOL_RAW: i32 = 255;
    const FILTER: i32 = 1;
    // A set bit blocks the type of its number: 0 and 129 are echo replies.
    let mut blocked = [u32::MAX; 8];
    let (level, bytes) = if is_v4 {
        blocked[0] = !1;
        (SOL_RAW, 4)
    } else {
        blocked[129 / 32] = !(1 << (129 % 32));
        (libc::IPPROTO_ICMPV6, 32)
    };
    // SAFETY: the option's value is at least as long as the length says.
    let done = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, FILTER, blocked.as_ptr().cast(), bytes)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

impl ReplySocket {
    /// The next received ICMP message, with its sender.
    pub(super) fn receive(&self) -> Option<(IpAddr, Vec<u8>)> {
        let mut buffer = [MaybeUninit::<u8>::uninit(); 2048];
        let (length, from) = self.socket.recv_from(&mut buffer).ok()?;
        // SAFETY: the kernel has written the first `length` bytes.
        let bytes = buffer[..length].iter().map(|byte| unsafe { byte.assume_init() });
        let bytes: Vec<u8> = bytes.collect();
        let header = if self.has_header { usize::from(bytes.first()? & 0xf) * 4 } else { 0 };
        Some((from.as_socket()?.ip(), bytes.get(header..)?.to_vec()))
    }
}

/// Waits until a message arrives at any socket, or the time is over.
pub(super) fn wait(sockets: &[ReplySocket], timeout: Duration) {
    let mut polled: Vec<libc::pollfd> = sockets
        .iter()
        .map(|one| libc::pollfd { fd: one.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 })
        .collect();
    let timeout = timeout.as_millis().clamp(1, 1_000) as i32;
    // SAFETY: as many descriptors as the number says, and they outlive the call.
    unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, timeout) };
}
