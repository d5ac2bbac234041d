//! What is changed in a frame that is taken or sent on.

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

/// How a packet is taken: [`Self::strip`] bytes are cut out behind the Ethernet header, whose
/// EtherType becomes [`Self::ethertype`], then [`Self::mark`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decap {
    /// Bytes from the Ethernet header to the inner packet.
    pub strip: usize,
    /// EtherType of the inner packet, as it lies on the wire, in a little-endian word.
    pub ethertype: u32,
    /// What congestion in the tunnel means for the inner packet.
    pub ecn: EcnMark,
}

/// New bytes for the inner header's ECN field (RFC 6040), in one number: smaller fields are copied on
/// a BPF program's stack by words that the verifier finds misaligned. 0 for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EcnMark(u32);

impl EcnMark {
    const NEW: u32 = 1 << 31;
    const V4: u32 = 1 << 30;

    /// The TOS byte and the header checksum that goes with it.
    #[inline(always)]
    const fn v4(tos: u8, checksum: u16) -> Self {
        Self(Self::NEW | Self::V4 | (tos as u32) << 16 | checksum as u32)
    }

    /// The second byte, which holds the low half of the traffic class.
    #[inline(always)]
    const fn v6(class_flow: u8) -> Self {
        Self(Self::NEW | (class_flow as u32) << 16)
    }
}

impl Decap {
    /// Writes the ECN mark, if there is one, into a frame whose tunnel has been cut out.
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

/// How a packet is taken that is to be.
#[inline(always)]
pub(super) fn decap<R: Frame>(tunnel: &TunnelPacket<R>) -> Result<Decap, Reason> {
    let strip = tunnel.inner_offset - IP_OFFSET;
    let ethertype =
        if tunnel.inner_protocol == protocol::IPV4 { ethernet::IPV4 } else { ethernet::IPV6 };
    let ethertype = u16::from_le_bytes(ethertype).into();
    // Most tunnels' packets carry no mark at all: nothing of the inner header is read then.
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forward {
    /// The way to the next hop.
    pub peer: PeerNextHop,
    /// The outer headers' new fields.
    pub outer: OuterRewrite,
}

impl Forward {
    /// Rewrites the outer IP, UDP and GUE headers; `false` if they do not lie inside the frame.
    #[inline(always)]
    #[must_use]
    pub fn write_outer<F: FrameMut + ?Sized>(&self, frame: &mut F) -> bool {
        self.outer.write(frame)
    }

    /// Writes the Ethernet header's two addresses.
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

    /// Both, for a frame without tags.
    #[inline(always)]
    #[must_use]
    pub fn write<F: FrameMut + ?Sized>(&self, frame: &mut F) -> bool {
        self.write_outer(frame) && self.write_macs(frame)
    }
}
