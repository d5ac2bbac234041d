//! The inner packet: checks its headers and decides whether this machine owns it.

use super::{Ack, Host, NO_VIP, Reason, SocketMatch, tunnel::TunnelPacket};
use crate::{
    flow::{Address, Flow, V4, V6},
    packet_access::{Frame as _, MAX_OFFSET, Nested},
    wire::{
        icmp::{self, IcmpHeader},
        ipv4::Ipv4Header,
        ipv6::{ExtensionHeader, FRAGMENT, Ipv6Header, MAX_EXTENSION_HEADERS, is_extension},
        protocol,
        tcp::{self, TcpHeader},
        udp::UdpHeader,
    },
};

/// The owner of an inner packet.
pub(super) enum Ownership {
    /// This machine takes the packet, for this reason.
    Here(Reason),
    /// Another machine owns the packet. The reason counts it if it is sent on.
    Elsewhere(Reason),
}

/// The data after the inner IP header.
struct Payload<R> {
    rest: R,
    length: usize,
}

/// Decides who owns an inner IPv4 packet.
#[inline(always)]
pub(super) fn classify_v4<R: Nested, H: Host>(
    host: &H,
    tunnel: &TunnelPacket<R>,
    vip: &mut u32,
) -> Result<Ownership, Reason> {
    let Some(ip) = tunnel.inner.read::<Ipv4Header>(0) else { return Err(Reason::InnerMalformed) };
    let (header_len, total) = (ip.header_len(), ip.total_length());
    if ip.version() != 4 {
        return Err(Reason::BadInnerProtocol);
    }
    if header_len < Ipv4Header::LEN || header_len > total || total > tunnel.room {
        return Err(Reason::InnerMalformed);
    }
    let (source, destination) = (V4::new(ip.source), V4::new(ip.destination));
    *vip = vip_counters(host, &destination, ip.protocol == protocol::ICMP)?;
    if ip.is_later_fragment() {
        return Ok(Ownership::Here(Reason::TakenFragment));
    }
    let Some(rest) = tunnel.inner.rest(header_len) else { return Err(Reason::InnerMalformed) };
    let payload = Payload { rest, length: total - header_len };
    match ip.protocol {
        protocol::TCP => classify_segment(host, &payload, source, destination),
        protocol::ICMP => {
            let message = read_icmp(&payload)?;
            if message.kind == icmp::V4_UNREACHABLE && message.code == icmp::V4_FRAGMENTATION_NEEDED
            {
                quoted_v4(host, &payload, destination)
            } else {
                Ok(Ownership::Here(Reason::TakenIcmp))
            }
        }
        protocol::UDP if payload.length >= UdpHeader::LEN => Ok(Ownership::Here(Reason::TakenUdp)),
        protocol::UDP => Err(Reason::InnerMalformed),
        _ => Err(Reason::UnknownTransport),
    }
}

/// Decides who owns an inner IPv6 packet.
#[inline(always)]
pub(super) fn classify_v6<R: Nested, H: Host>(
    host: &H,
    tunnel: &TunnelPacket<R>,
    vip: &mut u32,
) -> Result<Ownership, Reason> {
    let Some(ip) = tunnel.inner.read::<Ipv6Header>(0) else { return Err(Reason::InnerMalformed) };
    let total = ip.total_length();
    if ip.version() != 6 {
        return Err(Reason::BadInnerProtocol);
    }
    if total > tunnel.room {
        return Err(Reason::InnerMalformed);
    }
    let (source, destination) = (V6::new(ip.source), V6::new(ip.destination));
    *vip = vip_counters(host, &destination, ip.next_header == protocol::ICMPV6)?;
    let (next_header, offset) = match skip_extensions(&tunnel.inner, ip.next_header, total)? {
        Extensions::Payload(next_header, offset) => (next_header, offset),
        Extensions::LaterFragment => return Ok(Ownership::Here(Reason::TakenFragment)),
    };
    let Some(length) = total.checked_sub(offset) else { return Err(Reason::InnerMalformed) };
    let Some(rest) = tunnel.inner.rest(offset) else { return Err(Reason::InnerMalformed) };
    let payload = Payload { rest, length };
    match next_header {
        protocol::TCP => classify_segment(host, &payload, source, destination),
        protocol::ICMPV6 => {
            if read_icmp(&payload)?.kind == icmp::V6_PACKET_TOO_BIG {
                quoted_v6(host, &payload, destination)
            } else {
                Ok(Ownership::Here(Reason::TakenIcmp))
            }
        }
        protocol::UDP if payload.length >= UdpHeader::LEN => Ok(Ownership::Here(Reason::TakenUdp)),
        protocol::UDP => Err(Reason::InnerMalformed),
        _ => Err(Reason::UnknownTransport),
    }
}

/// The counter index of a packet's VIP.
///
/// # Errors
/// [`Reason::NotVip`] if this machine does not serve the address.
#[inline(always)]
fn vip_counters<H: Host, A: Address>(
    host: &H,
    destination: &A,
    is_icmp: bool,
) -> Result<u32, Reason> {
    match host.vip(destination) {
        Some(vip) => Ok(vip),
        // GLB's health checker pings the backend's own address through the tunnel.
        None if is_icmp && host.is_local(destination) => Ok(NO_VIP),
        None => Err(Reason::NotVip),
    }
}

/// The result of skipping IPv6 extension headers.
enum Extensions {
    /// The transport protocol and the offset of its header in the packet.
    Payload(u8, usize),
    LaterFragment,
}

