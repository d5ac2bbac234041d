//! The maximum segment size that a VIP's SYN-ACK tells its client: what the client then sends must
//! fit, with the tunnel's headers around it, into the packets of the data centre.

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

/// End of the list of options.
const END: u8 = 0;
/// One byte of padding.
const NO_OPERATION: u8 = 1;
/// The kind and the length of the MSS option.
const MSS: [u8; 2] = [2, MSS_LEN as u8];
/// Bytes of an MSS option: kind, length and a value of two bytes.
const MSS_LEN: usize = 4;

/// The largest segment that a client may be told, without TCP's options as RFC 6691 wants it; 0
/// tells nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Of IPv4 connections.
    pub v4: u16,
    /// Of IPv6 connections.
    pub v6: u16,
}

impl Limits {
    /// For packets of at most `mtu` bytes in the data centre with `overhead` bytes of tunnel
    /// headers. The least that every host must take is never undercut.
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

/// A change of one SYN-ACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clamp {
    /// Where in the frame the value stands.
    pub mss_offset: usize,
    /// Where in the frame the TCP checksum stands.
    pub checksum_offset: usize,
    /// What the client would have been told.
    pub old: [u8; 2],
    /// What it is told.
    pub new: [u8; 2],
    /// Whether the value lies across two of the checksum's words.
    pub is_odd: bool,
}

impl Clamp {
    /// What leaves the checksum's sum and what enters it, as they would lie in one word.
    #[inline(always)]
    #[must_use]
    pub const fn words(&self) -> ([u8; 2], [u8; 2]) {
        let ([a, b], [c, d]) = (self.old, self.new);
        if self.is_odd { ([b, a], [d, c]) } else { ([a, b], [c, d]) }
    }

    /// Changes a frame whose checksum is whole; says whether it could.
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

/// Which addresses are VIPs.
pub trait Vips {
    /// Whether this one is.
    fn is_vip<A: Address>(&self, address: &A) -> bool;
}

/// The change that a frame on its way out needs: only a VIP's SYN-ACK that says more than the
/// limit needs any.
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

/// Finds the MSS option of a segment: the offset of its value, and the value.
///
/// The steps visit every offset and not only those where an option starts, and they are no loop.
/// So the verifier knows each offset as a constant and walks little: with an offset computed from
/// the options' lengths, Linux 6.12 refuses the program and others walk 300,000 instructions; Linux
/// 6.1 refuses the loop that the compiler makes of these steps.
#[expect(unused_assignments, reason = "no step follows the last one")]
#[inline(always)]
fn find<F: Nested>(segment: &F, header_len: usize) -> Option<(usize, [u8; 2])> {
    let mut next_option = TcpHeader::LEN;
    macro_rules! steps {
        ($($offset:literal)*) => {$(
            if $offset + MSS_LEN > header_len {
                return None;
            }
            if $offset == next_option {
                let [kind, length, high, low] = segment.read::<[u8; MSS_LEN]>($offset)?;
                if [kind, length] == MSS {
                    return Some(($offset + 2, [high, low]));
                }
                next_option += match kind {
                    END => return None,
                    NO_OPERATION => 1,
                    _ if length < 2 => return None,
                    _ => length as usize,
                };
            }
        )*};
    }
    // From the end of the fixed header to the last place for 4 bytes in the longest header of 60.
    steps!(20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38);
    steps!(39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56);
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_leave_room_for_the_tunnel() {
        // Two hops, one of them listed, over IPv4: 40 bytes.
        assert_eq!(Limits::of(1500, 40), Limits { v4: 1420, v6: 1400 });
        assert_eq!(Limits::of(1540, 40), Limits { v4: 1460, v6: 1440 });
        assert_eq!(Limits::of(576, 200), Limits { v4: 536, v6: 1220 });
        assert_eq!(Limits::of(0, 40), Limits { v4: 536, v6: 1220 });
        assert_eq!(Limits::of(80_000, 40).v4, u16::MAX);
    }
}
