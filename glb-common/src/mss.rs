//! MSS clamping: lowers the maximum segment size in a VIP's SYN-ACK, so that the client's segments fit the
//! data centre's MTU together with the tunnel headers.

use crate::{
    checksum,
    flow::{Address, V4, V6},
    packet_access::{FrameMut, Nested},
    wire::{
        ethernet::{self, EthernetHeader},
        ipv4::{self, Ipv4Header},
        ipv6::Ipv6Header,
        protocol,
        tcp::{self, TcpHeader},
    },
};

/// TCP option that ends the list.
const END: u8 = 0;
/// TCP option of one byte for padding.
const NO_OPERATION: u8 = 1;
/// Kind and length of the MSS option.
const MSS: [u8; 2] = [2, 4];

/// The largest MSS that a SYN-ACK may announce, without TCP options (RFC 6691). 0 leaves it unchanged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// For IPv4 connections.
    pub v4: u16,
    /// For IPv6 connections.
    pub v6: u16,
}

impl Limits {
    /// Computes the limits for an MTU and `overhead` bytes of tunnel headers. They are never below the
    /// minimum that every host must accept.
    #[must_use]
    pub const fn of(mtu: u32, overhead: u32) -> Self {
        let room = mtu.saturating_sub(overhead);
        Self { v4: largest(room, 20, 536), v6: largest(room, 40, 1220) }
    }
}

const fn largest(room: u32, ip: u32, least: u16) -> u16 {
    let most = room.saturating_sub(ip + TcpHeader::LEN as u32);
    if most < least as u32 {
        least
    } else if most > u16::MAX as u32 {
        u16::MAX
    } else {
        most as u16
    }
}

/// The edit that lowers the MSS of one SYN-ACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clamp {
    /// Offset of the MSS value in the frame.
    pub mss_offset: usize,
    /// Offset of the TCP checksum in the frame.
    pub checksum_offset: usize,
    /// The MSS before the edit.
    pub old: [u8; 2],
    /// The MSS after the edit.
    pub new: [u8; 2],
    /// True if the value starts at an odd offset, so that two checksum words share it.
    pub is_odd: bool,
}

impl Clamp {
    /// The old and new value as one checksum word each.
    #[inline(always)]
    #[must_use]
    pub const fn words(&self) -> ([u8; 2], [u8; 2]) {
        let ([a, b], [c, d]) = (self.old, self.new);
        if self.is_odd { ([b, a], [d, c]) } else { ([a, b], [c, d]) }
    }

    /// Applies the edit to a frame with a complete checksum; `false` if it lies outside the frame.
    #[must_use]
    pub fn write<F: FrameMut + ?Sized>(&self, frame: &mut F) -> bool {
        let Some(old) = frame.read::<[u8; 2]>(self.checksum_offset) else { return false };
        let (from, to) = self.words();
        let [from, to] = [from, to].map(|word| u32::from(u16::from_be_bytes(word)));
        let sum = checksum::replace(u16::from_be_bytes(old), from, to);
        frame.write(self.checksum_offset, sum.to_be_bytes())
            && frame.write(self.mss_offset, self.new)
    }
}

/// The set of VIPs.
pub trait Vips {
    /// True if an address is a VIP.
    fn is_vip<A: Address>(&self, address: &A) -> bool;
}

/// The edit for an outgoing frame: `Some` only for a VIP's SYN-ACK with an MSS above the limit.
#[inline(always)]
pub fn clamp<F: Nested, V: Vips>(frame: &F, limits: Limits, vips: &V) -> Option<Clamp> {
    const IP: usize = EthernetHeader::LEN;
    let ethernet = frame.read::<EthernetHeader>(0)?;
    match ethernet.ethertype {
        ethernet::IPV4 => {
            let ip = frame.read::<Ipv4Header>(IP)?;
            let fragment = u16::from_be_bytes(ip.flags_fragment) & (ipv4::MORE_FRAGMENTS | 0x1fff);
            if ip.protocol != protocol::TCP || ip.header_len() < Ipv4Header::LEN || fragment != 0 {
                return None;
            }
            let place = IP + ip.header_len();
            clamp_segment(&frame.rest(place)?, place, limits.v4, || {
                vips.is_vip(&V4::new(ip.source))
            })
        }
        ethernet::IPV6 => {
            let ip = frame.read::<Ipv6Header>(IP)?;
            if ip.next_header != protocol::TCP {
                return None;
            }
            let place = IP + Ipv6Header::LEN;
            clamp_segment(&frame.rest(place)?, place, limits.v6, || {
                vips.is_vip(&V6::new(ip.source))
            })
        }
        _ => None,
    }
}

#[inline(always)]
fn clamp_segment<F: Nested>(
    segment: &F,
    place: usize,
    limit: u16,
    from_vip: impl FnOnce() -> bool,
) -> Option<Clamp> {
    let header = segment.read::<TcpHeader>(0)?;
    let syn_ack = header.flags & (tcp::SYN | tcp::ACK | tcp::RST) == tcp::SYN | tcp::ACK;
    if limit == 0 || !syn_ack || !from_vip() {
        return None;
    }
    let (offset, old) = find(segment, (header.data_offset >> 4) as usize * 4)?;
    (u16::from_be_bytes(old) > limit).then(|| Clamp {
        mss_offset: place + offset,
        checksum_offset: place + core::mem::offset_of!(TcpHeader, checksum),
        old,
        new: limit.to_be_bytes(),
        is_odd: offset & 1 == 1,
    })
}

/// The offset and value of the MSS option in a segment.
#[inline(always)]
fn find<F: Nested>(segment: &F, header_len: usize) -> Option<(usize, [u8; 2])> {
    let mut at = TcpHeader::LEN;
    // Options take at most 40 bytes, and each is at least one.
    for _ in 0..40 {
        if at + 4 > header_len {
            return None;
        }
        let [kind, length] = segment.read::<[u8; 2]>(at)?;
        if [kind, length] == MSS {
            return Some((at + 2, segment.read(at + 2)?));
        }
        at += match kind {
            END => return None,
            NO_OPERATION => 1,
            _ if length < 2 => return None,
            _ => length as usize,
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_subtract_tunnel_ip_and_tcp_headers() {
        // Two hops, one of them listed, over IPv4: 40 bytes.
        assert_eq!(Limits::of(1500, 40), Limits { v4: 1420, v6: 1400 });
        assert_eq!(Limits::of(1540, 40), Limits { v4: 1460, v6: 1440 });
        assert_eq!(Limits::of(576, 200), Limits { v4: 536, v6: 1220 });
        assert_eq!(Limits::of(0, 40), Limits { v4: 536, v6: 1220 });
        assert_eq!(Limits::of(80_000, 40).v4, u16::MAX);
    }
}
