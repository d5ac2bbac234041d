//! The reply to a packet that does not fit the tunnel: ICMP "fragmentation needed" (RFC 1191) or ICMPv6
//! "packet too big" (RFC 4443), from the VIP to the client, with the MTU that fits.

use zerocopy::{FromBytes, Immutable, IntoBytes, Unaligned};

use crate::{
    checksum::{fold, sum_4, sum_16},
    packet_access::{Frame, FrameMut, Wire},
    parse::{IP_OFFSET, MAX_TAGGED, Tags},
    wire::{
        ethernet::{self, EthernetHeader},
        icmp::{self, IcmpHeader},
        ipv4::{self, Ipv4Header},
        ipv6::Ipv6Header,
        protocol,
    },
};

/// Quoted bytes of an IPv4 reply, which has 540 bytes: less than the 576 of RFC 1812.
pub const V4_QUOTE: usize = 512;
/// Quoted bytes of an IPv6 reply, which has 1,072 bytes: less than the 1,280 of RFC 4443.
pub const V6_QUOTE: usize = 1024;

/// The smallest MTU of IPv6. A reply never names less.
const V6_MIN_MTU: u16 = 1280;

/// A frame that can compute a checksum over a part of itself.
pub trait Summed: Frame {
    /// The folded sum of the 16-bit words of `N` bytes from `offset` on; `None` if they do not lie
    /// inside. `N` is a multiple of 4, at most 512.
    fn sum<const N: usize>(&self, offset: usize) -> Option<u16>;
}

impl Summed for [u8] {
    fn sum<const N: usize>(&self, offset: usize) -> Option<u16> {
        let words = self.get(offset..offset.checked_add(N)?)?.chunks_exact(2);
        Some(fold(words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum()))
    }
}

/// An IP header on the wire: [`Ipv4Header`] or [`Ipv6Header`].
pub trait IpHeader: Wire + Unaligned {}

impl IpHeader for Ipv4Header {}
impl IpHeader for Ipv6Header {}

/// The headers in front of the quoted packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, Unaligned)]
pub struct IcmpReply<I> {
    /// The received header with its addresses exchanged.
    pub ethernet: EthernetHeader,
    /// The IP header from the VIP to the client.
    pub ip: I,
    /// The ICMP header with the MTU that fits.
    pub icmp: IcmpHeader,
}

/// Bytes by which an IPv4 frame grows at its head for the reply.
pub const V4_GROWTH: usize = Ipv4Header::LEN + IcmpHeader::LEN;
/// Bytes by which an IPv6 frame grows at its head for the reply.
pub const V6_GROWTH: usize = Ipv6Header::LEN + IcmpHeader::LEN;

const _: () = {
    assert!(size_of::<IcmpReply<Ipv4Header>>() == IP_OFFSET + V4_GROWTH);
    assert!(size_of::<IcmpReply<Ipv6Header>>() == IP_OFFSET + V6_GROWTH);
};

/// Builds the reply's headers for an IPv4 frame, which is then cut to the first [`V4_QUOTE`] bytes from
/// the IP header on. `None` if the frame is shorter or must not be answered (RFC 1122, 3.2.2).
#[inline(always)]
pub fn reply_v4<F: Summed + ?Sized>(
    frame: &F,
    tags: &Tags,
    mtu: u16,
) -> Option<IcmpReply<Ipv4Header>> {
    let ethernet = ethernet_reply(frame, ethernet::IPV4)?;
    let start = IP_OFFSET + tags.len();
    let received = frame.read::<Ipv4Header>(start)?;
    // "This network", loopback, multicast, reserved and broadcast addresses are not a single host.
    if matches!(received.source[0], 0 | 127 | 224..) {
        return None;
    }
    let quoted = frame.sum::<V4_QUOTE>(start)? as u32;
    const TOTAL: u16 = (V4_GROWTH + V4_QUOTE) as u16;
    const TOS: u8 = 0xc0; // Internetwork control (RFC 1812, 4.3.2.5).
    let (source, destination) = (received.destination, received.source);
    let first_words = 0x4500 | TOS as u32;
    let rest = ipv4::DONT_FRAGMENT as u32 + (64 << 8 | protocol::ICMP as u32) + TOTAL as u32;
    let ip_sum = first_words + rest + sum_4(source) + sum_4(destination);
    let kind = (icmp::V4_UNREACHABLE as u32) << 8 | icmp::V4_FRAGMENTATION_NEEDED as u32;
    Some(IcmpReply {
        ethernet,
        ip: Ipv4Header {
            version_ihl: 0x45,
            tos: TOS,
            total_length: TOTAL.to_be_bytes(),
            identification: [0; 2],
            flags_fragment: ipv4::DONT_FRAGMENT.to_be_bytes(),
            ttl: 64,
            protocol: protocol::ICMP,
            checksum: (!fold(ip_sum)).to_be_bytes(),
            source,
            destination,
        },
        icmp: IcmpHeader {
            kind: icmp::V4_UNREACHABLE,
            code: icmp::V4_FRAGMENTATION_NEEDED,
            checksum: (!fold(kind + mtu as u32 + quoted)).to_be_bytes(),
            rest: (mtu as u32).to_be_bytes(),
        },
    })
}

