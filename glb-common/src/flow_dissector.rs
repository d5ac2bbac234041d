//! Reads the flow keys of all packets in a frame: the frame's own packet, the packet in its tunnel, and
//! the packet that an ICMP error quotes.
//!
//! Filters, traces and replays use it to show traffic. It decides nothing and does not validate: wrong
//! headers are shown as they are.

use crate::{
    flow::{Address as _, V4, V6},
    packet_access::Frame,
    parse::MAX_TAGS,
    wire::{
        ethernet::{self, EthernetHeader},
        gue::{self, GueHeader},
        icmp::{self, IcmpHeader},
        ipv4::Ipv4Header,
        ipv6::{self, ExtensionHeader, Ipv6Header},
        protocol,
        udp::UdpHeader,
    },
};

/// Limit of nested packets: a tunnel packet, an ICMP error in it, and the packet that the error quotes.
pub const MAX_LAYERS: usize = 3;
/// Length of a VLAN tag in bytes.
const TAG_LEN: usize = 4;

/// The addresses, ports and protocol of one packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowKeys {
    /// 4 or 6.
    pub family: u8,
    /// IP protocol after any extension headers.
    pub protocol: u8,
    /// True if the frame holds the ports.
    pub has_ports: bool,
    /// Source address, as [`crate::flow::Address::words`].
    pub source: [u64; 2],
    /// Destination address.
    pub destination: [u64; 2],
    /// Source port, host order.
    pub source_port: u16,
    /// Destination port, host order.
    pub destination_port: u16,
}

/// The offset and version of an IP header.
#[derive(Clone, Copy)]
struct HeaderOffset {
    offset: usize,
    is_v4: bool,
}

/// Calls `see` for each packet of the frame, from the outermost inwards, until it returns `true`.
/// Returns whether it did.
#[inline(always)]
pub fn visit<F: Frame + ?Sized>(frame: &F, mut see: impl FnMut(&FlowKeys) -> bool) -> bool {
    let Some(mut place) = ip_header(frame) else { return false };
    for _ in 0..MAX_LAYERS {
        let Some((ends, next)) = read_layer(frame, place) else { return false };
        if see(&ends) {
            return true;
        }
        match next {
            Some(next) => place = next,
            None => return false,
        }
    }
    false
}

/// The keys and GUE header of a tunnel packet, with the offset of its hop list; `None` if the frame's
/// outermost packet is not a tunnel packet.
#[must_use]
pub fn tunnel<F: Frame + ?Sized>(frame: &F) -> Option<(FlowKeys, GueHeader, usize)> {
    let place = ip_header(frame)?;
    let (ends, next) = read_layer(frame, place)?;
    let header = if place.is_v4 {
        frame.read::<Ipv4Header>(place.offset)?.header_len()
    } else {
        Ipv6Header::LEN
    };
    let gue = place.offset + header + UdpHeader::LEN;
    (ends.has_ports && next.is_some() && ends.protocol == protocol::UDP)
        .then(|| Some((ends, frame.read(gue)?, gue + GueHeader::LEN)))?
}

#[inline(always)]
fn ip_header<F: Frame + ?Sized>(frame: &F) -> Option<HeaderOffset> {
    let mut ethertype = frame.read::<EthernetHeader>(0)?.ethertype;
    let mut offset = EthernetHeader::LEN;
    for _ in 0..MAX_TAGS {
        if !ethernet::is_tag(ethertype) {
            break;
        }
        ethertype = frame.read(offset + 2)?;
        offset += TAG_LEN;
    }
    match ethertype {
        ethernet::IPV4 => Some(HeaderOffset { offset, is_v4: true }),
        ethernet::IPV6 => Some(HeaderOffset { offset, is_v4: false }),
        _ => None,
    }
}

