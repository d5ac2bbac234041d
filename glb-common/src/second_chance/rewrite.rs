//! The edits of a frame that is taken or sent on.

use super::{
    Reason,
    abi::PeerNextHop,
    tunnel::{OuterRewrite, TunnelPacket},
};
use crate::{
    checksum::replace,
    packet_access::{Frame, FrameMut, put_at},
    parse::IP_OFFSET,
    wire::{ethernet, ipv4::Ipv4Header, protocol},
};

/// The edit that decapsulates a packet: it cuts [`Self::strip`] bytes out after the Ethernet header, sets
/// the EtherType and applies [`Self::mark`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decap {
    /// Bytes from the Ethernet header to the inner packet.
    pub strip: usize,
    /// EtherType of the inner packet in network byte order, in the low half of the word.
    pub ethertype: u32,
    /// The change of the inner packet's ECN field.
    pub ecn: EcnMark,
}

/// New bytes for the inner header's ECN field (RFC 6040), packed into one number; 0 changes nothing. (The
/// compiler copies smaller fields on the stack by words that the verifier rejects as misaligned.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EcnMark(u32);

impl EcnMark {
    const NEW: u32 = 1 << 31;
    const V4: u32 = 1 << 30;

    /// A new TOS byte with its header checksum.
    #[inline(always)]
    const fn v4(tos: u8, checksum: u16) -> Self {
        Self(Self::NEW | Self::V4 | (tos as u32) << 16 | checksum as u32)
    }

    /// A new second byte, which holds the low half of the traffic class.
    #[inline(always)]
    const fn v6(class_flow: u8) -> Self {
        Self(Self::NEW | (class_flow as u32) << 16)
    }
}

impl Decap {
    /// Writes the ECN change, if any, to a frame whose tunnel has been cut out; `false` if it does not
    /// fit.
    #[inline(always)]
    #[must_use]
    pub fn mark<F: FrameMut + ?Sized>(&self, frame: &mut F) -> bool {
        let EcnMark(mark) = self.ecn;
        mark & EcnMark::NEW == 0
            || frame.write(IP_OFFSET + 1, (mark >> 16) as u8)
                && (mark & EcnMark::V4 == 0
                    || frame.write(IP_OFFSET + 10, (mark as u16).to_be_bytes()))
    }
}

/// Builds the edit that decapsulates a packet.
#[inline(always)]
pub(super) fn decap<R: Frame>(tunnel: &TunnelPacket<R>) -> Result<Decap, Reason> {
    let strip = tunnel.inner_offset - IP_OFFSET;
    let ethertype =
        if tunnel.inner_protocol == protocol::IPV4 { ethernet::IPV4 } else { ethernet::IPV6 };
    let ethertype = u16::from_le_bytes(ethertype).into();
    // Most outer packets carry no congestion mark. The inner header is not read then.
    let ecn = if tunnel.ecn & 1 == 0 { EcnMark::default() } else { ecn_mark(tunnel)? };
    Ok(Decap { strip, ethertype, ecn })
}

#[inline(always)]
fn ecn_mark<R: Frame>(tunnel: &TunnelPacket<R>) -> Result<EcnMark, Reason> {
    if tunnel.inner_protocol == protocol::IPV4 {
        let Some(ip) = tunnel.inner.read::<Ipv4Header>(0) else {
            return Err(Reason::InnerMalformed);
        };
        let Some(ecn) = merged(tunnel.ecn, ip.tos & 3)? else { return Ok(EcnMark::default()) };
        let byte = ip.tos & !3 | ecn;
        let checksum = replace(u16::from_be_bytes(ip.checksum), ip.tos as u32, byte as u32);
        Ok(EcnMark::v4(byte, checksum))
    } else {
        let Some(byte) = tunnel.inner.read::<u8>(1) else { return Err(Reason::InnerMalformed) };
        let Some(ecn) = merged(tunnel.ecn, byte >> 4 & 3)? else { return Ok(EcnMark::default()) };
        Ok(EcnMark::v6(byte & !0x30 | ecn << 4))
    }
}

/// Merges the ECN fields by RFC 6040, figure 4: the inner field's new value, or `None` if it stays.
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

/// The edit that sends a packet to the next hop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forward {
    /// The next hop's MAC addresses, interface and VLAN tag.
    pub peer: PeerNextHop,
    /// The new fields of the outer headers.
    pub outer: OuterRewrite,
}

impl Forward {
    /// Rewrites the outer IP, UDP and GUE headers; `false` if they do not lie inside the frame.
    #[inline(always)]
    #[must_use]
    pub fn write_outer<F: FrameMut + ?Sized>(&self, frame: &mut F) -> bool {
        self.outer.write(frame)
    }

    /// Writes the MAC addresses of the Ethernet header.
    #[inline(always)]
    #[must_use]
    pub fn write_macs<F: FrameMut + ?Sized>(&self, frame: &mut F) -> bool {
        let [a, b, c] = self.peer.macs;
        let Some(head) = frame.window_mut::<12>() else { return false };
        put_at(head, 0, a);
        put_at(head, 4, b);
        put_at(head, 8, c);
        true
    }

    /// Applies the edit to a frame without VLAN tags.
    #[inline(always)]
    #[must_use]
    pub fn write<F: FrameMut + ?Sized>(&self, frame: &mut F) -> bool {
        self.write_outer(frame) && self.write_macs(frame)
    }
}
