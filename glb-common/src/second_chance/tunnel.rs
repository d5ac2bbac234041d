//! The outer headers of tunnel packets, as the backend reads and readdresses them.
//!
//! This is the only module of the backend's side that knows the outer format (IP, UDP, GUE, hop list).
//! Another format needs its own `open` function and [`OuterFamily`] here, and its counterpart in
//! [`crate::encap`], where the director writes it. The fast path handles GUE only and leaves other formats
//! to the general program.

use super::{Host, Reason};
use crate::{
    checksum::fold_wide,
    flow::{Address, V4, V6},
    packet_access::{Frame, FrameMut, Nested, put_at, u16_at, u32_at, u64_at},
    parse::IP_OFFSET,
    wire::{
        gue::{self, GueHeader},
        ipv4::{self, Ipv4Header},
        ipv6::Ipv6Header,
        protocol,
        udp::UdpHeader,
    },
};

/// A tunnel packet whose outer headers have been checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct TunnelPacket<R> {
    /// The frame from the inner packet on.
    pub(super) inner: R,
    /// Offset of the inner packet in the frame.
    pub(super) inner_offset: usize,
    /// Bytes of the outer packet from the inner packet on. The frame may hold more (padding), but not
    /// fewer.
    pub(super) room: usize,
    /// ECN field of the outer header.
    pub(super) ecn: u8,
    /// IP protocol of the inner packet.
    pub(super) inner_protocol: u8,
    /// Index of the hop to try next.
    pub(super) next_hop: u8,
    /// Number of hops in the list.
    pub(super) hop_count: u8,
}

/// An address family of the outer headers.
pub(super) trait OuterFamily: Address {
    /// GUE private type of a hop list of this family.
    const PRIVATE_TYPE: u16;
    /// Length of the outer IP header.
    const HEADER_LEN: usize;
    /// Offset of the GUE header in the frame.
    const GUE_OFFSET: usize = IP_OFFSET + Self::HEADER_LEN + UdpHeader::LEN;
    /// Offset of the hop list in the frame.
    const HOPS_OFFSET: usize = Self::GUE_OFFSET + GueHeader::LEN;
    /// Length of an address in the hop list.
    const HOP_LEN: usize;

    /// Reads the address at the start of a frame.
    fn read<F: Frame>(frame: &F) -> Option<Self>;

    /// Computes the outer headers' fields for sending the packet to `hop`, which stands `skipped` entries
    /// (0 or 1) after the next one in the list.
    fn readdress<F: Frame>(frame: &F, next_hop: u8, skipped: u8, hop: Self)
    -> Option<OuterRewrite>;
}

impl OuterFamily for V4 {
    const PRIVATE_TYPE: u16 = 0;
    const HEADER_LEN: usize = Ipv4Header::LEN;
    const HOP_LEN: usize = 4;

    #[inline(always)]
    fn read<F: Frame>(frame: &F) -> Option<Self> {
        frame.window::<4>().map(|bytes| Self::new(u32_at(bytes, 0).to_le_bytes()))
    }

    #[inline(always)]
    fn readdress<F: Frame>(
        frame: &F,
        next_hop: u8,
        skipped: u8,
        hop: Self,
    ) -> Option<OuterRewrite> {
        let further = u32::from(skipped) + 1;
        let head = frame.window::<{ Self::HOPS_OFFSET }>()?;
        let (source, destination) = (u32_at(head, IP_OFFSET + 12), u32_at(head, IP_OFFSET + 16));
        let [_, hop] = hop.words();
        // The old destination becomes the source, so only the old source leaves the sum.
        let change = hop + u64::from(!source);
        Some(OuterRewrite {
            checksum: add(u16_at(head, IP_OFFSET + 10), change).into(),
            addresses: [u64::from(destination) | hop << 32, 0, 0, 0],
            udp_checksum: add_udp(u16_at(head, Self::GUE_OFFSET - 2), change, further).into(),
            next_hop: u32::from(next_hop) + further,
            is_v6: 0,
        })
    }
}

impl OuterFamily for V6 {
    const PRIVATE_TYPE: u16 = 1;
    const HEADER_LEN: usize = Ipv6Header::LEN;
    const HOP_LEN: usize = 16;

    #[inline(always)]
    fn read<F: Frame>(frame: &F) -> Option<Self> {
        frame.window::<16>().map(|bytes| Self::from_words([u64_at(bytes, 0), u64_at(bytes, 8)]))
    }

