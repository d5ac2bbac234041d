//! The outer headers: Ethernet, IPv4, UDP, GUE and the list of hops.

use crate::{
    checksum::{fold, sum_4},
    frame::{FrameMut, Wire},
    layout::Backend,
    steer::{NOBODY, Send},
    wire::{
        ethernet::{self, EthernetHeader},
        gue::{self, GueHeader},
        ipv4::{self, Ipv4Header},
        protocol,
        udp::UdpHeader,
    },
};

/// Bytes between the Ethernet header and the inner packet when no hop is listed.
pub const BASE_OVERHEAD: usize = Ipv4Header::LEN + UdpHeader::LEN + GueHeader::LEN;

/// Bytes that encapsulation adds in front of the inner packet for `listed` further hops.
#[inline(always)]
#[must_use]
pub const fn overhead(listed: u8) -> usize {
    BASE_OVERHEAD + 4 * listed as usize
}

/// TTL of the outer header.
const TTL: u8 = 64;

/// The outer headers up to the list of hops, as one piece to store.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OuterHeaders {
    /// Ethernet.
    pub ethernet: EthernetHeader,
    /// Outer IPv4.
    pub ip: Ipv4Header,
    /// UDP.
    pub udp: UdpHeader,
    /// GUE, without the hops.
    pub gue: GueHeader,
}

// SAFETY: made of headers that are plain bytes, all of alignment 1.
unsafe impl Wire for OuterHeaders {}
const _: () = assert!(size_of::<OuterHeaders>() == EthernetHeader::LEN + BASE_OVERHEAD);

/// [`Backend::header_sum`] for these addresses, TOS and total length still 0.
#[must_use]
pub const fn header_sum(source: [u8; 4], destination: [u8; 4]) -> u32 {
    0x4500
        + ipv4::DONT_FRAGMENT as u32
        + ((TTL as u32) << 8 | protocol::UDP as u32)
        + sum_4(source)
        + sum_4(destination)
}

/// Length of the outer IP packet around one of `inner_length` bytes; nothing if IPv4 cannot say it.
#[inline(always)]
#[must_use]
pub const fn outer_length(inner_length: u16, listed: u8) -> Option<u16> {
    let total = inner_length as u32 + overhead(listed) as u32;
    if total > u16::MAX as u32 { None } else { Some(total as u16) }
}

/// The outer headers for an outer packet of `total` bytes around one of IP protocol `inner` (4 or
/// 41).
#[inline(always)]
#[must_use]
pub fn outer_headers(send: &Send<'_>, inner: u8, total: u16) -> OuterHeaders {
    let Backend { next_hop_mac, own_mac, source, address, header_sum, .. } = *send.backend;
    let udp_length = total.wrapping_sub(Ipv4Header::LEN as u16);
    OuterHeaders {
        ethernet: EthernetHeader {
            destination: next_hop_mac,
            source: own_mac,
            ethertype: ethernet::IPV4,
        },
        ip: Ipv4Header {
            version_ihl: 0x45,
            tos: send.tos,
            total_length: total.to_be_bytes(),
            identification: [0; 2],
            flags_fragment: ipv4::DONT_FRAGMENT.to_be_bytes(),
            ttl: TTL,
            protocol: protocol::UDP,
            checksum: (!fold(header_sum.wrapping_add(total as u32 + send.tos as u32)))
                .to_be_bytes(),
            source,
            destination: address,
        },
        udp: UdpHeader {
            source_port: send.source_port.to_be_bytes(),
            destination_port: gue::PORT.to_be_bytes(),
            length: udp_length.to_be_bytes(),
            checksum: [0; 2],
        },
        gue: GueHeader::new_v4(inner, send.listed),
    }
}

/// Writes the headers ([`outer_headers`]) and the listed hops to the start of a frame that has been
/// given room.
#[inline(always)]
#[must_use]
pub fn write<F: FrameMut + ?Sized>(frame: &mut F, send: &Send<'_>, inner: u8, total: u16) -> bool {
    if !frame.write(0, outer_headers(send, inner, total)) {
        return false;
    }
    let mut offset = size_of::<OuterHeaders>();
    if send.listed == 1 && send.hops[0] != NOBODY {
        return frame.write(offset, send.hops[0]);
    }
    for hop in send.hops {
        if hop != NOBODY {
            if !frame.write(offset, hop) {
                return false;
            }
            offset += 4;
        }
    }
    true
}