/// Reads the packet at `place` and finds the packet inside it.
#[inline(always)]
fn read_layer<F: Frame + ?Sized>(
    frame: &F,
    place: HeaderOffset,
) -> Option<(FlowKeys, Option<HeaderOffset>)> {
    let mut ends = FlowKeys::default();
    let (payload, is_later_fragment) =
        if place.is_v4 { v4(frame, place, &mut ends)? } else { v6(frame, place, &mut ends)? };
    if is_later_fragment {
        return Some((ends, None));
    }
    let inside = match ends.protocol {
        protocol::TCP | protocol::UDP => {
            if let Some([a, b, c, d]) = frame.read::<[u8; 4]>(payload) {
                ends.has_ports = true;
                ends.source_port = u16::from_be_bytes([a, b]);
                ends.destination_port = u16::from_be_bytes([c, d]);
            }
            if ends.protocol == protocol::UDP && ends.destination_port == gue::PORT {
                in_tunnel(frame, payload + UdpHeader::LEN)
            } else {
                None
            }
        }
        protocol::ICMP | protocol::ICMPV6 => quoted(frame, payload, place.is_v4),
        _ => None,
    };
    Some((ends, inside))
}

#[inline(always)]
fn v4<F: Frame + ?Sized>(
    frame: &F,
    place: HeaderOffset,
    ends: &mut FlowKeys,
) -> Option<(usize, bool)> {
    let ip = frame.read::<Ipv4Header>(place.offset)?;
    ends.family = 4;
    ends.protocol = ip.protocol;
    ends.source = V4::new(ip.source).words();
    ends.destination = V4::new(ip.destination).words();
    Some((place.offset + ip.header_len(), ip.is_later_fragment()))
}

#[inline(always)]
fn v6<F: Frame + ?Sized>(
    frame: &F,
    place: HeaderOffset,
    ends: &mut FlowKeys,
) -> Option<(usize, bool)> {
    let ip = frame.read::<Ipv6Header>(place.offset)?;
    ends.family = 6;
    ends.protocol = ip.next_header;
    ends.source = V6::new(ip.source).words();
    ends.destination = V6::new(ip.destination).words();
    let mut payload = place.offset + Ipv6Header::LEN;
    for _ in 0..ipv6::MAX_EXTENSION_HEADERS {
        let kind = ends.protocol;
        if !ipv6::is_extension(kind) {
            break;
        }
        let Some(extension) = frame.read::<ExtensionHeader>(payload) else { break };
        ends.protocol = extension.next_header;
        payload += extension.len(kind);
        if kind == ipv6::FRAGMENT && extension.is_later_fragment() {
            return Some((payload, true));
        }
    }
    Some((payload, false))
}

#[inline(always)]
fn in_tunnel<F: Frame + ?Sized>(frame: &F, offset: usize) -> Option<HeaderOffset> {
    let gue = frame.read::<GueHeader>(offset)?;
    // The header length does not count GUE's first four bytes.
    let offset = offset + 4 + 4 * gue.hlen() as usize;
    match gue.protocol {
        protocol::IPV4 => Some(HeaderOffset { offset, is_v4: true }),
        protocol::IPV6 => Some(HeaderOffset { offset, is_v4: false }),
        _ => None,
    }
}