/// Skips up to [`MAX_EXTENSION_HEADERS`] extension headers of a packet of `total` bytes.
#[inline(always)]
fn skip_extensions<R: Nested>(inner: &R, mut kind: u8, total: usize) -> Result<Extensions, Reason> {
    let mut offset = Ipv6Header::LEN;
    for _ in 0..MAX_EXTENSION_HEADERS {
        if !is_extension(kind) {
            break;
        }
        if offset > MAX_OFFSET {
            return Err(Reason::UnknownTransport);
        }
        if offset + ExtensionHeader::LEN > total {
            return Err(Reason::InnerMalformed);
        }
        let header = inner.rest(offset).and_then(|rest| rest.read::<ExtensionHeader>(0));
        let Some(header) = header else { return Err(Reason::InnerMalformed) };
        if kind == FRAGMENT && header.is_later_fragment() {
            return Ok(Extensions::LaterFragment);
        }
        offset += header.len(kind);
        kind = header.next_header;
    }
    if offset > MAX_OFFSET {
        return Err(Reason::UnknownTransport);
    }
    // A further extension header is an unknown transport to the caller.
    Ok(Extensions::Payload(kind, offset))
}

#[inline(always)]
fn classify_segment<R: Nested, H: Host, A: Address>(
    host: &H,
    payload: &Payload<R>,
    source: A,
    destination: A,
) -> Result<Ownership, Reason> {
    if payload.length < TcpHeader::LEN {
        return Err(Reason::InnerMalformed);
    }
    let Some(tcp) = payload.rest.read::<TcpHeader>(0) else {
        return Err(Reason::InnerMalformed);
    };
    if tcp.flags & tcp::SYN != 0 {
        return Ok(Ownership::Here(Reason::TakenSyn));
    }
    let flow = Flow {
        source,
        destination,
        source_port: u16::from_be_bytes(tcp.source_port),
        destination_port: u16::from_be_bytes(tcp.destination_port),
        protocol: protocol::TCP,
    };
    let may_carry_cookie = tcp.flags & (tcp::ACK | tcp::RST) == tcp::ACK;
    let ack = Ack {
        sequence: u32::from_ne_bytes(tcp.sequence),
        acknowledgement: u32::from_ne_bytes(tcp.acknowledgement),
    };
    Ok(match host.find_socket(&flow, may_carry_cookie.then_some(ack)) {
        SocketMatch::Socket => Ownership::Here(Reason::TakenEstablished),
        SocketMatch::SynCookie => Ownership::Here(Reason::TakenCookie),
        SocketMatch::NoSocket => Ownership::Elsewhere(Reason::Forwarded),
    })
}

#[inline(always)]
fn read_icmp<R: Nested>(payload: &Payload<R>) -> Result<IcmpHeader, Reason> {
    if payload.length < IcmpHeader::LEN {
        return Err(Reason::InnerMalformed);
    }
    payload.rest.read(0).ok_or(Reason::InnerMalformed)
}

/// Decides who owns an ICMP error to `vip` by the flow that it quotes. RFC 792 guarantees 8 bytes after
/// the quoted IP header, which hold both ports.
#[inline(always)]
fn quoted_v4<R: Nested, H: Host>(
    host: &H,
    payload: &Payload<R>,
    vip: V4,
) -> Result<Ownership, Reason> {
    let Some(ip) = payload.rest.read::<Ipv4Header>(IcmpHeader::LEN) else {
        return Err(Reason::InnerMalformed);
    };
    let header_len = ip.header_len();
    if ip.version() != 4
        || header_len < Ipv4Header::LEN
        || payload.length < IcmpHeader::LEN + header_len + QUOTED
    {
        return Err(Reason::InnerMalformed);
    }
    if ip.protocol != protocol::TCP || ip.is_later_fragment() {
        return Ok(Ownership::Here(Reason::TakenIcmp));
    }
    let ports = payload.rest.rest(IcmpHeader::LEN + header_len).and_then(|rest| rest.read(0));
    reversed(host, ports, V4::new(ip.source), V4::new(ip.destination), vip)
}

/// The same as [`quoted_v4`] for IPv6.
#[inline(always)]
fn quoted_v6<R: Nested, H: Host>(
    host: &H,
    payload: &Payload<R>,
    vip: V6,
) -> Result<Ownership, Reason> {
    let Some(ip) = payload.rest.read::<Ipv6Header>(IcmpHeader::LEN) else {
        return Err(Reason::InnerMalformed);
    };
    if ip.version() != 6 || payload.length < IcmpHeader::LEN + Ipv6Header::LEN + QUOTED {
        return Err(Reason::InnerMalformed);
    }
    if ip.next_header != protocol::TCP {
        return Ok(Ownership::Here(Reason::TakenIcmp));
    }
    let ports = payload.rest.read(IcmpHeader::LEN + Ipv6Header::LEN);
    reversed(host, ports, V6::new(ip.source), V6::new(ip.destination), vip)
}

/// Number of bytes of the quoted packet's payload that every ICMP error carries.
const QUOTED: usize = 8;

#[inline(always)]
fn reversed<H: Host, A: Address>(
    host: &H,
    ports: Option<[u8; 4]>,
    quoted_source: A,
    quoted_destination: A,
    vip: A,
) -> Result<Ownership, Reason> {
    if quoted_source != vip {
        return Err(Reason::ForeignIcmpError);
    }
    let Some([a, b, c, d]) = ports else { return Err(Reason::InnerMalformed) };
    let flow = Flow {
        source: quoted_destination,
        destination: quoted_source,
        source_port: u16::from_be_bytes([c, d]),
        destination_port: u16::from_be_bytes([a, b]),
        protocol: protocol::TCP,
    };
    Ok(match host.find_socket(&flow, None) {
        SocketMatch::Socket | SocketMatch::SynCookie => Ownership::Here(Reason::TakenIcmpError),
        SocketMatch::NoSocket => Ownership::Elsewhere(Reason::ForwardedIcmpError),
    })
}
