//! From bytes to a flow: what a frame is about, or why it is not for us.
//!
//! A flow is oriented from the client to the VIP. For an ICMP error that is the quoted packet
//! reversed, because the quoted one was sent by a backend.

use crate::{
    frame::Frame,
    hash::{Address, V4, V6},
    reason::DirectorReason as Reason,
    wire::{
        ethernet::{self, EthernetHeader},
        icmp::{self, IcmpHeader},
        ipv4::Ipv4Header,
        ipv6::{self, ExtensionHeader, Ipv6Header},
        protocol,
        tcp::TcpHeader,
        udp::UdpHeader,
    },
};

/// Who talks to whom. Ports in host order; for an echo request both are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow<A> {
    /// The client.
    pub source: A,
    /// The VIP.
    pub destination: A,
    /// The client's port.
    pub source_port: u16,
    /// The VIP's port.
    pub destination_port: u16,
    /// IP protocol: 6, 17, 1 or 58.
    pub protocol: u8,
}

/// A packet that a bind may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<A> {
    /// The flow it belongs to.
    pub flow: Flow<A>,
    /// Length of the IP packet in bytes; the frame may be longer (padding), never shorter.
    pub ip_length: u16,
    /// What makes the outer UDP source port differ between flows of one client.
    pub flow_hint: u16,
    /// TOS or traffic class.
    pub tos: u8,
    /// A fragment other than the first: it has no ports, and 0 stands for them.
    pub is_later_fragment: bool,
    /// Whether its sender must be told, may be told or must not be told that it is too big.
    pub oversize: Oversize,
}

/// What to do about a packet that is too big for the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Oversize {
    /// Tell its sender what fits.
    Tell,
    /// Its sender expects it to be fragmented (IPv4 without DF).
    Fragment,
    /// Tell nobody: an ICMP error or a later fragment (RFC 1122 and 4443).
    Silent,
}

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// An IPv4 packet.
    V4(Packet<V4>),
    /// An IPv6 packet.
    V6(Packet<V6>),
}

/// At most this many IPv6 extension headers are walked over.
pub const MAX_EXTENSIONS: usize = 2;

/// Where the IP header starts.
pub const IP_OFFSET: usize = EthernetHeader::LEN;

/// The whole frame, whatever it is.
///
/// # Errors
/// The reason why the frame is left to the kernel.
#[inline(always)]
pub fn parse<F: Frame + ?Sized>(frame: &F) -> Result<Parsed, Reason> {
    let Some(ethernet) = frame.read::<EthernetHeader>(0) else { return Err(Reason::Malformed) };
    match ethernet.ethertype {
        ethernet::IPV4 => Ok(Parsed::V4(parse_v4(frame)?)),
        ethernet::IPV6 => Ok(Parsed::V6(parse_v6(frame)?)),
        _ => Err(Reason::NotIp),
    }
}

/// An IPv4 packet behind an untagged Ethernet header.
///
/// # Errors
/// The reason why the frame is left to the kernel.
#[inline(always)]
pub fn parse_v4<F: Frame + ?Sized>(frame: &F) -> Result<Packet<V4>, Reason> {
    let Some(ip) = frame.read::<Ipv4Header>(IP_OFFSET) else { return Err(Reason::Malformed) };
    let (header_len, total) = (ip.header_len(), ip.total_length());
    if ip.version() != 4 || header_len < Ipv4Header::LEN || IP_OFFSET + total > frame.len() {
        return Err(Reason::Malformed);
    }
    let payload = Payload {
        offset: IP_OFFSET + header_len,
        // A total length below the header's own is found by the subtraction.
        length: total.checked_sub(header_len).ok_or(Reason::Malformed)?,
        ip_length: total as u16,
        tos: ip.tos,
        oversize: if ip.may_fragment() { Oversize::Fragment } else { Oversize::Tell },
    };
    let (source, destination) = (V4::new(ip.source), V4::new(ip.destination));
    if ip.is_later_fragment() {
        return fragment(payload, ip.protocol, source, destination);
    }
    match ip.protocol {
        protocol::TCP | protocol::UDP => {
            transport(frame, payload, ip.protocol, source, destination)
        }
        protocol::ICMP => {
            let icmp = message(frame, payload)?;
            match icmp.kind {
                icmp::V4_ECHO_REQUEST if icmp.code == 0 => Ok(echo(
                    payload,
                    protocol::ICMP,
                    source,
                    destination,
                    u16::from_be_bytes(ip.identification),
                )),
                icmp::V4_UNREACHABLE | icmp::V4_TIME_EXCEEDED | icmp::V4_PARAMETER_PROBLEM => {
                    quoted_v4(frame, payload, destination)
                }
                _ => Err(Reason::OtherIcmp),
            }
        }
        _ => Err(Reason::OtherProtocol),
    }
}

