//! Parses a received frame into the [`Packet`] that the director decides about, or gives the reason why
//! the kernel gets the frame.
//!
//! A flow runs from the client to the VIP. An ICMP error quotes a packet that a backend sent, so its flow
//! is the quoted one reversed.

use crate::{
    flow::{FiveTuple, V4, V6},
    packet_access::Frame,
    reason::DirectorReason as Reason,
    wire::{
        ethernet::{self, EthernetHeader},
        icmp::{self, IcmpHeader},
        ipv4::Ipv4Header,
        ipv6::{self, ExtensionHeader, Ipv6Header, MAX_EXTENSION_HEADERS},
        protocol,
        tcp::TcpHeader,
        udp::UdpHeader,
    },
};

/// A parsed packet. The first part of the general program passes it to the second.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// The flow that the packet belongs to.
    pub flow: FiveTuple,
    /// The VLAN tags in front of the IP header.
    pub tags: Tags,
    /// Length of the IP packet in bytes. The frame may be longer (padding), but not shorter.
    pub ip_length: u16,
    /// A value by which the outer UDP source ports of one client's flows differ.
    pub flow_hint: u16,
    /// IPv4 identification; 0 for IPv6.
    pub identification: u16,
    /// TOS or traffic class.
    pub tos: u8,
    /// True if the packet is a fragment other than the first. Its ports are 0.
    pub is_later_fragment: bool,
    /// What happens if the packet is too big for the tunnel.
    pub oversize: Oversize,
    /// Zero.
    pub padding: [u8; 3],
}

/// What happens to a packet that is too big for the tunnel.
#[repr(u8)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Oversize {
    /// The sender gets an ICMP "packet too big".
    #[default]
    Tell,
    /// The sender allows fragmentation (IPv4 without DF).
    Fragment,
    /// The sender gets no ICMP error, because the packet is an ICMP error or a later fragment (RFC 1122
    /// and 4443).
    Silent,
}

impl Oversize {
    /// The same for a packet that must not be answered with an ICMP error.
    #[inline(always)]
    #[must_use]
    const fn silent(self) -> Self {
        match self {
            Self::Tell => Self::Silent,
            other => other,
        }
    }
}

/// VLAN tags between the MAC addresses and the EtherType.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tags {
    /// Tag protocol and control information of each tag as they lie on the wire, outermost first.
    pub words: [u32; MAX_TAGS],
    /// Number of tags.
    pub count: u32,
}

impl Tags {
    /// Length of all tags in bytes.
    #[inline(always)]
    #[must_use]
    pub const fn len(&self) -> usize {
        // The mask bounds the value for the verifier.
        ((4 * self.count) & 12) as usize
    }

    /// True if the frame has no tag.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// Limit of VLAN tags in front of the IP header: 802.1Q, or 802.1ad (QinQ).
pub const MAX_TAGS: usize = 2;

/// Length of the longest Ethernet header without its EtherType.
pub const MAX_TAGGED: usize = IP_OFFSET - 2 + 4 * MAX_TAGS;

/// Offset of the IP header behind an Ethernet header without tags.
pub const IP_OFFSET: usize = EthernetHeader::LEN;

/// Parses a frame.
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

/// Reads the VLAN tags of a frame and the EtherType behind them.
///
/// # Errors
/// [`Reason::Malformed`] if the frame ends before the EtherType.
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

/// Parses an IPv4 packet at offset `start`.
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
        // The subtraction fails if the total length is below the header's.
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

/// Parses an IPv6 packet at offset `start`.
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
        // At most 65,575. Encapsulation rejects a packet of more than 65,535 bytes.
        ip_length: if total > u16::MAX as usize { u16::MAX } else { total as u16 },
        tos: ip.traffic_class(),
        ..Packet::default()
    };
    let of = |protocol| Packet { flow: FiveTuple { protocol, ..packet.flow }, ..packet };
    let AfterExtensions { next, payload, is_later_fragment } =
        skip_extensions(frame, ip.next_header, payload)?;
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

/// The header that follows an IPv6 packet's extension headers.
struct AfterExtensions {
    next: u8,
    payload: Payload,
    is_later_fragment: bool,
}

/// Skips up to [`MAX_EXTENSION_HEADERS`] extension headers of an IPv6 packet.
#[inline(always)]
fn skip_extensions<F: Frame + ?Sized>(
    frame: &F,
    mut next: u8,
    mut payload: Payload,
) -> Result<AfterExtensions, Reason> {
    for _ in 0..MAX_EXTENSION_HEADERS {
        if !ipv6::is_extension(next) {
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

/// The data after the IP header.
#[derive(Clone, Copy)]
struct Payload {
    offset: usize,
    length: usize,
}

/// The parsed form of a fragment other than the first: it has addresses, but no ports. (Of ICMP only
/// echo requests are long enough to be fragmented, and those match by address anyway.)
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
    // A bind cannot name port 0, which stands for packets without ports.
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

/// Replaces the flow of an ICMP error by the flow that it quotes. RFC 792 guarantees 8 bytes after the
/// quoted IP header, which hold both ports.
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

/// The same as [`quoted_v4`] for IPv6.
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
        skip_extensions(frame, ip.next_header, payload)?;
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
