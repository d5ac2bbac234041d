//! What is changed in a frame that is taken or sent on.

use super::{
    Reason,
    layout::Peer,
    outer::{Outer as _, Tunnel},
};
use crate::{
    checksum::replace,
    frame::{Frame, FrameMut},
    hash::{Address as _, V4, V6},
    parse::IP_OFFSET,
    wire::{ethernet, ipv4::Ipv4Header, protocol},
};

/// How a packet is taken: [`Self::strip`] bytes are cut out behind the Ethernet header, whose
/// EtherType becomes [`Self::ethertype`], then [`Self::mark`].
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

/// New bytes for the inner header's ECN field (RFC 6040).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EcnMark {
    /// IPv4: the TOS byte and the header checksum.
    V4 {
        /// The whole byte.
        tos: u8,
        /// The checksum that goes with it.
        checksum: u16,
    },
    /// IPv6: the second byte, which holds the low half of the traffic class.
    V6 {
        /// The whole byte.
        class_flow: u8,
    },
}

impl Take {
    /// Writes the ECN mark, if there is one, into a frame whose tunnel has been cut out.
    #[inline(always)]
    #[must_use]
    pub fn mark<F: FrameMut + ?Sized>(&self, frame: &mut F) -> bool {
        match self.ecn {
            None => true,
            Some(EcnMark::V4 { tos, checksum }) => {
                frame.write(IP_OFFSET + 1, tos)
                    && frame.write(IP_OFFSET + 10, checksum.to_be_bytes())
            }
            Some(EcnMark::V6 { class_flow }) => frame.write(IP_OFFSET + 1, class_flow),
        }
    }
}

/// How a packet is taken that is to be.
#[inline(always)]
pub(super) fn take<R: Frame>(tunnel: &Tunnel<R>, reason: Reason) -> Result<Take, Reason> {
    let strip = tunnel.inner_offset - IP_OFFSET;
    let ethertype =
        if tunnel.inner_protocol == protocol::IPV4 { ethernet::IPV4 } else { ethernet::IPV6 };
    // Most tunnels' packets carry no mark at all: nothing of the inner header is read then.
    let ecn = if tunnel.ecn & 1 == 0 { None } else { ecn_mark(tunnel)? };
    Ok(Take { reason, strip, ethertype, ecn })
}

#[inline(always)]
fn ecn_mark<R: Frame>(tunnel: &Tunnel<R>) -> Result<Option<EcnMark>, Reason> {
    if tunnel.inner_protocol == protocol::IPV4 {
        let Some(ip) = tunnel.inner.read::<Ipv4Header>(0) else {
            return Err(Reason::InnerMalformed);
        };
        let Some(ecn) = merged(tunnel.ecn, ip.tos & 3)? else { return Ok(None) };
        let tos = ip.tos & !3 | ecn;
        let checksum = replace(u16::from_be_bytes(ip.checksum), ip.tos as u32, tos as u32);
        Ok(Some(EcnMark::V4 { tos, checksum }))
    } else {
        let Some(byte) = tunnel.inner.read::<u8>(1) else { return Err(Reason::InnerMalformed) };
        let Some(ecn) = merged(tunnel.ecn, byte >> 4 & 3)? else { return Ok(None) };
        Ok(Some(EcnMark::V6 { class_flow: byte & !0x30 | ecn << 4 }))
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
    /// The outer headers' new fields.
    pub outer: Readdressed,
}

/// The fields of the outer headers that change on the way to the next hop. Numbers, not bytes:
/// what the compiler cannot keep in registers must lie aligned on a BPF program's stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readdressed {
    /// Over IPv4.
    V4 {
        /// Header checksum.
        checksum: u16,
        /// The old destination.
        source: V4,
        /// The hop.
        destination: V4,
        /// UDP checksum.
        udp_checksum: u16,
        /// Index of the hop after this.
        next_hop: u8,
    },
    /// Over IPv6.
    V6 {
        /// The old destination.
        source: V6,
        /// The hop.
        destination: V6,
        /// UDP checksum.
        udp_checksum: u16,
        /// Index of the hop after this.
        next_hop: u8,
    },
}

impl Forward {
    /// Rewrites the frame; says whether everything lay inside.
    #[inline(always)]
    #[must_use]
    pub fn write<F: FrameMut + ?Sized>(&self, frame: &mut F) -> bool {
        /// Of the checksum, from the GUE header back.
        const UDP_CHECKSUM: usize = 2;
        /// Of the index in the GUE header.
        const NEXT_HOP: usize = 6;
        let addressed = match self.outer {
            Readdressed::V4 { checksum, source, destination, udp_checksum, next_hop } => {
                frame.write(IP_OFFSET + 10, checksum.to_be_bytes())
                    && frame.write(IP_OFFSET + 12, source.bytes())
                    && frame.write(IP_OFFSET + 16, destination.bytes())
                    && frame.write(V4::GUE_OFFSET - UDP_CHECKSUM, udp_checksum.to_be_bytes())
                    && frame.write(V4::GUE_OFFSET + NEXT_HOP, next_hop)
            }
            Readdressed::V6 { source, destination, udp_checksum, next_hop } => {
                let ([a, b], [c, d]) = (source.words(), destination.words());
                frame.write(IP_OFFSET + 8, a.to_le_bytes())
                    && frame.write(IP_OFFSET + 16, b.to_le_bytes())
                    && frame.write(IP_OFFSET + 24, c.to_le_bytes())
                    && frame.write(IP_OFFSET + 32, d.to_le_bytes())
                    && frame.write(V6::GUE_OFFSET - UDP_CHECKSUM, udp_checksum.to_be_bytes())
                    && frame.write(V6::GUE_OFFSET + NEXT_HOP, next_hop)
            }
        };
        let [a, b, c] = self.peer.macs;
        addressed
            && frame.write(0, a.to_ne_bytes())
            && frame.write(4, b.to_ne_bytes())
            && frame.write(8, c.to_ne_bytes())
    }
}
