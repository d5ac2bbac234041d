//! The decision for what makes up nearly all packets, written for speed: one check of the frame's
//! end for each run of headers, several fields in one comparison, one look-up for each question.
//!
//! Whatever is odd about a packet, there is no answer here, and [`super::decide`] has to be asked.
//! Where there is one it is the same.

use super::{Ack, Decision, Forward, Hop, Host, NO_VIP, Owner, Take, layout::Peer, outer::Outer};
use crate::{
    frame::{Frame as _, Nested, u16_at, u32_at, u64_at},
    hash::{Address, V4, V6},
    parse::{Flow, IP_OFFSET},
    reason::RedirectReason as Reason,
    wire::{
        ethernet::{self, EthernetHeader},
        gue::{self, GueHeader},
        ipv4::Ipv4Header,
        ipv6::Ipv6Header,
        protocol, tcp,
        tcp::TcpHeader,
        udp::UdpHeader,
    },
};

/// An EtherType as the low half of a little-endian word.
const fn low(ethertype: [u8; 2]) -> u32 {
    ethertype[0] as u32 | (ethertype[1] as u32) << 8
}

fn leave(reason: Reason) -> Option<Decision> {
    Some(Decision::leave(reason, NO_VIP))
}

/// Decides about a frame if it is an ordinary one.
#[inline(always)]
pub fn decide<F: Nested, H: Host>(frame: &F, host: &H) -> Option<Decision> {
    const V4_WITHOUT_OPTIONS: u32 = low(ethernet::IPV4) | 0x45 << 16;
    const V6_OF_ANY_CLASS: u32 = low(ethernet::IPV6) | 0x60 << 16;
    let head = frame.window::<{ V4::HOPS_OFFSET }>()?;
    // EtherType, the IP header's first two bytes.
    let start = u32_at(head, 12);
    if start & 0x00ff_ffff == V4_WITHOUT_OPTIONS {
        // Flags and fragment, TTL, protocol.
        let fields = u32_at(head, IP_OFFSET + 6);
        let total = u16::from_be(u16_at(head, IP_OFFSET + 2)) as usize;
        let ports = u64_at(head, V4::GUE_OFFSET - UdpHeader::LEN);
        if fields >> 24 != protocol::UDP as u32 || (fields & 0xff1f == 0 && !is_tunnel(ports)) {
            return not_tunnel(frame, total);
        }
        // A fragment, or marked by ECN on the way.
        if fields & 0xff3f != 0 || start >> 24 & 1 != 0 {
            return None;
        }
        let addresses = u64_at(head, IP_OFFSET + 12);
        let source = V4::from_word(addresses as u32);
        let destination = V4::from_word((addresses >> 32) as u32);
        let gue = u64_at(head, V4::GUE_OFFSET);
        tunnel(frame, host, source, destination, total, ports, gue)
    } else if start & 0x00f0_ffff == V6_OF_ANY_CLASS {
        let head = frame.window::<{ V6::HOPS_OFFSET }>()?;
        let total = Ipv6Header::LEN + u16::from_be(u16_at(head, IP_OFFSET + 4)) as usize;
        let ports = u64_at(head, V6::GUE_OFFSET - UdpHeader::LEN);
        if head[IP_OFFSET + 6] != protocol::UDP || !is_tunnel(ports) {
            return not_tunnel(frame, total);
        }
        // The low bit of ECN, in the header's second byte.
        if start >> 24 & 0x10 != 0 {
            return None;
        }
        let source = V6::from_words([u64_at(head, IP_OFFSET + 8), u64_at(head, IP_OFFSET + 16)]);
        let destination =
            V6::from_words([u64_at(head, IP_OFFSET + 24), u64_at(head, IP_OFFSET + 32)]);
        let gue = u64_at(head, V6::GUE_OFFSET);
        tunnel(frame, host, source, destination, total, ports, gue)
    } else {
        None
    }
}

