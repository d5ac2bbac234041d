//! From bytes to a flow: what a frame is about, or why it is not for us.
//!
//! A flow is oriented from the client to the VIP. For an ICMP error that is the quoted packet
//! reversed, because the quoted one was sent by a backend.

use crate::{
    flow::{FiveTuple, V4, V6},
    packet_access::Frame,
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

/// A packet that a bind may name: what the first half of the general program hands to the second.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// The flow it belongs to.
    pub flow: FiveTuple,
    /// The tags in front of the IP header, as they lie on the wire.
    pub tags: Tags,
    /// Length of the IP packet in bytes; the frame may be longer (padding), never shorter.
    pub ip_length: u16,
    /// What makes the outer UDP source port differ between flows of one client.
    pub flow_hint: u16,
    /// IPv4 identification; 0 for IPv6.
    pub identification: u16,
    /// TOS or traffic class.
    pub tos: u8,
    /// A fragment other than the first: it has no ports, and 0 stands for them.
    pub is_later_fragment: bool,
    /// Whether its sender must be told, may be told or must not be told that it is too big.
    pub oversize: Oversize,
    /// Zero.
    pub padding: [u8; 3],
}

/// What to do about a packet that is too big for the tunnel.
#[repr(u8)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Oversize {
    /// Tell its sender what fits.
    #[default]
    Tell,
    /// Its sender expects it to be fragmented (IPv4 without DF).
    Fragment,
    /// Tell nobody: an ICMP error or a later fragment (RFC 1122 and 4443).
    Silent,
}

impl Oversize {
    /// The same where nobody may be told.
    #[inline(always)]
    #[must_use]
    const fn silent(self) -> Self {
        match self {
            Self::Tell => Self::Silent,
            other => other,
        }
    }
}

/// 802.1Q tags between the MAC addresses and the EtherType.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tags {
    /// Tag protocol and control information of each, outermost first, as they lie on the wire.
    pub words: [u32; MAX_TAGS],
    /// How many there are.
    pub count: u32,
}

