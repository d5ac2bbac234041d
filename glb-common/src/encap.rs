//! Encapsulation: the outer headers that the director writes (Ethernet, IP, UDP, GUE and hop list).
//!
//! This is the only module of the director's side that knows the outer format. Another format needs
//! its own [`overhead`] and [`write`](fn@write) here, and its counterpart in `second_chance::tunnel`, where the
//! backend reads it. [`crate::fast_path`] writes GUE over IPv4 only and leaves the rest to this module.

use crate::{
    abi::{Backend, Hops, KEEP_TAGS},
    checksum::{fold, sum_4},
    packet_access::FrameMut,
    parse::{MAX_TAGGED, Packet, Tags},
    tables::Tables,
    wire::{
        ethernet::{self, EthernetHeader},
        gue::{self, GueHeader},
        ipv4::{self, Ipv4Header},
        ipv6::Ipv6Header,
        protocol,
        udp::UdpHeader,
    },
};

/// Bytes that encapsulation over IPv4 adds if no hop is listed.
const V4_BASE: usize = Ipv4Header::LEN + UdpHeader::LEN + GueHeader::LEN;
/// Bytes that encapsulation over IPv6 adds if no hop is listed.
const V6_BASE: usize = Ipv6Header::LEN + UdpHeader::LEN + GueHeader::LEN;

/// Bytes that encapsulation adds in front of the inner packet for `listed` hops.
#[inline(always)]
#[must_use]
pub const fn overhead(is_v6: bool, listed: u8) -> usize {
    if is_v6 { V6_BASE + 16 * listed as usize } else { V4_BASE + 4 * listed as usize }
}

/// TTL or hop limit of the outer header.
const TTL: u8 = 64;

/// The bit of [`Encapsulation::fragmentable`] that allows routers to fragment the outer packet.
pub const FRAGMENTABLE: u32 = 1 << 16;

/// How a packet is encapsulated: the result of [`crate::forwarding::plan_encapsulation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encapsulation<'v> {
    /// The first hop, which gets the packet.
    pub backend: &'v Backend,
    /// Index of the first hop.
    pub first: u16,
    /// The bank of backend entries in use: [`crate::abi::TableInfo::bank`].
    pub bank: u32,
    /// True if the backends are IPv6 ones.
    pub is_v6: bool,
    /// Outer UDP source port.
    pub source_port: u16,
    /// Outer TOS or traffic class.
    pub tos: u8,
    /// [`FRAGMENTABLE`] with the identification of an outer packet that routers may fragment, else 0.
    /// (An `Option` would leave its value undefined for `None`, which the verifier rejects.)
    pub fragmentable: u32,
    /// Slot of the table's counters.
    pub counter_slot: u32,
}

/// The outer UDP source port of a flow with this hash and hint.
#[inline(always)]
pub(crate) const fn source_port(hash: u64, hint: u16) -> u16 {
    0x8000 | ((hash as u16 ^ hint) & 0x7fff)
}

/// The outer TOS or traffic class for a packet with this inner one.
#[inline(always)]
pub(crate) fn tos<V: Tables + ?Sized>(view: &V, tos: u8) -> u8 {
    (tos & view.config(|config| &config.tos_mask)) | view.config(|config| &config.tos_value)
}

/// The link that leads to a backend: interface, MAC addresses and MTUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EgressLink {
    /// MAC of the next hop.
    pub next_hop_mac: [u8; 6],
    /// MAC of the outgoing interface.
    pub own_mac: [u8; 6],
    /// Index of the outgoing interface.
    pub interface: u32,
    /// Path MTU for outer packets.
    pub mtu: u16,
    /// MTU of the outgoing interface.
    pub link_mtu: u16,
}

impl EgressLink {
    /// Builds the entry of an IPv4 backend.
    #[must_use]
    pub fn to_v4(&self, source: [u8; 4], address: [u8; 4], counter_slot: u16) -> Backend {
        let mut bytes = [0; 48];
        bytes[..6].copy_from_slice(&self.next_hop_mac);
        bytes[6..12].copy_from_slice(&self.own_mac);
        bytes[12..14].copy_from_slice(&ethernet::IPV4);
        bytes[14] = 0x45;
        bytes[20..22].copy_from_slice(&ipv4::DONT_FRAGMENT.to_be_bytes());
        bytes[22..24].copy_from_slice(&[TTL, protocol::UDP]);
        bytes[26..30].copy_from_slice(&source);
        bytes[30..34].copy_from_slice(&address);
        bytes[36..38].copy_from_slice(&gue::PORT.to_be_bytes());
        Backend {
            address: u32::from_le_bytes(address),
            header_sum: header_sum(source, address),
            ..self.entry(bytes, counter_slot)
        }
    }

    /// Builds the entry of an IPv6 backend. Its addresses go into [`crate::abi::Ipv6Endpoints`].
    #[must_use]
    pub fn to_v6(&self, counter_slot: u16) -> Backend {
        let mut bytes = [0; 48];
        bytes[..6].copy_from_slice(&self.next_hop_mac);
        bytes[6..12].copy_from_slice(&self.own_mac);
        bytes[12..14].copy_from_slice(&ethernet::IPV6);
        self.entry(bytes, counter_slot)
    }

