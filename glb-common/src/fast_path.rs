//! The director's fast path: ordinary packets to ordinary tables, decided in a straight line of code.
//!
//! It handles IPv4 without options and IPv6 without extension headers, without VLAN tags, TCP or UDP, no
//! fragments, an exact bind of a table with two hops and IPv4 backends that hashes source addresses,
//! and packets that fit the path MTU. Everything else goes to the general program ([`crate::parse`],
//! [`crate::forwarding`], [`crate::encap`]), which gives the same result for the packets handled here.

use crate::{
    abi::{Backend, BindSlot, TableRows},
    encap::{self, Patch, inner_protocol, overhead, source_port, words_v4},
    flow::{Address, V4, V6},
    packet_access::{Frame, FrameMut, put_at, u16_at, u32_at, u64_at},
    parse::IP_OFFSET,
    siphash::SipHash24,
    tables::Tables,
    vip_lookup,
    wire::{ethernet, protocol, tcp::TcpHeader, udp::UdpHeader},
};

/// Bytes by which a frame grows at its head.
pub const GROWTH: usize = overhead(false, 1);

/// A packet whose bind leads to a table that the fast path handles.
#[derive(Clone, Copy, Debug)]
pub struct MatchedFlow<'v> {
    /// The bind.
    pub slot: &'v BindSlot,
    /// The table's rows.
    pub rows: &'v TableRows,
    /// The packet's source address as [`Address::words`].
    pub source: [u64; 2],
}

/// Reads the EtherType as a little-endian number.
#[inline(always)]
pub fn ethertype<F: Frame + ?Sized>(frame: &F) -> Option<u16> {
    // The window is that of the IP header, so both share one bounds check.
    frame.window::<{ IP_OFFSET + 24 }>().map(|head| u16_at(head, IP_OFFSET - 2))
}

/// EtherType of IPv4 as [`ethertype`] gives it.
pub const IPV4: u16 = u16::from_le_bytes(ethernet::IPV4);
/// EtherType of IPv6 as [`ethertype`] gives it.
pub const IPV6: u16 = u16::from_le_bytes(ethernet::IPV6);

/// Length of the shortest transport header of a protocol.
#[inline(always)]
const fn shortest(protocol: u8) -> Option<u32> {
    match protocol {
        protocol::TCP => Some(TcpHeader::LEN as u32),
        protocol::UDP => Some(UdpHeader::LEN as u32),
        _ => None,
    }
}

#[inline(always)]
fn find_bind<V: Tables + ?Sized>(
    view: &V,
    address: [u64; 2],
    port_key: u32,
) -> Option<(&BindSlot, &TableRows)> {
    let slot = vip_lookup::exact(view, address, port_key)?;
    // The look-up fails for the index `NO_ROWS`.
    Some((slot, view.rows(slot.plain_rows)?))
}

/// Matches an IPv4 packet to its bind; `None` leaves it to the general program.
#[inline(always)]
pub fn match_v4<'v, V: Tables + ?Sized, F: Frame + ?Sized>(
    view: &'v V,
    frame: &F,
) -> Option<MatchedFlow<'v>> {
    let head = frame.window::<{ IP_OFFSET + 24 }>()?;
    // Version, header length, TOS, total length, identification, fragment.
    let first = u64_at(head, IP_OFFSET);
    let address = u32_at(head, IP_OFFSET + 16);
    let port = u16_at(head, IP_OFFSET + 22);
    const FRAGMENT: u64 = (0xff3f_u64) << 48;
    if first as u8 != 0x45 || first & FRAGMENT != 0 {
        return None;
    }
    let (ip_length, protocol) = ((first >> 16) as u16, head[IP_OFFSET + 9]);
    let ip_length = ip_length.swap_bytes() as u32;
    if ip_length < 20 + shortest(protocol)? || IP_OFFSET + ip_length as usize > frame.len() {
        return None;
    }
    let port_key = vip_lookup::port_key(V4::FAMILY, protocol, port.swap_bytes());
    let (slot, rows) = find_bind(view, [0, address.into()], port_key)?;
    Some(MatchedFlow { slot, rows, source: [0, u32_at(head, IP_OFFSET + 12).into()] })
}