    #[inline(always)]
    fn readdress<F: Frame>(
        frame: &F,
        next_hop: u8,
        skipped: u8,
        hop: Self,
    ) -> Option<OuterRewrite> {
        let further = u32::from(skipped) + 1;
        let head = frame.window::<{ Self::HOPS_OFFSET }>()?;
        let source = [u64_at(head, IP_OFFSET + 8), u64_at(head, IP_OFFSET + 16)];
        let destination = [u64_at(head, IP_OFFSET + 24), u64_at(head, IP_OFFSET + 32)];
        let hop = hop.words();
        let change = sum(hop) + sum([!source[0], !source[1]]);
        Some(OuterRewrite {
            addresses: [destination[0], destination[1], hop[0], hop[1]],
            udp_checksum: add_udp(u16_at(head, Self::GUE_OFFSET - 2), change, further).into(),
            next_hop: u32::from(next_hop) + further,
            is_v6: 1,
            checksum: 0,
        })
    }
}

// The Internet checksum may be computed in either byte order (RFC 1071). Here the words are added as
// they are loaded.

/// Adds the 32-bit halves of two words.
#[inline(always)]
const fn sum([a, b]: [u64; 2]) -> u64 {
    const HALF: u64 = 0xffff_ffff;
    (a & HALF) + (a >> 32) + (b & HALF) + (b >> 32)
}

/// Updates a checksum after its sum has grown by `change` (RFC 1624, equation 3). Removed words are part of
/// `change` as their complements.
#[inline(always)]
const fn add(checksum: u16, change: u64) -> u16 {
    !fold_wide(!checksum as u64 + change)
}

/// Updates the UDP checksum after the addresses and the next hop's index changed. A checksum of 0 (none)
/// stays 0. The index is the low byte of its little-endian word, so its growth is added to the sum.
#[inline(always)]
fn add_udp(checksum: u16, change: u64, further: u32) -> u16 {
    if checksum == 0 {
        return 0;
    }
    match add(checksum, change + u64::from(further)) {
        // A checksum of 0 would mean that there is none.
        0 => 0xffff,
        checksum => checksum,
    }
}

/// Checks the outer headers of a tunnel packet over IPv4.
#[inline(always)]
pub(super) fn open_v4<'f, F: Nested, H: Host>(
    frame: &'f F,
    host: &H,
) -> Result<TunnelPacket<F::Rest<'f>>, Reason> {
    let Some(ip) = frame.read::<Ipv4Header>(IP_OFFSET) else { return Err(Reason::NotTunnel) };
    // Directors and backends send no IP options, so the kernel gets packets with options.
    if ip.protocol != protocol::UDP || ip.version_ihl != 0x45 || ip.is_later_fragment() {
        return Err(Reason::NotTunnel);
    }
    let udp = tunnel_udp::<F, V4>(frame)?;
    admit(host, &V4::new(ip.source), &V4::new(ip.destination))?;
    if u16::from_be_bytes(ip.flags_fragment) & ipv4::MORE_FRAGMENTS != 0 {
        return Err(Reason::OuterFragment);
    }
    open_gue::<F, V4>(frame, udp, ip.total_length(), ip.tos & 3)
}

/// Checks the outer headers of a tunnel packet over IPv6.
#[inline(always)]
pub(super) fn open_v6<'f, F: Nested, H: Host>(
    frame: &'f F,
    host: &H,
) -> Result<TunnelPacket<F::Rest<'f>>, Reason> {
    let Some(ip) = frame.read::<Ipv6Header>(IP_OFFSET) else { return Err(Reason::NotTunnel) };
    if ip.next_header != protocol::UDP || ip.version() != 6 {
        return Err(Reason::NotTunnel);
    }
    let udp = tunnel_udp::<F, V6>(frame)?;
    admit(host, &V6::new(ip.source), &V6::new(ip.destination))?;
    open_gue::<F, V6>(frame, udp, ip.total_length(), ip.ecn())
}

#[inline(always)]
fn tunnel_udp<F: Frame, A: OuterFamily>(frame: &F) -> Result<UdpHeader, Reason> {
    match frame.read::<UdpHeader>(A::GUE_OFFSET - UdpHeader::LEN) {
        Some(udp) if udp.destination_port == gue::PORT.to_be_bytes() => Ok(udp),
        _ => Err(Reason::NotTunnel),
    }
}