    fn entry(&self, bytes: [u8; 48], counter_slot: u16) -> Backend {
        let mut header = [0; 6];
        for (word, bytes) in header.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        Backend {
            header,
            interface: self.interface,
            mtu: self.mtu,
            link_mtu: self.link_mtu,
            counter_slot,
            ..Backend::default()
        }
    }
}

/// [`Backend::header_sum`] for these addresses, TOS and total length still 0.
const fn header_sum(source: [u8; 4], destination: [u8; 4]) -> u16 {
    let sum = fold(
        0x4500
            + ipv4::DONT_FRAGMENT as u32
            + ((TTL as u32) << 8 | protocol::UDP as u32)
            + sum_4(source)
            + sum_4(destination),
    );
    sum.swap_bytes()
}

/// The fields that differ from packet to packet in the first 48 bytes of the outer headers.
///
/// They are words because the compiler packs smaller fields into one register and needs a dozen
/// instructions to unpack them again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patch {
    pub(crate) tos: u32,
    /// Length of the outer IP packet.
    pub(crate) total: u32,
    pub(crate) source_port: u32,
    /// IP protocol inside: 4 or 41.
    pub(crate) inner: u32,
    pub(crate) listed: u32,
}

/// The first 48 bytes of outer IPv4 headers, up to GUE's private type, as little-endian words.
#[inline(always)]
pub(crate) fn words_v4(backend: &Backend, patch: Patch) -> [u64; 6] {
    let [h0, h1, h2, h3, h4, _] = backend.header;
    let Patch { tos, total, source_port, inner, listed } = patch;
    let udp_length = wire(total.wrapping_sub(Ipv4Header::LEN as u32));
    [
        h0,
        h1 | (tos as u64) << 56,
        h2 | wire(total) as u64,
        h3 | checksum(backend, &patch, 0) as u64,
        h4 | (wire(source_port) as u64) << 16 | (udp_length as u64) << 48,
        (1 + listed as u64) << 16 | (inner as u64) << 24,
    ]
}

/// A 16-bit number in network byte order.
#[inline(always)]
const fn wire(number: u32) -> u16 {
    (number as u16).swap_bytes()
}

/// The outer IPv4 header's checksum as it lies on the wire. `more` is the sum of the fields that
/// differ besides TOS and length. The sums add little-endian words (RFC 1071 allows either byte
/// order), so no bytes need to be swapped.
#[inline(always)]
fn checksum(backend: &Backend, patch: &Patch, more: u32) -> u16 {
    !fold(backend.header_sum as u32 + wire(patch.total) as u32 + (patch.tos << 8) + more)
}

/// The IP protocol number of an inner packet of this family.
#[inline(always)]
pub(crate) const fn inner_protocol(family: u8) -> u8 {
    if family == 4 { protocol::IPV4 } else { protocol::IPV6 }
}

/// The VLAN tags of the packet that is sent.
#[inline(always)]
#[must_use]
pub fn tags_to_send<V: Tables + ?Sized>(view: &V, received: &Tags) -> Tags {
    let count = view.config(|config| &config.tags);
    if count == KEEP_TAGS {
        return *received;
    }
    // Priority and drop eligibility: the high four bits of the third byte.
    const PRIORITY: u32 = 0x00f0_0000;
    let priority = if received.count == 0 { 0 } else { received.words[0] & PRIORITY };
    let [outer, inner] = view.config(|config| &config.tag_words);
    Tags { words: [outer | priority, inner | priority], count }
}

/// Length of the outer IP packet; `None` if it exceeds 65,535 bytes.
#[inline(always)]
#[must_use]
pub fn outer_length(
    encapsulation: &Encapsulation<'_>,
    packet: &Packet,
    hops: &Hops,
) -> Option<u16> {
    let total = packet.ip_length as u32 + overhead(encapsulation.is_v6, hops.len()) as u32;
    if total > u16::MAX as u32 { None } else { Some(total as u16) }
}

/// Bytes by which a frame grows at its head.
#[inline(always)]
#[must_use]
pub fn growth(
    encapsulation: &Encapsulation<'_>,
    listed: u8,
    received: &Tags,
    sent: &Tags,
) -> usize {
    // Tags take at most 8 bytes, less than any overhead.
    overhead(encapsulation.is_v6, listed) + sent.len() - received.len()
}

/// Writes the outer headers and the hop list to the start of a frame that has grown by [`growth`].
/// `total` is the length of the outer IP packet. Returns `false` if the headers do not fit.
#[inline(always)]
#[must_use]
pub fn write<F: FrameMut + ?Sized, V: Tables + ?Sized>(
    frame: &mut F,
    view: &V,
    encapsulation: &Encapsulation<'_>,
    packet: &Packet,
    hops: &Hops,
    total: u16,
) -> bool {
    // This check comes first because a later one would satisfy the compiler, but not the verifier.
    if frame.read::<[u8; MAX_TAGGED]>(0).is_none() {
        return false;
    }
    let tags = tags_to_send(view, &packet.tags);
    let shift = tags.len();
    let inner = inner_protocol(packet.flow.family);
    let patch = Patch {
        tos: encapsulation.tos.into(),
        total: total.into(),
        source_port: encapsulation.source_port.into(),
        inner: inner.into(),
        listed: hops.len().into(),
    };
    let written = if encapsulation.is_v6 {
        write_v6(frame, shift, view, encapsulation, patch, hops)
    } else {
        write_v4(frame, shift, view, encapsulation, patch, hops)
    };
    written.is_some() && write_tags(frame, encapsulation.backend, &tags)
}

