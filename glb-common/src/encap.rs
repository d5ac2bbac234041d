//! The outer headers: Ethernet, IPv4, UDP, GUE and the list of hops.

use crate::{
    checksum::{fold, sum_4},
    frame::{FrameMut, Wire},
    layout::Backend,
    steer::Send,
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

/// [`Backend::header_sum`] for these addresses.
#[must_use]
pub const fn header_sum(source: [u8; 4], destination: [u8; 4]) -> u32 {
    0x4500
        + ipv4::DONT_FRAGMENT as u32
        + ((TTL as u32) << 8 | protocol::UDP as u32)
        + sum_4(source)
        + sum_4(destination)
}

/// The outer headers for a packet of `inner_length` bytes and IP protocol `inner` (4 or 41);
/// nothing if the outer packet would be longer than IPv4 can say.
#[inline(always)]
#[must_use]
pub fn outer_headers(send: &Send, inner: u8, inner_length: u16) -> Option<OuterHeaders> {
    let Backend { next_hop_mac, own_mac, source, address, header_sum, .. } = send.backend;
    let total = inner_length as u32 + overhead(send.listed) as u32;
    if total > u16::MAX as u32 {
        return None;
    }
    let udp_length = total as u16 - Ipv4Header::LEN as u16;
    Some(OuterHeaders {
        ethernet: EthernetHeader {
            destination: next_hop_mac,
            source: own_mac,
            ethertype: ethernet::IPV4,
        },
        ip: Ipv4Header {
            version_ihl: 0x45,
            tos: 0,
            total_length: (total as u16).to_be_bytes(),
            identification: [0; 2],
            flags_fragment: ipv4::DONT_FRAGMENT.to_be_bytes(),
            ttl: TTL,
            protocol: protocol::UDP,
            checksum: (!fold(header_sum + total)).to_be_bytes(),
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
    })
}

/// Writes the headers and the listed hops to the start of a frame that has been given room.
#[inline(always)]
#[must_use]
pub fn write<F: FrameMut + ?Sized>(frame: &mut F, headers: OuterHeaders, send: &Send) -> bool {
    if !frame.write(0, headers) {
        return false;
    }
    for (index, hop) in send.hops.iter().enumerate() {
        if index >= usize::from(send.listed) {
            break;
        }
        if !frame.write(size_of::<OuterHeaders>() + 4 * index, *hop) {
            return false;
        }
    }
    true
}