#[inline(always)]
fn admit<H: Host, A: Address>(host: &H, source: &A, destination: &A) -> Result<(), Reason> {
    // A promiscuous interface also receives frames for other machines.
    if !host.is_local(destination) {
        return Err(Reason::WrongDestination);
    }
    if !host.may_send(source) {
        return Err(if host.passes_unknown_senders() {
            Reason::UnknownSenderPassed
        } else {
            Reason::UnknownSender
        });
    }
    Ok(())
}

#[inline(always)]
fn open_gue<F: Nested, A: OuterFamily>(
    frame: &F,
    udp: UdpHeader,
    total: usize,
    ecn: u8,
) -> Result<TunnelPacket<F::Rest<'_>>, Reason> {
    let end = IP_OFFSET + total;
    if end < A::GUE_OFFSET + GueHeader::LEN
        || u16::from_be_bytes(udp.length) as usize != total - A::HEADER_LEN
        || !frame.holds(end)
    {
        return Err(Reason::OuterMalformed);
    }
    let Some(gue) = frame.read::<GueHeader>(A::GUE_OFFSET) else {
        return Err(Reason::OuterMalformed);
    };
    if gue.version() != 0 {
        return Err(Reason::BadVersion);
    }
    if gue.is_control() {
        return Err(Reason::ControlMessage);
    }
    if gue.flags != [0; 2] {
        return Err(Reason::BadFlags);
    }
    if gue.private_type != A::PRIVATE_TYPE.to_be_bytes() {
        return Err(Reason::BadPrivateType);
    }
    let words_per_hop = A::HOP_LEN / 4;
    let hlen = gue.hlen() as usize;
    if hlen != 1 + words_per_hop * gue.hop_count as usize {
        return Err(Reason::BadHeaderLength);
    }
    // The header length does not count GUE's first four bytes.
    let inner_offset = A::GUE_OFFSET + 4 + 4 * hlen;
    let Some(room) = end.checked_sub(inner_offset) else { return Err(Reason::OuterMalformed) };
    let Some(inner) = frame.rest(inner_offset) else { return Err(Reason::OuterMalformed) };
    Ok(TunnelPacket {
        inner,
        inner_offset,
        room,
        ecn,
        inner_protocol: gue.protocol,
        next_hop: gue.next_hop,
        hop_count: gue.hop_count,
    })
}

/// The fields of the outer headers that change when a packet is sent to the next hop. They are words with
/// the bytes as they lie on the wire, because values on a BPF program's stack must be aligned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OuterRewrite {
    /// 1 over IPv6, 0 over IPv4.
    pub is_v6: u32,
    /// The new source (the old destination) and destination (the hop): four words for IPv6, the first
    /// word for IPv4.
    pub addresses: [u64; 4],
    /// IPv4 header checksum.
    pub checksum: u32,
    /// UDP checksum.
    pub udp_checksum: u32,
    /// Index of the hop after this one.
    pub next_hop: u32,
}

impl OuterRewrite {
    /// Rewrites the outer IP, UDP and GUE headers; `false` if they do not lie inside the frame.
    #[inline(always)]
    #[must_use]
    pub fn write<F: FrameMut + ?Sized>(&self, frame: &mut F) -> bool {
        /// Distance from the UDP checksum to the GUE header.
        const UDP_CHECKSUM: usize = 2;
        /// Offset of the next hop's index in the GUE header.
        const NEXT_HOP: usize = 6;
        let OuterRewrite { is_v6, addresses: [a, b, c, d], .. } = *self;
        let OuterRewrite { checksum, udp_checksum, next_hop, .. } = *self;
        if is_v6 != 0 {
            let Some(head) = frame.window_mut::<{ V6::HOPS_OFFSET }>() else { return false };
            put_at(head, IP_OFFSET + 8, a.to_le());
            put_at(head, IP_OFFSET + 16, b.to_le());
            put_at(head, IP_OFFSET + 24, c.to_le());
            put_at(head, IP_OFFSET + 32, d.to_le());
            put_at(head, V6::GUE_OFFSET - UDP_CHECKSUM, (udp_checksum as u16).to_le());
            put_at(head, V6::GUE_OFFSET + NEXT_HOP, next_hop as u8);
        } else {
            let Some(head) = frame.window_mut::<{ V4::HOPS_OFFSET }>() else { return false };
            put_at(head, IP_OFFSET + 10, (checksum as u16).to_le());
            put_at(head, IP_OFFSET + 12, a.to_le());
            put_at(head, V4::GUE_OFFSET - UDP_CHECKSUM, (udp_checksum as u16).to_le());
            put_at(head, V4::GUE_OFFSET + NEXT_HOP, next_hop as u8);
        }
        true
    }
}
