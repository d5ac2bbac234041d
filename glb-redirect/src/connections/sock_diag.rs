//! The kernel's TCP sockets, by sock_diag (see sock_diag(7)): the layouts are those of
//! linux/inet_diag.h.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd as _,
    time::Duration,
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// NLM_F_REQUEST | NLM_F_DUMP
const REQUEST_DUMP: u16 = 0x301;
const IPPROTO_TCP: u8 = 6;
/// INET_DIAG_INFO: a `struct tcp_info` with each socket.
const INET_DIAG_INFO: u16 = 2;

const NETLINK_HEADER: usize = 16;
/// `struct inet_diag_req_v2`
const REQUEST: usize = 56;
/// `struct inet_diag_msg`
const MESSAGE: usize = 72;

/// A TCP socket's state, as tcp_states.h numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum State {
    /// Data flows.
    Established = 1,
    /// A SYN was answered.
    SynReceived = 3,
    /// This side has closed.
    FinWait1 = 4,
    /// This side has closed, and the other knows.
    FinWait2 = 5,
    /// Over; the number is kept from being used again.
    TimeWait = 6,
    /// The other side has closed.
    CloseWait = 8,
    /// Both have closed, the last acknowledgement is missing.
    LastAck = 9,
    /// Both have closed at once.
    Closing = 11,
}

impl State {
    /// Every state of a connection that was opened from outside.
    pub const ALL: [Self; 8] = [
        Self::SynReceived,
        Self::Established,
        Self::CloseWait,
        Self::FinWait1,
        Self::FinWait2,
        Self::LastAck,
        Self::Closing,
        Self::TimeWait,
    ];

    /// The stable name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Established => "established",
            Self::SynReceived => "syn_received",
            Self::FinWait1 => "fin_wait_1",
            Self::FinWait2 => "fin_wait_2",
            Self::TimeWait => "time_wait",
            Self::CloseWait => "close_wait",
            Self::LastAck => "last_ack",
            Self::Closing => "closing",
        }
    }

    /// Whether the connection would break if its packets no longer came here.
    #[must_use]
    pub const fn is_live(self) -> bool {
        !matches!(self, Self::TimeWait)
    }
}

/// A TCP socket that belongs to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// This machine's side.
    pub local: SocketAddr,
    /// The other side.
    pub remote: SocketAddr,
    /// Its state.
    pub state: State,
    /// The kernel's number of this socket, never used twice while the machine runs.
    pub cookie: u64,
    /// It is at least this old: so long ago something was last sent or received. The kernel does
    /// not keep the time of birth.
    pub idle: Duration,
}

/// TCP_LISTEN, which is no connection's state.
const LISTEN: u8 = 10;

/// All connections' sockets of this thread's network namespace.
///
/// # Errors
/// When the kernel does not tell.
pub fn sockets() -> io::Result<Vec<Socket>> {
    let mut found = Vec::new();
    let states = State::ALL.iter().fold(0, |bits, state| bits | 1 << *state as u8);
    dump(states, |message| found.extend(read_socket(message)))?;
    Ok(found)
}

/// Where somebody in this thread's network namespace listens.
///
/// # Errors
/// When the kernel does not tell.
pub fn listeners() -> io::Result<Vec<SocketAddr>> {
    let mut found = Vec::new();
    dump(1 << LISTEN, |message| found.extend(read_local(message)))?;
    Ok(found)
}

/// Hands each TCP socket in one of these states to `each`, as an `inet_diag_msg` with attributes.
fn dump(states: u32, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    for family in [libc::AF_INET, libc::AF_INET6] {
        let netlink = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkSockDiag,
        )?;
        send(netlink.as_raw_fd(), &request(family as u8, states), MsgFlags::empty())?;
        let mut buffer = vec![0; 1 << 18];
        loop {
            let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            if read(&buffer[..length], &mut each)? {
                break;
            }
        }
    }
    Ok(())
}

fn request(family: u8, states: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(NETLINK_HEADER + REQUEST);
    bytes.extend(((NETLINK_HEADER + REQUEST) as u32).to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(REQUEST_DUMP.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([family, IPPROTO_TCP, 1 << (INET_DIAG_INFO - 1), 0]);
    bytes.extend(states.to_ne_bytes());
    // No socket in particular.
    bytes.resize(NETLINK_HEADER + REQUEST, 0);
    bytes
}

/// Reads one answer; says whether it was the last.
fn read(mut answer: &[u8], each: &mut impl FnMut(&[u8])) -> io::Result<bool> {
    let odd = || io::Error::new(io::ErrorKind::InvalidData, "an odd answer from sock_diag");
    while !answer.is_empty() {
        let length = u32_at(answer, 0).ok_or_else(odd)? as usize;
        let kind = u16_at(answer, 4).ok_or_else(odd)?;
        let message = answer.get(NETLINK_HEADER..length).ok_or_else(odd)?;
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let errno = u32_at(message, 0).ok_or_else(odd)?.cast_signed();
                return Err(io::Error::from_raw_os_error(-errno));
            }
            SOCK_DIAG_BY_FAMILY => each(message),
            _ => {}
        }
        answer = answer.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn read_socket(message: &[u8]) -> Option<Socket> {
    let header = message.get(..MESSAGE)?;
    let cookie = u64::from(u32_at(header, 44)?) | u64::from(u32_at(header, 48)?) << 32;
    Some(Socket {
        local: read_local(message)?,
        remote: SocketAddr::new(address(header, 24)?, port(header, 6)?),
        state: State::ALL.into_iter().find(|state| *state as u8 == header[1])?,
        cookie,
        idle: idle(&message[MESSAGE..]),
    })
}

fn read_local(message: &[u8]) -> Option<SocketAddr> {
    Some(SocketAddr::new(address(message, 8)?, port(message, 4)?))
}

fn port(header: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(header.get(at..at + 2)?.try_into().ok()?))
}

fn address(header: &[u8], at: usize) -> Option<IpAddr> {
    let bytes: [u8; 16] = header.get(at..at + 16)?.try_into().ok()?;
    Some(if i32::from(*header.first()?) == libc::AF_INET {
        IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]))
    } else {
        // IPv4 through a listener of both families.
        IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
    })
}

/// From the `struct tcp_info` among the attributes.
fn idle(mut attributes: &[u8]) -> Duration {
    const LAST_DATA_SENT: usize = 44;
    const LAST_DATA_RECEIVED: usize = 52;
    while let (Some(length), Some(kind)) = (u16_at(attributes, 0), u16_at(attributes, 2)) {
        let length = usize::from(length).max(4);
        if kind == INET_DIAG_INFO
            && let Some(info) = attributes.get(4..length)
        {
            let milliseconds = [LAST_DATA_SENT, LAST_DATA_RECEIVED].map(|at| u32_at(info, at));
            let longest = milliseconds.into_iter().flatten().max().unwrap_or(0);
            return Duration::from_millis(longest.into());
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Duration::ZERO
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}