/// Matches an IPv6 packet to its bind; `None` leaves it to the general program.
#[inline(always)]
pub fn match_v6<'v, V: Tables + ?Sized, F: Frame + ?Sized>(
    view: &'v V,
    frame: &F,
) -> Option<MatchedFlow<'v>> {
    // Version, class, flow label, payload length, next header, hop limit | source | destination.
    let [first, from_high, from_low, high, low] = frame.read::<[u64; 5]>(IP_OFFSET)?;
    let port = frame.read::<u16>(IP_OFFSET + 42)?;
    let (payload, protocol) = ((first >> 32) as u16, (first >> 48) as u8);
    let payload = payload.swap_bytes() as u32;
    let ip_length = payload + 40;
    if first as u8 >> 4 != 6
        || payload < shortest(protocol)?
        || ip_length > u16::MAX as u32
        || IP_OFFSET + ip_length as usize > frame.len()
    {
        return None;
    }
    let port_key = vip_lookup::port_key(V6::FAMILY, protocol, port.swap_bytes());
    let (slot, rows) = find_bind(view, [high, low], port_key)?;
    Some(MatchedFlow { slot, rows, source: [from_high, from_low] })
}

/// Hashes the packet, finds its backend and writes the outer headers. The frame has grown by [`GROWTH`]
/// since it was matched. `None` leaves the packet, unchanged, to the general program.
#[inline(always)]
pub fn send<'v, V: Tables + ?Sized, F: FrameMut + ?Sized, A: Address>(
    view: &'v V,
    frame: &mut F,
    bound: &MatchedFlow<'v>,
) -> Option<&'v Backend> {
    const IP: usize = GROWTH + IP_OFFSET;
    let first_round = bound.slot.first_round;
    // One bounds check for all reads and writes: the ports stand behind the outer headers.
    if A::FAMILY == V4::FAMILY {
        let head = frame.window_mut::<{ IP + 24 }>()?;
        let hash = SipHash24::hash_4(first_round, bound.source[1] as u32);
        let port = u16_at(head, IP + 20);
        // These are read after the hash so that fewer registers are live across it.
        let tos = u32::from(head[IP + 1]);
        let length = u16_at(head, IP + 2).swap_bytes().into();
        encapsulate::<V, A, _>(view, head, bound, Inner { hash, port, tos, length })
    } else {
        let head = frame.window_mut::<{ IP + 42 }>()?;
        let hash = SipHash24::hash_16(first_round, bound.source);
        let port = u16_at(head, IP + 40);
        let start = u16_at(head, IP).swap_bytes();
        let tos = u32::from(start >> 4) & 0xff;
        let length = u32::from(u16_at(head, IP + 4).swap_bytes()) + 40;
        encapsulate::<V, A, _>(view, head, bound, Inner { hash, port, tos, length })
    }
}

/// The values of an inner packet that its outer headers depend on.
struct Inner {
    hash: u64,
    /// The source port in network byte order.
    port: u16,
    tos: u32,
    length: u32,
}

#[inline(always)]
fn encapsulate<'v, V: Tables + ?Sized, A: Address, const N: usize>(
    view: &'v V,
    head: &mut [u8; N],
    bound: &MatchedFlow<'v>,
    inner: Inner,
) -> Option<&'v Backend> {
    let Inner { hash, port, tos, length } = inner;
    let bank = bound.slot.bank;
    let row = bound.rows[usize::from(hash as u16)];
    let backend = view.backend(row.first, bank)?;
    // The look-up fails for the index `NO_HOP`.
    let hop = view.backend(row.second, bank)?.address;
    let total = length + GROWTH as u32;
    // The MTU is 0 while the next hop is unresolved.
    if total > backend.mtu as u32 {
        return None;
    }
    let patch = Patch {
        tos: encap::tos(view, tos as u8).into(),
        total,
        source_port: source_port(hash, port.swap_bytes()).into(),
        inner: inner_protocol(A::FAMILY).into(),
        listed: 1,
    };
    for (index, word) in words_v4(backend, patch).into_iter().enumerate() {
        put_at(head, 8 * index, word);
    }
    put_at(head, 48, 1u16 << 8);
    put_at(head, 50, hop);
    Some(backend)
}
