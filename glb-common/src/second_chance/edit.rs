//! What is changed in a frame that is taken or sent on.

use super::{Reason, layout::Peer, outer::Tunnel};
use crate::{
    checksum::replace,
    frame::{Frame, FrameMut},
    parse::IP_OFFSET,
    wire::{ethernet, gue::GueHeader, ipv4::Ipv4Header, protocol, udp::UdpHeader},
};

/// How a packet is taken: [`Self::mark`], then [`Self::strip`] bytes are cut out behind the
/// Ethernet header, whose EtherType becomes [`Self::ethertype`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Take {
    /// Why.
    pub reason: Reason,
    /// Bytes from the Ethernet header to the inner packet.
    pub strip: usize,
    /// EtherType of the inner packet.
    pub ethertype: [u8; 2],
    /// What congestion in the tunnel means for the inner packet.
    pub ecn: Option<EcnMark>,
}

/// New bytes for the inner header's ECN field (RFC 6040), at offsets in the frame as received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EcnMark {
    /// IPv4: the TOS byte and the header checksum.
    V4 {
        /// Start of the inner header.
        offset: usize,
        /// The whole byte.
        tos: u8,
        /// The checksum that goes with it.
        checksum: [u8; 2],
    },
    /// IPv6: the second byte, which holds the low half of the traffic class.
    V6 {
        /// Start of the inner header.
        offset: usize,
        /// The whole byte.
        class_flow: u8,
    },
}

impl Take {
    /// Writes the ECN mark, if there is one.
    #[inline(always)]
    #[must_use]
    pub fn mark<F: FrameMut + ?Sized>(&self, frame: &mut F) -> bool {
        match self.ecn {
            None => true,
            Some(EcnMark::V4 { offset, tos, checksum }) => {
                frame.write(offset + 1, tos) && frame.write(offset + 10, checksum)
            }
            Some(EcnMark::V6 { offset, class_flow }) => frame.write(offset + 1, class_flow),
        }
    }
}

/// How a packet is taken that is to be.
#[inline(always)]
pub(super) fn take<F: Frame + ?Sized>(
    frame: &F,
    tunnel: &Tunnel,
    reason: Reason,
) -> Result<Take, Reason> {
    let offset = tunnel.inner_offset;
    let strip = offset - IP_OFFSET;
    let ethertype =
        if tunnel.inner_protocol == protocol::IPV4 { ethernet::IPV4 } else { ethernet::IPV6 };
    // Most tunnels' packets carry no mark at all: nothing of the inner header is read then.
    let ecn = if tunnel.ecn & 1 == 0 { None } else { ecn_mark(frame, tunnel)? };
    Ok(Take { reason, strip, ethertype, ecn })
}

#[inline(always)]
fn ecn_mark<F: Frame + ?Sized>(frame: &F, tunnel: &Tunnel) -> Result<Option<EcnMark>, Reason> {
    let offset = tunnel.inner_offset;
    if tunnel.inner_protocol == protocol::IPV4 {
        let Some(ip) = frame.read::<Ipv4Header>(offset) else { return Err(Reason::InnerMalformed) };
        let Some(ecn) = merged(tunnel.ecn, ip.tos & 3)? else { return Ok(None) };
        let tos = ip.tos & !3 | ecn;
        let checksum = replace(u16::from_be_bytes(ip.checksum), ip.tos as u32, tos as u32);
        Ok(Some(EcnMark::V4 { offset, tos, checksum: checksum.to_be_bytes() }))
    } else {
        let Some(byte) = frame.read::<u8>(offset + 1) else { return Err(Reason::InnerMalformed) };
        let Some(ecn) = merged(tunnel.ecn, byte >> 4 & 3)? else { return Ok(None) };
        Ok(Some(EcnMark::V6 { offset, class_flow: byte & !0x30 | ecn << 4 }))
    }
}

/// RFC 6040, figure 4: the inner field's new value; nothing if it stays.
#[inline(always)]
const fn merged(outer: u8, inner: u8) -> Result<Option<u8>, Reason> {
    const NOT_ECT: u8 = 0;
    const ECT_1: u8 = 1;
    const ECT_0: u8 = 2;
    const CE: u8 = 3;
    match (outer, inner) {
        (CE, NOT_ECT) => Err(Reason::CongestionDropped),
        (CE, ECT_0 | ECT_1) => Ok(Some(CE)),
        (ECT_1, ECT_0) => Ok(Some(ECT_1)),
        _ => Ok(None),
    }
}

/// How a packet is sent to the next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Why.
    pub reason: Reason,
    /// The way to the next hop.
    pub peer: Peer,
    /// Start of the GUE header.
    pub gue_offset: usize,
    /// The outer headers' new fields.
    pub outer: Readdressed,
}

/// The fields of the outer headers that change on the way to the next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readdressed {
    /// Over IPv4.
    V4 {
        /// Header checksum.
        checksum: [u8; 2],
        /// The old destination.
        source: [u8; 4],
        /// The hop.
        destination: [u8; 4],
        /// UDP checksum.
        udp_checksum: [u8; 2],
        /// Index of the hop after this.
        next_hop: u8,
    },
    /// Over IPv6.
    V6 {
        /// The old destination.
        source: [u8; 16],
        /// The hop.
        destination: [u8; 16],
        /// UDP checksum.
        udp_checksum: [u8; 2],
        /// Index of the hop after this.
        next_hop: u8,
    },
}

impl Forward {
    /// Rewrites the frame; says whether everything lay inside.
    #[inline(always)]
    #[must_use]
    pub fn write<F: FrameMut + ?Sized>(&self, frame: &mut F) -> bool {
        /// Of the checksum in the UDP header.
        const UDP_CHECKSUM: usize = 6;
        /// Of the index in the GUE header.
        const NEXT_HOP: usize = 6;
        let udp_offset = self.gue_offset - UdpHeader::LEN;
        let (addresses_written, udp_checksum, next_hop) = match self.outer {
            Readdressed::V4 { checksum, source, destination, udp_checksum, next_hop } => {
                let written = frame.write(IP_OFFSET + 10, checksum)
                    && frame.write(IP_OFFSET + 12, source)
                    && frame.write(IP_OFFSET + 16, destination);
                (written, udp_checksum, next_hop)
            }
            Readdressed::V6 { source, destination, udp_checksum, next_hop } => {
                let written =
                    frame.write(IP_OFFSET + 8, source) && frame.write(IP_OFFSET + 24, destination);
                (written, udp_checksum, next_hop)
            }
        };
        addresses_written
            && frame.write(0, self.peer.mac)
            && frame.write(6, self.peer.own_mac)
            && frame.write(udp_offset + UDP_CHECKSUM, udp_checksum)
            && frame.write(self.gue_offset + NEXT_HOP, next_hop)
    }
}

const _: () = assert!(GueHeader::LEN == 8 && UdpHeader::LEN == 8);