/// An IPv6 packet behind an untagged Ethernet header.
///
/// # Errors
/// The reason why the frame is left to the kernel.
#[inline(always)]
pub fn parse_v6<F: Frame + ?Sized>(frame: &F) -> Result<Packet<V6>, Reason> {
    let Some(ip) = frame.read::<Ipv6Header>(IP_OFFSET) else { return Err(Reason::Malformed) };
    let total = ip.total_length();
    if ip.version() != 6 || IP_OFFSET + total > frame.len() {
        return Err(Reason::Malformed);
    }
    let mut payload = Payload {
        offset: IP_OFFSET + Ipv6Header::LEN,
        length: total - Ipv6Header::LEN,
        // At most 65,575; what is beyond 65,535 is refused when it is encapsulated.
        ip_length: if total > u16::MAX as usize { u16::MAX } else { total as u16 },
        tos: ip.traffic_class(),
        oversize: Oversize::Tell,
    };
    let (source, destination) = (V6::new(ip.source), V6::new(ip.destination));
    let mut next = ip.next_header;
    for _ in 0..MAX_EXTENSIONS {
        if !matches!(
            next,
            ipv6::HOP_BY_HOP | ipv6::ROUTING | ipv6::FRAGMENT | ipv6::DESTINATION_OPTIONS
        ) {
            break;
        }
        let Some(extension) = frame.read::<ExtensionHeader>(payload.offset) else {
            return Err(Reason::Malformed);
        };
        let length = extension.len(next);
        payload.length = payload.length.checked_sub(length).ok_or(Reason::Malformed)?;
        payload.offset += length;
        if next == ipv6::FRAGMENT && extension.is_later_fragment() {
            return fragment(payload, extension.next_header, source, destination);
        }
        next = extension.next_header;
    }
    match next {
        protocol::TCP | protocol::UDP => transport(frame, payload, next, source, destination),
        protocol::ICMPV6 => {
            let icmp = message(frame, payload)?;
            match icmp.kind {
                icmp::V6_ECHO_REQUEST if icmp.code == 0 => {
                    Ok(echo(payload, protocol::ICMPV6, source, destination, ip.flow_label_low()))
                }
                icmp::V6_UNREACHABLE
                | icmp::V6_PACKET_TOO_BIG
                | icmp::V6_TIME_EXCEEDED
                | icmp::V6_PARAMETER_PROBLEM => quoted_v6(frame, payload, destination),
                _ => Err(Reason::OtherIcmp),
            }
        }
        _ => Err(Reason::OtherProtocol),
    }
}

/// What follows the IP header.
#[derive(Clone, Copy)]
struct Payload {
    offset: usize,
    length: usize,
    ip_length: u16,
    tos: u8,
    oversize: Oversize,
}

/// A fragment other than the first: what it is about is told by its addresses alone.
#[inline(always)]
fn fragment<A>(
    payload: Payload,
    protocol: u8,
    source: A,
    destination: A,
) -> Result<Packet<A>, Reason> {
    if protocol != protocol::TCP && protocol != protocol::UDP {
        return Err(Reason::LaterFragment);
    }
    Ok(Packet {
        flow: Flow { source, destination, source_port: 0, destination_port: 0, protocol },
        ip_length: payload.ip_length,
        flow_hint: 0,
        tos: payload.tos,
        is_later_fragment: true,
        oversize: Oversize::Silent,
    })
}