/// Whether the UDP header, as a little-endian word, says that this is the tunnel.
#[inline(always)]
const fn is_tunnel(udp: u64) -> bool {
    (udp >> 16) as u16 == gue::PORT.to_be()
}

/// What is no tunnel's packet is left, unless the frame goes on elsewhere: it is counted whole.
#[inline(always)]
fn not_tunnel<F: Nested>(frame: &F, total: usize) -> Option<Decision> {
    if IP_OFFSET + total > frame.len() { None } else { leave(Reason::NotTunnel) }
}

/// `total` is the outer packet's length, `udp` and `gue` are its headers as little-endian words.
#[inline(always)]
fn tunnel<F: Nested, H: Host, A: Outer>(
    frame: &F,
    host: &H,
    source: A,
    destination: A,
    total: usize,
    udp: u64,
    gue: u64,
) -> Option<Decision> {
    let end = IP_OFFSET + total;
    let udp_length = u16::from_be((udp >> 32) as u16) as usize;
    if udp_length + A::HEADER_LEN != total || end > frame.len() {
        return None;
    }
    // Version and control bit, flags, private type.
    if gue & 0x0000_ffff_ffff_00e0 != (A::PRIVATE_TYPE.to_be() as u64) << 32 {
        return None;
    }
    let (hlen, hop_count) = (gue as usize & 0x1f, (gue >> 56) as usize);
    if hlen != 1 + A::HOP_LEN / 4 * hop_count {
        return None;
    }
    if !host.is_own(&destination) || !host.may_send(&source) {
        return None;
    }
    // From the Ethernet header to where it will be.
    let strip = A::GUE_OFFSET + 4 - EthernetHeader::LEN + 4 * hlen;
    let taken = frame.rest(strip)?;
    let room = end.checked_sub(strip + EthernetHeader::LEN)?;
    let on = On { frame, host, next_hop: (gue >> 48) as u8, hop_count: hop_count as u8, strip };
    match (gue >> 8) as u8 {
        protocol::IPV4 => inner_v4::<F, H, A>(&on, &taken, room),
        protocol::IPV6 => inner_v6::<F, H, A>(&on, &taken, room),
        _ => None,
    }
}

/// What is asked for once the inner packet is known.
struct On<'a, F, H> {
    frame: &'a F,
    host: &'a H,
    next_hop: u8,
    hop_count: u8,
    strip: usize,
}

#[inline(always)]
fn inner_v4<F: Nested, H: Host, A: Outer>(
    on: &On<'_, F, H>,
    taken: &F::Rest<'_>,
    room: usize,
) -> Option<Decision> {
    const TCP: usize = IP_OFFSET + Ipv4Header::LEN;
    let head = taken.window::<{ TCP + TcpHeader::LEN }>()?;
    let start = u32_at(head, IP_OFFSET);
    let total = u16::from_be((start >> 16) as u16) as usize;
    let fields = u32_at(head, IP_OFFSET + 6);
    if start & 0xff != 0x45
        || fields & 0xff3f != 0
        || total > room
        || total < Ipv4Header::LEN + TcpHeader::LEN
    {
        return None;
    }
    let addresses = u64_at(head, IP_OFFSET + 12);
    let source = V4::from_word(addresses as u32);
    let destination = V4::from_word((addresses >> 32) as u32);
    let segment = Segment {
        ports: u32_at(head, TCP),
        numbers: u64_at(head, TCP + 4),
        flags: head[TCP + 13],
        ethertype: low(ethernet::IPV4),
    };
    transport::<F, H, A, V4>(on, (fields >> 24) as u8, source, destination, &segment)
}

