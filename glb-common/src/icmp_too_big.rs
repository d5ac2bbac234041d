//! The reply to a packet that does not fit the tunnel: ICMP "fragmentation needed" (RFC 1191) or
//! ICMPv6 "packet too big" (RFC 4443) from the VIP to the client, with what would have fitted.

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

/// Bytes of the packet that an IPv4 reply quotes; 540 in all, below the 576 of RFC 1812.
pub const V4_QUOTE: usize = 512;
/// Bytes of the packet that an IPv6 reply quotes; 1,072 in all, below the 1,280 of RFC 4443.
pub const V6_QUOTE: usize = 1024;

/// The smallest MTU of IPv6: nobody may be asked for less.
const V6_MIN_MTU: u16 = 1280;

/// A frame of which a part can be summed up.
pub trait Summed: Frame {
    /// The sum of the 16-bit words of `N` bytes from `offset` on, folded; nothing if they do not lie
    /// wholly inside. `N` is a multiple of 4, at most 512.
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
    /// Back to where the packet came from.
    pub ethernet: EthernetHeader,
    /// From the VIP to the client.
    pub ip: I,
    /// What would have fitted.
    pub icmp: IcmpHeader,
}

/// Bytes by which the head of an IPv4 frame grows for its reply.
pub const V4_GROWTH: usize = Ipv4Header::LEN + IcmpHeader::LEN;
/// Bytes by which the head of an IPv6 frame grows for its reply.
pub const V6_GROWTH: usize = Ipv6Header::LEN + IcmpHeader::LEN;

const _: () = {
    assert!(size_of::<IcmpReply<Ipv4Header>>() == IP_OFFSET + V4_GROWTH);
    assert!(size_of::<IcmpReply<Ipv6Header>>() == IP_OFFSET + V6_GROWTH);
};

/// The reply to an IPv4 frame with these tags, which is to be cut to its first [`V4_QUOTE`] bytes
/// from the IP header on; nothing if it is shorter, or if nobody may be told (RFC 1122, 3.2.2).
#[inline(always)]
pub fn reply_v4<F: Summed + ?Sized>(
    frame: &F,
    tags: &Tags,
    mtu: u16,
) -> Option<IcmpReply<Ipv4Header>> {
    let ethernet = back(frame, ethernet::IPV4)?;
    let start = IP_OFFSET + tags.len();
    let received = frame.read::<Ipv4Header>(start)?;
    // This network, loopback, multicast, reserved, broadcast: no single machine.
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

/// As [`reply_v4`], for IPv6 and [`V6_QUOTE`].
#[inline(always)]
pub fn reply_v6<F: Summed + ?Sized>(
    frame: &F,
    tags: &Tags,
    mtu: u16,
) -> Option<IcmpReply<Ipv6Header>> {
    const HALF: usize = V6_QUOTE / 2;
    const LENGTH: u16 = (IcmpHeader::LEN + V6_QUOTE) as u16;
    let mtu = if mtu < V6_MIN_MTU { V6_MIN_MTU } else { mtu };
    let ethernet = back(frame, ethernet::IPV6)?;
    let start = IP_OFFSET + tags.len();
    let received = frame.read::<Ipv6Header>(start)?;
    // Multicast, unspecified, loopback: no single machine (RFC 4443, 2.4).
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
fn back<F: Frame + ?Sized>(frame: &F, ethertype: [u8; 2]) -> Option<EthernetHeader> {
    let EthernetHeader { destination, source, .. } = frame.read(0)?;
    // What was sent to a group is answered by nobody, and nothing is ever sent by one.
    if (destination[0] | source[0]) & 1 != 0 {
        return None;
    }
    Some(EthernetHeader { destination: source, source: destination, ethertype })
}

/// Puts an reply to the start of a frame that has been cut and given room, behind the tags that its
/// packet came with.
#[inline(always)]
#[must_use]
pub fn write<F: FrameMut + ?Sized, I: IpHeader>(
    frame: &mut F,
    tags: &Tags,
    reply: IcmpReply<I>,
) -> bool {
    let EthernetHeader { destination, source, .. } = reply.ethernet;
    // Asked for first: a check further on would tell the compiler, but not the verifier, that this
    // much is there.
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
    fn nobody_is_asked_for_less_than_ipv6_must_carry() {
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