impl Tags {
    /// Bytes that they take.
    #[inline(always)]
    #[must_use]
    pub const fn len(&self) -> usize {
        // The mask tells the verifier what is known anyway.
        ((4 * self.count) & 12) as usize
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// At most this many tags are looked behind: 802.1Q, or 802.1ad (QinQ).
pub const MAX_TAGS: usize = 2;

/// Bytes of the longest Ethernet header without its EtherType.
pub const MAX_TAGGED: usize = IP_OFFSET - 2 + 4 * MAX_TAGS;

/// At most this many IPv6 extension headers are walked over.
pub const MAX_EXTENSIONS: usize = 6;

/// Where the IP header starts behind an untagged Ethernet header.
pub const IP_OFFSET: usize = EthernetHeader::LEN;

/// The whole frame, whatever it is.
///
/// # Errors
/// The reason why the frame is left to the kernel.
#[inline(always)]
pub fn parse<F: Frame + ?Sized>(frame: &F) -> Result<Packet, Reason> {
    let (tags, ethertype) = tags(frame)?;
    let start = IP_OFFSET + tags.len();
    let packet = match ethertype {
        ethernet::IPV4 => parse_v4(frame, start),
        ethernet::IPV6 => parse_v6(frame, start),
        _ => Err(Reason::NotIp),
    };
    packet.map(|packet| Packet { tags, ..packet })
}

/// The tags of a frame, and the EtherType behind them.
///
/// # Errors
/// When the frame ends before them.
#[inline(always)]
pub fn tags<F: Frame + ?Sized>(frame: &F) -> Result<(Tags, [u8; 2]), Reason> {
    let Some(header) = frame.read::<EthernetHeader>(0) else { return Err(Reason::Malformed) };
    let mut tags = Tags::default();
    let mut ethertype = header.ethertype;
    for index in 0..MAX_TAGS {
        if !matches!(ethertype, ethernet::VLAN | ethernet::SERVICE_VLAN) {
            break;
        }
        let offset = IP_OFFSET + 4 * index;
        let Some([a, b, c, d]) = frame.read::<[u8; 4]>(offset) else {
            return Err(Reason::Malformed);
        };
        tags.words[index] = u32::from_le_bytes([ethertype[0], ethertype[1], a, b]);
        tags.count += 1;
        ethertype = [c, d];
    }
    Ok((tags, ethertype))
}

/// An IPv4 packet that starts at `start`.
///
/// # Errors
/// The reason why the frame is left to the kernel.
#[inline(always)]
pub fn parse_v4<F: Frame + ?Sized>(frame: &F, start: usize) -> Result<Packet, Reason> {
    let Some(ip) = frame.read::<Ipv4Header>(start) else { return Err(Reason::Malformed) };
    let (header_len, total) = (ip.header_len(), ip.total_length());
    if ip.version() != 4 || header_len < Ipv4Header::LEN || !frame.holds(start + total) {
        return Err(Reason::Malformed);
    }
    let payload = Payload {
        offset: start + header_len,
        // A total length below the header's own is found by the subtraction.
        length: total.checked_sub(header_len).ok_or(Reason::Malformed)?,
    };
    let packet = Packet {
        flow: FiveTuple::new(V4::new(ip.source), V4::new(ip.destination), ip.protocol),
        ip_length: total as u16,
        identification: u16::from_be_bytes(ip.identification),
        tos: ip.tos,
        oversize: if ip.may_fragment() { Oversize::Fragment } else { Oversize::Tell },
        ..Packet::default()
    };
    if ip.is_later_fragment() {
        return fragment(packet);
    }
    match ip.protocol {
        protocol::TCP | protocol::UDP => transport(frame, payload, packet),
        protocol::ICMP => {
            let icmp = message(frame, payload)?;
            match icmp.kind {
                icmp::V4_ECHO_REQUEST if icmp.code == 0 => {
                    Ok(Packet { flow_hint: packet.identification, ..packet })
                }
                icmp::V4_UNREACHABLE | icmp::V4_TIME_EXCEEDED | icmp::V4_PARAMETER_PROBLEM => {
                    quoted_v4(frame, payload, packet)
                }
                _ => Err(Reason::OtherIcmp),
            }
        }
        _ => Err(Reason::OtherProtocol),
    }
}

/// An IPv6 packet that starts at `start`.
///
/// # Errors
/// The reason why the frame is left to the kernel.
#[inline(always)]
pub fn parse_v6<F: Frame + ?Sized>(frame: &F, start: usize) -> Result<Packet, Reason> {
    let Some(ip) = frame.read::<Ipv6Header>(start) else { return Err(Reason::Malformed) };
    let total = ip.total_length();
    if ip.version() != 6 || !frame.holds(start + total) {
        return Err(Reason::Malformed);
    }
    let payload = Payload { offset: start + Ipv6Header::LEN, length: total - Ipv6Header::LEN };
    let packet = Packet {
        flow: FiveTuple::new(V6::new(ip.source), V6::new(ip.destination), ip.next_header),
        // At most 65,575; what is beyond 65,535 is refused when it is encapsulated.
        ip_length: if total > u16::MAX as usize { u16::MAX } else { total as u16 },
        tos: ip.traffic_class(),
        ..Packet::default()
    };
    let of = |protocol| Packet { flow: FiveTuple { protocol, ..packet.flow }, ..packet };
    let AfterExtensions { next, payload, is_later_fragment } =
        behind(frame, ip.next_header, payload)?;
    if is_later_fragment {
        return fragment(of(next));
    }
    match next {
        protocol::TCP | protocol::UDP => transport(frame, payload, of(next)),
        protocol::ICMPV6 => {
            let icmp = message(frame, payload)?;
            match icmp.kind {
                icmp::V6_ECHO_REQUEST if icmp.code == 0 => {
                    Ok(Packet { flow_hint: ip.flow_label_low(), ..of(next) })
                }
                icmp::V6_UNREACHABLE
                | icmp::V6_PACKET_TOO_BIG
                | icmp::V6_TIME_EXCEEDED
                | icmp::V6_PARAMETER_PROBLEM => quoted_v6(frame, payload, packet),
                _ => Err(Reason::OtherIcmp),
            }
        }
        _ => Err(Reason::OtherProtocol),
    }
}

/// What follows IPv6's extension headers.
struct AfterExtensions {
    next: u8,
    payload: Payload,
    is_later_fragment: bool,
}

/// Walks over the extension headers that an IPv6 payload begins with.
#[inline(always)]
fn behind<F: Frame + ?Sized>(
    frame: &F,
    mut next: u8,
    mut payload: Payload,
) -> Result<AfterExtensions, Reason> {
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
        let is_later_fragment = next == ipv6::FRAGMENT && extension.is_later_fragment();
        next = extension.next_header;
        if is_later_fragment {
            return Ok(AfterExtensions { next, payload, is_later_fragment });
        }
    }
    Ok(AfterExtensions { next, payload, is_later_fragment: false })
}

/// What follows the IP header.
#[derive(Clone, Copy)]
struct Payload {
    offset: usize,
    length: usize,
}

/// A fragment other than the first: what it is about is told by its addresses alone. (Of ICMP, only
/// pings are ever so long, and their first fragment too goes by its addresses.)
#[inline(always)]
fn fragment(packet: Packet) -> Result<Packet, Reason> {
    Ok(Packet { is_later_fragment: true, oversize: packet.oversize.silent(), ..packet })
}

#[inline(always)]
fn transport<F: Frame + ?Sized>(
    frame: &F,
    payload: Payload,
    packet: Packet,
) -> Result<Packet, Reason> {
    let shortest =
        if packet.flow.protocol == protocol::TCP { TcpHeader::LEN } else { UdpHeader::LEN };
    if payload.length < shortest {
        return Err(Reason::Malformed);
    }
    let Some([source_port, destination_port]) = ports(frame, payload.offset) else {
        return Err(Reason::Malformed);
    };
    // Nobody can bind port 0, under which the binds keep what has no port.
    if destination_port == 0 {
        return Err(Reason::NoBind);
    }
    let flow = FiveTuple { source_port, destination_port, ..packet.flow };
    Ok(Packet { flow, flow_hint: source_port, ..packet })
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

/// The flow that an ICMP error `packet` to a VIP quotes. RFC 792 promises 8 bytes behind the quoted
/// IP header, which hold both ports.
#[inline(always)]
fn quoted_v4<F: Frame + ?Sized>(
    frame: &F,
    payload: Payload,
    packet: Packet,
) -> Result<Packet, Reason> {
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
    let quoted = FiveTuple::new(V4::new(ip.source), V4::new(ip.destination), ip.protocol);
    reversed(frame, start + header_len, quoted, packet)
}

/// As [`quoted_v4`], for IPv6.
#[inline(always)]
fn quoted_v6<F: Frame + ?Sized>(
    frame: &F,
    payload: Payload,
    packet: Packet,
) -> Result<Packet, Reason> {
    let start = payload.offset + IcmpHeader::LEN;
    let Some(ip) = frame.read::<Ipv6Header>(start) else { return Err(Reason::Malformed) };
    const HEADERS: usize = IcmpHeader::LEN + Ipv6Header::LEN;
    if ip.version() != 6 || payload.length < HEADERS + UdpHeader::LEN {
        return Err(Reason::Malformed);
    }
    let length = payload.length - HEADERS;
    let payload = Payload { offset: start + Ipv6Header::LEN, length };
    let AfterExtensions { next, payload, is_later_fragment } =
        behind(frame, ip.next_header, payload)?;
    if is_later_fragment {
        return Err(Reason::LaterFragment);
    }
    if payload.length < UdpHeader::LEN {
        return Err(Reason::Malformed);
    }
    let quoted = FiveTuple::new(V6::new(ip.source), V6::new(ip.destination), next);
    reversed(frame, payload.offset, quoted, packet)
}

#[inline(always)]
fn reversed<F: Frame + ?Sized>(
    frame: &F,
    ports_offset: usize,
    quoted: FiveTuple,
    packet: Packet,
) -> Result<Packet, Reason> {
    if quoted.protocol != protocol::TCP && quoted.protocol != protocol::UDP {
        return Err(Reason::OtherIcmp);
    }
    if quoted.source != packet.flow.destination {
        return Err(Reason::ForeignIcmpError);
    }
    let Some([quoted_source_port, quoted_destination_port]) = ports(frame, ports_offset) else {
        return Err(Reason::Malformed);
    };
    let flow = FiveTuple {
        source: quoted.destination,
        destination: quoted.source,
        source_port: quoted_destination_port,
        destination_port: quoted_source_port,
        ..quoted
    };
    if quoted_source_port == 0 {
        return Err(Reason::NoBind);
    }
    let flow_hint = quoted_destination_port;
    Ok(Packet { flow, flow_hint, oversize: packet.oversize.silent(), ..packet })
}

const _: () = assert!(size_of::<Packet>() == 64);