#[inline(always)]
fn inner_v6<F: Nested, H: Host, A: Outer>(
    on: &On<'_, F, H>,
    taken: &F::Rest<'_>,
    room: usize,
) -> Option<Decision> {
    const TCP: usize = IP_OFFSET + Ipv6Header::LEN;
    let head = taken.window::<{ TCP + TcpHeader::LEN }>()?;
    let total = Ipv6Header::LEN + u16::from_be(u16_at(head, IP_OFFSET + 4)) as usize;
    if head[IP_OFFSET] >> 4 != 6 || total > room || total < Ipv6Header::LEN + TcpHeader::LEN {
        return None;
    }
    let source = V6::from_words([u64_at(head, IP_OFFSET + 8), u64_at(head, IP_OFFSET + 16)]);
    let destination = V6::from_words([u64_at(head, IP_OFFSET + 24), u64_at(head, IP_OFFSET + 32)]);
    let segment = Segment {
        ports: u32_at(head, TCP),
        numbers: u64_at(head, TCP + 4),
        flags: head[TCP + 13],
        ethertype: low(ethernet::IPV6),
    };
    transport::<F, H, A, V6>(on, head[IP_OFFSET + 6], source, destination, &segment)
}

/// Fields of a TCP header, as they lie on the wire, in little-endian words.
struct Segment {
    ports: u32,
    numbers: u64,
    flags: u8,
    /// Of what it came in.
    ethertype: u32,
}

#[inline(always)]
fn transport<F: Nested, H: Host, A: Outer, I: Address>(
    on: &On<'_, F, H>,
    protocol: u8,
    source: I,
    destination: I,
    segment: &Segment,
) -> Option<Decision> {
    let vip = on.host.vip(&destination)?;
    let take = |reason| {
        let (strip, ethertype) = (on.strip, segment.ethertype);
        let take = Take { strip, ethertype, ..Take::default() };
        Some(Decision::take(reason, vip, take))
    };
    match protocol {
        protocol::TCP => {}
        protocol::UDP => return take(Reason::TakenUdp),
        _ => return None,
    }
    if segment.flags & tcp::SYN != 0 {
        return take(Reason::TakenSyn);
    }
    let flow = Flow {
        source,
        destination,
        source_port: u16::from_be(segment.ports as u16),
        destination_port: u16::from_be((segment.ports >> 16) as u16),
        protocol: protocol::TCP,
    };
    let may_carry_cookie = segment.flags & (tcp::ACK | tcp::RST) == tcp::ACK;
    let ack =
        Ack { sequence: segment.numbers as u32, acknowledgement: (segment.numbers >> 32) as u32 };
    match on.host.owner(&flow, may_carry_cookie.then_some(ack)) {
        Owner::Here => return take(Reason::TakenEstablished),
        Owner::Cookie => return take(Reason::TakenCookie),
        Owner::Nobody => {}
    }
    if on.next_hop >= on.hop_count {
        return take(Reason::TakenLastHop);
    }
    if !on.host.gives_second_chance() {
        return take(Reason::TakenNoSecondChance);
    }
    let leave = |reason| Some(Decision::leave(reason, vip));
    let offset = A::HOPS_OFFSET + on.next_hop as usize * A::HOP_LEN;
    let Some(hop) = on.frame.rest(offset).and_then(|rest| A::read(&rest)) else {
        return leave(Reason::OuterMalformed);
    };
    let peer: Peer = match on.host.hop(&hop) {
        // Listed twice in a row; the general program looks further.
        Hop::Own if on.next_hop + 1 < on.hop_count => return None,
        Hop::Own => return take(Reason::TakenOwnHop),
        Hop::Unknown => return leave(Reason::UnknownPeer),
        Hop::Peer(peer) if peer.interface == 0 => return leave(Reason::PeerUnresolved),
        Hop::Peer(peer) => peer,
    };
    match A::readdress(on.frame, on.next_hop, 0, hop) {
        Some(outer) => Some(Decision::send(Reason::Forwarded, vip, Forward { peer, outer })),
        None => leave(Reason::OuterMalformed),
    }
}

const _: () = assert!(GueHeader::LEN == 8, "the GUE header is read as one word");
