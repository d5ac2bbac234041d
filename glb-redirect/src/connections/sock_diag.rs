//! The kernel's TCP sockets, listed by sock_diag(7).

use std::{io, net::SocketAddr, os::fd::AsRawFd as _, time::Duration};

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_sock_diag::{
    AF_INET, AF_INET6, IPPROTO_TCP, SockDiagMessage, TCP_CLOSE_WAIT, TCP_CLOSING, TCP_ESTABLISHED,
    TCP_FIN_WAIT1, TCP_FIN_WAIT2, TCP_LAST_ACK, TCP_SYN_RECV, TCP_TIME_WAIT,
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, nlas::Nla},
};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

/// Space for one answer of the kernel, which fills it with as many sockets as fit.
const ANSWER_BYTES: usize = 1 << 18;

/// The state of a TCP connection that was opened from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum State {
    /// Both sides can send.
    Established = TCP_ESTABLISHED,
    /// A SYN was answered, the handshake is not complete.
    SynReceived = TCP_SYN_RECV,
    /// This side has closed.
    FinWait1 = TCP_FIN_WAIT1,
    /// This side has closed, and the peer has acknowledged it.
    FinWait2 = TCP_FIN_WAIT2,
    /// The connection is over; the kernel keeps its four-tuple from being reused.
    TimeWait = TCP_TIME_WAIT,
    /// The peer has closed.
    CloseWait = TCP_CLOSE_WAIT,
    /// Both sides have closed; the last acknowledgement is missing.
    LastAck = TCP_LAST_ACK,
    /// Both sides have closed at the same time.
    Closing = TCP_CLOSING,
}

impl State {
    /// All states.
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

    /// Whether the connection would break if its packets no longer came to this host.
    #[must_use]
    pub const fn is_live(self) -> bool {
        !matches!(self, Self::TimeWait)
    }
}

/// A TCP socket that belongs to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// This host's address and port.
    pub local: SocketAddr,
    /// The client's address and port.
    pub remote: SocketAddr,
    /// Its state.
    pub state: State,
    /// The kernel's identifier of this socket, unique until the next boot.
    pub cookie: u64,
    /// Time since data was last sent or received. The connection is at least this old; the kernel does
    /// not record when it was opened.
    pub idle: Duration,
}

/// A socket that listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// The address and port.
    pub local: SocketAddr,
    /// Index of the device that the socket is bound to (SO_BINDTODEVICE); 0 for none.
    pub device: u32,
}

/// Lists the sockets of all connections in this thread's network namespace.
///
/// # Errors
/// When the kernel does not list them.
pub fn sockets() -> io::Result<Vec<Socket>> {
    let mut found = Vec::new();
    let states = State::ALL.iter().fold(0, |bits, state| bits | 1 << *state as u32);
    dump(StateFlags::from_bits_truncate(states), |response| found.extend(connection(response)))?;
    Ok(found)
}

/// Lists the listening sockets in this thread's network namespace.
///
/// # Errors
/// When the kernel does not list them.
pub fn listeners() -> io::Result<Vec<Listener>> {
    let mut found = Vec::new();
    dump(StateFlags::LISTEN, |InetResponse { header, .. }| {
        let device = header.socket_id.interface_id;
        found.push(Listener { local: local(&header.socket_id), device });
    })?;
    Ok(found)
}

/// Calls `each` for every TCP socket, of IPv4 and IPv6, in one of `states`.
fn dump(states: StateFlags, mut each: impl FnMut(&InetResponse)) -> io::Result<()> {
    for (family, socket_id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        let netlink = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkSockDiag,
        )?;
        let request = InetRequest {
            family,
            protocol: IPPROTO_TCP,
            // The kernel then adds a `struct tcp_info`.
            extensions: ExtensionFlags::INFO,
            states: states.clone(),
            socket_id,
        };
        send(netlink.as_raw_fd(), &serialize(request), MsgFlags::empty())?;
        let mut buffer = vec![0; ANSWER_BYTES];
        loop {
            let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            if read_answer(&buffer[..length], &mut each)? {
                break;
            }
        }
    }
    Ok(())
}

fn serialize(request: InetRequest) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// Parses the messages of one answer; returns whether the last one of the dump was among them.
fn read_answer(mut answer: &[u8], each: &mut impl FnMut(&InetResponse)) -> io::Result<bool> {
    let invalid = |error: &dyn std::fmt::Display| {
        let text = format!("cannot parse the kernel's answer (sock_diag): {error}");
        io::Error::new(io::ErrorKind::InvalidData, text)
    };
    while !answer.is_empty() {
        let message = NetlinkMessage::<SockDiagMessage>::deserialize(answer)
            .map_err(|error| invalid(&error))?;
        match message.payload {
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Error(error) => return Err(error.to_io()),
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                each(&response);
            }
            _ => {}
        }
        let length = (message.header.length as usize).next_multiple_of(4);
        if length == 0 {
            return Err(invalid(&"a message of length 0"));
        }
        answer = answer.get(length..).unwrap_or_default();
    }
    Ok(false)
}

fn connection(InetResponse { header, nlas }: &InetResponse) -> Option<Socket> {
    let id = &header.socket_id;
    Some(Socket {
        local: local(id),
        remote: SocketAddr::new(id.destination_address.to_canonical(), id.destination_port),
        state: State::ALL.into_iter().find(|state| *state as u8 == header.state)?,
        cookie: u64::from_ne_bytes(id.cookie),
        idle: idle(nlas),
    })
}

/// The local side. A socket of both families has IPv4 addresses in IPv4-mapped form.
fn local(id: &SocketId) -> SocketAddr {
    SocketAddr::new(id.source_address.to_canonical(), id.source_port)
}

/// How long the connection has neither sent nor received data.
fn idle(attributes: &[Nla]) -> Duration {
    let info = attributes.iter().find_map(|attribute| match attribute {
        Nla::TcpInfo(info) => Some(info),
        _ => None,
    });
    info.map_or(Duration::ZERO, |info| {
        Duration::from_millis(info.last_data_sent.max(info.last_data_recv).into())
    })
}