#[inline(always)]
fn transport<F: Frame + ?Sized, A: Address>(
    frame: &F,
    payload: Payload,
    protocol: u8,
    source: A,
    destination: A,
) -> Result<Packet<A>, Reason> {
    let shortest = if protocol == protocol::TCP { TcpHeader::LEN } else { UdpHeader::LEN };
    if payload.length < shortest {
        return Err(Reason::Malformed);
    }
    let Some([source_port, destination_port]) = ports(frame, payload.offset) else {
        return Err(Reason::Malformed);
    };
    Ok(Packet {
        flow: Flow { source, destination, source_port, destination_port, protocol },
        ip_length: payload.ip_length,
        flow_hint: source_port,
        tos: payload.tos,
        is_later_fragment: false,
        oversize: payload.oversize,
    })
}

#[inline(always)]
fn ports<F: Frame + ?Sized>(frame: &F, offset: usize) -> Option<[u16; 2]> {
    let [a, b, c, d] = frame.read::<[u8; 4]>(offset)?;
    Some([u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])])
}

#[inline(always)]
fn message<F: Frame + ?Sized>(frame: &F, payload: Payload) -> Result<IcmpHeader, Reason> {
    if payload.length < IcmpHeader::LEN {
        return Err(Reason::Malformed);
    }
    frame.read(payload.offset).ok_or(Reason::Malformed)
}

#[inline(always)]
fn echo<A>(payload: Payload, protocol: u8, source: A, destination: A, hint: u16) -> Packet<A> {
    Packet {
        flow: Flow { source, destination, source_port: 0, destination_port: 0, protocol },
        ip_length: payload.ip_length,
        flow_hint: hint,
        tos: payload.tos,
        is_later_fragment: false,
        oversize: payload.oversize,
    }
}

/// The flow that an ICMP error sent to `vip` quotes. RFC 792 promises 8 bytes behind the quoted IP
/// header, which hold both ports.
#[inline(always)]
fn quoted_v4<F: Frame + ?Sized>(
    frame: &F,
    payload: Payload,
    vip: V4,
) -> Result<Packet<V4>, Reason> {
    let start = payload.offset + IcmpHeader::LEN;
    let Some(ip) = frame.read::<Ipv4Header>(start) else { return Err(Reason::Malformed) };
    let header_len = ip.header_len();
    if ip.version() != 4
        || header_len < Ipv4Header::LEN
        || payload.length < IcmpHeader::LEN + header_len + UdpHeader::LEN
    {
        return Err(Reason::Malformed);
    }
    if ip.is_later_fragment() {
        return Err(Reason::LaterFragment);
    }
    reversed(
        frame,
        payload,
        start + header_len,
        ip.protocol,
        V4::new(ip.source),
        V4::new(ip.destination),
        vip,
    )
}

/// As [`quoted_v4`], for IPv6.
#[inline(always)]
fn quoted_v6<F: Frame + ?Sized>(
    frame: &F,
    payload: Payload,
    vip: V6,
) -> Result<Packet<V6>, Reason> {
    let start = payload.offset + IcmpHeader::LEN;
    let Some(ip) = frame.read::<Ipv6Header>(start) else { return Err(Reason::Malformed) };
    if ip.version() != 6 || payload.length < IcmpHeader::LEN + Ipv6Header::LEN + UdpHeader::LEN {
        return Err(Reason::Malformed);
    }
    let ports = start + Ipv6Header::LEN;
    reversed(
        frame,
        payload,
        ports,
        ip.next_header,
        V6::new(ip.source),
        V6::new(ip.destination),
        vip,
    )
}

#[inline(always)]
fn reversed<F: Frame + ?Sized, A: Address>(
    frame: &F,
    payload: Payload,
    ports_offset: usize,
    protocol: u8,
    quoted_source: A,
    quoted_destination: A,
    vip: A,
) -> Result<Packet<A>, Reason> {
    if protocol != protocol::TCP && protocol != protocol::UDP {
        return Err(Reason::OtherIcmp);
    }
    if quoted_source != vip {
        return Err(Reason::ForeignIcmpError);
    }
    let Some([quoted_source_port, quoted_destination_port]) = ports(frame, ports_offset) else {
        return Err(Reason::Malformed);
    };
    Ok(Packet {
        flow: Flow {
            source: quoted_destination,
            destination: quoted_source,
            source_port: quoted_destination_port,
            destination_port: quoted_source_port,
            protocol,
        },
        ip_length: payload.ip_length,
        flow_hint: quoted_destination_port,
        tos: payload.tos,
        is_later_fragment: false,
        oversize: Oversize::Silent,
    })
}