/// The same as [`reply_v4`] for IPv6 and [`V6_QUOTE`].
#[inline(always)]
pub fn reply_v6<F: Summed + ?Sized>(
    frame: &F,
    tags: &Tags,
    mtu: u16,
) -> Option<IcmpReply<Ipv6Header>> {
    const HALF: usize = V6_QUOTE / 2;
    const LENGTH: u16 = (IcmpHeader::LEN + V6_QUOTE) as u16;
    let mtu = if mtu < V6_MIN_MTU { V6_MIN_MTU } else { mtu };
    let ethernet = ethernet_reply(frame, ethernet::IPV6)?;
    let start = IP_OFFSET + tags.len();
    let received = frame.read::<Ipv6Header>(start)?;
    // Multicast, unspecified and loopback addresses are not a single host (RFC 4443, 2.4).
    let [.., high, _] = frame.read::<[u64; 3]>(start)?;
    if received.source[0] == 0xff || high == 0 {
        return None;
    }
    let quoted = frame.sum::<HALF>(start)? as u32 + frame.sum::<HALF>(start + HALF)? as u32;
    let (source, destination) = (received.destination, received.source);
    let pseudo = sum_16(source) + sum_16(destination) + LENGTH as u32 + protocol::ICMPV6 as u32;
    let kind = (icmp::V6_PACKET_TOO_BIG as u32) << 8;
    Some(IcmpReply {
        ethernet,
        ip: Ipv6Header {
            version_class_flow: [0x60, 0, 0, 0],
            payload_length: LENGTH.to_be_bytes(),
            next_header: protocol::ICMPV6,
            hop_limit: 64,
            source,
            destination,
        },
        icmp: IcmpHeader {
            kind: icmp::V6_PACKET_TOO_BIG,
            code: 0,
            checksum: (!fold(pseudo + kind + mtu as u32 + quoted)).to_be_bytes(),
            rest: (mtu as u32).to_be_bytes(),
        },
    })
}

#[inline(always)]
fn ethernet_reply<F: Frame + ?Sized>(frame: &F, ethertype: [u8; 2]) -> Option<EthernetHeader> {
    let EthernetHeader { destination, source, .. } = frame.read(0)?;
    // A frame to or from a multicast MAC address is not answered.
    if (destination[0] | source[0]) & 1 != 0 {
        return None;
    }
    Some(EthernetHeader { destination: source, source: destination, ethertype })
}

/// Writes the reply's headers to the start of a frame that has been cut and has grown, behind the VLAN
/// tags of the received packet.
#[inline(always)]
#[must_use]
pub fn write<F: FrameMut + ?Sized, I: IpHeader>(
    frame: &mut F,
    tags: &Tags,
    reply: IcmpReply<I>,
) -> bool {
    let EthernetHeader { destination, source, .. } = reply.ethernet;
    // This check comes first because a later one would satisfy the compiler, but not the verifier.
    if frame.read::<[u8; MAX_TAGGED]>(0).is_none() {
        return false;
    }
    let mut written = frame.write(tags.len(), reply);
    if tags.count > 0 {
        written = written
            && frame.write(0, destination)
            && frame.write(6, source)
            && frame.write(12, tags.words[0]);
    }
    if tags.count > 1 {
        written = written && frame.write(16, tags.words[1]);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_never_name_less_than_the_minimum_ipv6_mtu() {
        let mut frame = [0; IP_OFFSET + V6_QUOTE];
        frame[IP_OFFSET + 8] = 0x20;
        let told = |mtu| {
            reply_v6(&frame[..], &Tags::default(), mtu).map(|a| u32::from_be_bytes(a.icmp.rest))
        };
        assert_eq!(
            [told(1_279), told(1_280), told(1_500)],
            [Some(1_280), Some(1_280), Some(1_500)]
        );
    }
}