#[inline(always)]
fn quoted<F: Frame + ?Sized>(frame: &F, offset: usize, is_v4: bool) -> Option<HeaderOffset> {
    let kind = frame.read::<IcmpHeader>(offset)?.kind;
    let is_error = if is_v4 {
        matches!(kind, icmp::V4_UNREACHABLE | icmp::V4_TIME_EXCEEDED | icmp::V4_PARAMETER_PROBLEM)
    } else {
        matches!(kind, icmp::V6_UNREACHABLE..=icmp::V6_PARAMETER_PROBLEM)
    };
    is_error.then_some(HeaderOffset { offset: offset + IcmpHeader::LEN, is_v4 })
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use etherparse::PacketBuilder;

    use super::*;

    fn all(frame: &[u8]) -> Vec<FlowKeys> {
        let mut seen = Vec::new();
        visit(frame, |ends| {
            seen.push(*ends);
            false
        });
        seen
    }

    fn v4_udp(source: [u8; 4], destination: [u8; 4], ports: [u16; 2], payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([1; 6], [2; 6])
            .ipv4(source, destination, 64)
            .udp(ports[0], ports[1])
            .write(&mut frame, payload)
            .unwrap();
        frame
    }

    fn ends_v4(source: [u8; 4], destination: [u8; 4], protocol: u8, ports: [u16; 2]) -> FlowKeys {
        FlowKeys {
            family: 4,
            protocol,
            has_ports: true,
            source: V4::new(source).words(),
            destination: V4::new(destination).words(),
            source_port: ports[0],
            destination_port: ports[1],
        }
    }

    #[test]
    fn visit_shows_the_tunnel_the_inner_packet_and_the_quoted_one() {
        let (client, vip) = ([198, 51, 100, 7], [203, 0, 113, 1]);
        let (director, backend) = ([10, 0, 0, 1], [10, 0, 0, 2]);
        // An ICMP error from a router about a segment from the VIP.
        let quoted = &v4_udp(vip, client, [443, 5000], b"x")[14..];
        let mut icmp = Vec::new();
        PacketBuilder::ethernet2([1; 6], [2; 6])
            .ipv4([192, 0, 2, 9], vip, 60)
            .icmpv4_raw(3, 4, [0, 0, 5, 0])
            .write(&mut icmp, quoted)
            .unwrap();
        let mut gue = Vec::from([2u8, 4, 0, 0, 0, 0, 0, 1, 10, 0, 0, 3]);
        gue.extend(&icmp[14..]);
        let frame = v4_udp(director, backend, [0x8001, gue::PORT], &gue);
        let outer = ends_v4(director, backend, 17, [0x8001, gue::PORT]);
        let mut error = ends_v4([192, 0, 2, 9], vip, 1, [0, 0]);
        error.has_ports = false;
        let about = ends_v4(vip, client, 17, [443, 5000]);
        assert_eq!(all(&frame), [outer, error, about]);
        let (ends, header, hops) = tunnel(&frame[..]).unwrap();
        assert_eq!((ends, header.hop_count, hops), (outer, 1, 50));
        assert_eq!(&frame[hops..hops + 4], [10, 0, 0, 3]);
        assert!(tunnel(&icmp[..]).is_none());
        // With two VLAN tags.
        let mut tagged = frame[..12].to_vec();
        tagged.extend([0x88, 0xa8, 0, 5, 0x81, 0, 0, 6]);
        tagged.extend(&frame[12..]);
        assert_eq!(all(&tagged), [outer, error, about]);
        assert!(visit(&frame[..], |ends| ends.protocol == 1));
    }

    #[test]
    fn ipv6_extension_headers_are_skipped_and_later_fragments_have_no_ports() {
        let (a, b) = ([0x20; 16], [0x30; 16]);
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([1; 6], [2; 6])
            .ipv6(a, b, 64)
            .tcp(1000, 443, 1, 1)
            .write(&mut frame, &[])
            .unwrap();
        let plain = all(&frame);
        assert_eq!(plain[0].source_port, 1000);
        // A hop-by-hop header, then a fragment header: ports in the first fragment only.
        let mut long = frame[..54].to_vec();
        long[20] = 0;
        long.extend([44, 0, 1, 4, 0, 0, 0, 0]);
        let at = long.len();
        long.extend([6, 0, 0, 1, 0, 0, 0, 9]);
        long.extend(&frame[54..]);
        assert_eq!(all(&long), plain);
        long[at + 3] = 8;
        let later = FlowKeys { has_ports: false, source_port: 0, destination_port: 0, ..plain[0] };
        assert_eq!(all(&long), [later]);
    }

    #[test]
    fn truncated_frames_are_read_up_to_their_end() {
        let frame = v4_udp([1; 4], [2; 4], [1, gue::PORT], &[0x1f, 4, 0, 0, 0, 0, 0, 9]);
        for length in 0..frame.len() {
            all(&frame[..length]);
            assert!(tunnel(&frame[..length]).is_none() || length >= 50);
        }
        assert_eq!(all(&frame).len(), 1);
    }
}