#[inline(always)]
fn write_v4<F: FrameMut + ?Sized, V: Tables + ?Sized>(
    frame: &mut F,
    shift: usize,
    view: &V,
    encapsulation: &Encapsulation<'_>,
    patch: Patch,
    hops: &Hops,
) -> Option<()> {
    let [h0, h1, mut h2, mut h3, h4, h5] = words_v4(encapsulation.backend, patch);
    if encapsulation.fragmentable & FRAGMENTABLE != 0 {
        let identification = encapsulation.fragmentable as u16;
        // DF clear, and an identification for the fragments.
        h2 = h2 & !(0x40 << 32) | (identification.swap_bytes() as u64) << 16;
        let more = (!ipv4::DONT_FRAGMENT).swap_bytes() as u32 + identification.swap_bytes() as u32;
        h3 = h3 & !0xffff | checksum(encapsulation.backend, &patch, more) as u64;
    }
    let words = [h0, h1, h2, h3, h4, h5];
    frame.write_words(shift, words, (patch.listed as u16) << 8)?;
    for place in 0..MAX_LISTED {
        if place >= hops.len() as usize {
            break;
        }
        let hop = view.backend(hops.index[place], encapsulation.bank)?.address;
        frame.put(shift + EthernetHeader::LEN + V4_BASE + 4 * place, hop)?;
    }
    Some(())
}

#[inline(always)]
fn write_v6<F: FrameMut + ?Sized, V: Tables + ?Sized>(
    frame: &mut F,
    shift: usize,
    view: &V,
    encapsulation: &Encapsulation<'_>,
    patch: Patch,
    hops: &Hops,
) -> Option<()> {
    const IP: usize = EthernetHeader::LEN;
    const UDP: usize = IP + Ipv6Header::LEN;
    const GUE: usize = UDP + UdpHeader::LEN;
    let Patch { tos, total, source_port, inner, listed } = patch;
    let way = view.ipv6_endpoints(encapsulation.first, encapsulation.bank)?;
    let udp_length = wire(total.wrapping_sub(Ipv6Header::LEN as u32));
    let (macs, mac) = encapsulation.backend.macs();
    frame.put(shift, macs)?;
    frame.put(shift + 8, mac)?;
    frame.put(shift + 12, u16::from_le_bytes(ethernet::IPV6))?;
    // The flow label spreads flows over equal paths where routers look at it (RFC 6438).
    let first = 6 << 28 | tos << 20 | source_port;
    let fixed = (first.swap_bytes() as u64)
        | (udp_length as u64) << 32
        | (protocol::UDP as u64) << 48
        | (TTL as u64) << 56;
    frame.put(shift + IP, fixed)?;
    frame.put(shift + IP + 8, way.source[0])?;
    frame.put(shift + IP + 16, way.source[1])?;
    frame.put(shift + IP + 24, way.address[0])?;
    frame.put(shift + IP + 32, way.address[1])?;
    // A checksum of 0: allowed for tunnels (RFC 6935).
    let udp = wire(source_port) as u64
        | (gue::PORT.swap_bytes() as u64) << 16
        | (udp_length as u64) << 32;
    frame.put(shift + UDP, udp)?;
    let gue = (1 + 4 * listed as u64)
        | (inner as u64) << 8
        | (gue::IPV6_HOPS.swap_bytes() as u64) << 32
        | (listed as u64) << 56;
    frame.put(shift + GUE, gue)?;
    for place in 0..MAX_LISTED {
        if place >= listed as usize {
            break;
        }
        let hop = view.ipv6_endpoints(hops.index[place], encapsulation.bank)?.address;
        let offset = shift + EthernetHeader::LEN + V6_BASE + 16 * place;
        frame.put(offset, hop[0])?;
        frame.put(offset + 8, hop[1])?;
    }
    Some(())
}

/// Writes the MAC addresses to the start of the frame and the VLAN tags behind them. The EtherType is
/// already in place.
#[inline(always)]
fn write_tags<F: FrameMut + ?Sized>(frame: &mut F, backend: &Backend, tags: &Tags) -> bool {
    if tags.count == 0 {
        return true;
    }
    let (macs, mac) = backend.macs();
    let mut written = frame.write(0, macs) && frame.write(8, mac) && frame.write(12, tags.words[0]);
    if tags.count > 1 {
        written = written && frame.write(16, tags.words[1]);
    }
    written
}

/// Limit of listed hops: three besides the first, and four of the alternative row.
pub const MAX_LISTED: usize = 7;
