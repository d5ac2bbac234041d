//! The backend's fast path: the decision about ordinary packets, written for speed. It checks the frame's
//! end once for each group of headers and compares several fields at once.
//!
//! [`decide`] returns `None` for a packet that is not ordinary; [`super::decide`] then decides. Otherwise
//! both give the same decision.

use super::{
    Ack, Decap, Decision, Forward, Hop, Host, NO_VIP, SocketMatch, abi::PeerNextHop,
    tunnel::OuterFamily,
};
use crate::{
    flow::{Address, Flow, V4, V6},
    packet_access::{Frame as _, Nested, u16_at, u32_at, u64_at},
    parse::IP_OFFSET,
    reason::RedirectReason as Reason,
    wire::{
        ethernet::{self, EthernetHeader},
        gue::{self, GueHeader},
        ipv4::Ipv4Header,
        ipv6::Ipv6Header,
        protocol, tcp,
        tcp::TcpHeader,
    },
};

/// An EtherType as the low half of a little-endian word.
const fn low(ethertype: [u8; 2]) -> u32 {
    ethertype[0] as u32 | (ethertype[1] as u32) << 8
}

/// Carries out decisions. The BPF program edits the frame; tests return the [`Decision`] itself.
pub trait Actions<F: Nested> {
    /// The result of an action.
    type Done;

    /// Leaves the frame as it is.
    fn leave(&self, reason: Reason, vip: u32) -> Self::Done;

    /// Decapsulates a frame. `taken` is the frame from where it will start. The frame has at least
    /// `HEAD` bytes and `taken` at least `TAKEN`.
    fn take<const HEAD: usize, const TAKEN: usize>(
        &self,
        frame: &F,
        taken: F::Rest<'_>,
        take: Decap,
        reason: Reason,
        vip: u32,
    ) -> Self::Done;

    /// Sends a frame to the next hop.
    fn send(&self, frame: &F, forward: &Forward, reason: Reason, vip: u32) -> Self::Done;
}

/// Returns each decision instead of carrying it out.
#[derive(Clone, Copy, Debug)]
pub struct AsDecision;

impl<F: Nested> Actions<F> for AsDecision {
    type Done = Decision;

    fn leave(&self, reason: Reason, vip: u32) -> Decision {
        Decision::leave(reason, vip)
    }

    fn take<const HEAD: usize, const TAKEN: usize>(
        &self,
        _frame: &F,
        _taken: F::Rest<'_>,
        take: Decap,
        reason: Reason,
        vip: u32,
    ) -> Decision {
        Decision::take(reason, vip, take)
    }

    fn send(&self, _frame: &F, forward: &Forward, reason: Reason, vip: u32) -> Decision {
        Decision::send(reason, vip, *forward)
    }
}

/// Decides about an ordinary frame and carries the decision out; `None` if the frame is not ordinary.
#[inline(always)]
pub fn decide<F: Nested, H: Host, D: Actions<F>>(
    frame: &F,
    host: &H,
    actions: &D,
) -> Option<D::Done> {
    const V4_WITHOUT_OPTIONS: u32 = low(ethernet::IPV4) | 0x45 << 16;
    const V6_OF_ANY_CLASS: u32 = low(ethernet::IPV6) | 0x60 << 16;
    /// Mask of the fragment fields without DF and the reserved bit, and of the protocol.
    const V4_FIELDS: u32 = 0xff00_ff3f;
    const V4_WHOLE_UDP: u32 = (protocol::UDP as u32) << 24;
    let head = frame.window::<{ V4::HOPS_OFFSET }>()?;
    // EtherType and the first two bytes of the IP header.
    let start = u32_at(head, 12);
    if start & 0x00ff_ffff == V4_WITHOUT_OPTIONS {
        // Flags and fragment offset, TTL, protocol.
        let fields = u32_at(head, IP_OFFSET + 6);
        let total = u16::from_be(u16_at(head, IP_OFFSET + 2)) as usize;
        let to_tunnel = u16_at(head, V4::GUE_OFFSET - 6) == gue::PORT.to_be();
        if fields & V4_FIELDS != V4_WHOLE_UDP || !to_tunnel {
            let later_fragment = fields & 0xff1f != 0;
            let of_tunnel = fields >> 24 == protocol::UDP as u32 && (later_fragment || to_tunnel);
            return if of_tunnel { None } else { not_tunnel(frame, actions, total) };
        }
        // Congestion was marked: the general program handles ECN.
        if start >> 24 & 1 != 0 {
            return None;
        }
        let source = V4::from_word(u32_at(head, IP_OFFSET + 12));
        let destination = V4::from_word(u32_at(head, IP_OFFSET + 16));
        let udp_length = u16_at(head, V4::GUE_OFFSET - 4);
        let gue = u64_at(head, V4::GUE_OFFSET);
        let fast_path = FastPath { frame, host, actions };
        fast_path.tunnel::<V4, { V4::HOPS_OFFSET }>(source, destination, total, udp_length, gue)
    } else if start & 0x00f0_ffff == V6_OF_ANY_CLASS {
        let head = frame.window::<{ V6::HOPS_OFFSET }>()?;
        let total = Ipv6Header::LEN + u16::from_be(u16_at(head, IP_OFFSET + 4)) as usize;
        let to_tunnel = u16_at(head, V6::GUE_OFFSET - 6) == gue::PORT.to_be();
        if head[IP_OFFSET + 6] != protocol::UDP || !to_tunnel {
            return not_tunnel(frame, actions, total);
        }
        // Congestion was marked: the low bit of ECN, in the header's second byte.
        if start >> 24 & 0x10 != 0 {
            return None;
        }
        let source = V6::from_words([u64_at(head, IP_OFFSET + 8), u64_at(head, IP_OFFSET + 16)]);
        let destination =
            V6::from_words([u64_at(head, IP_OFFSET + 24), u64_at(head, IP_OFFSET + 32)]);
        let udp_length = u16_at(head, V6::GUE_OFFSET - 4);
        let gue = u64_at(head, V6::GUE_OFFSET);
        let fast_path = FastPath { frame, host, actions };
        fast_path.tunnel::<V6, { V6::HOPS_OFFSET }>(source, destination, total, udp_length, gue)
    } else {
        None
    }
}

/// Leaves a packet that is not a tunnel packet. A frame with more buffers goes to the general program,
/// which counts its whole length.
#[inline(always)]
fn not_tunnel<F: Nested, D: Actions<F>>(frame: &F, actions: &D, total: usize) -> Option<D::Done> {
    if IP_OFFSET + total > frame.len() {
        return None;
    }
    Some(actions.leave(Reason::NotTunnel, NO_VIP))
}

/// A frame with the host that decides about it and the actions that carry decisions out.
struct FastPath<'a, F, H, D> {
    frame: &'a F,
    host: &'a H,
    actions: &'a D,
}

/// The hop list of a tunnel packet, and the length of its tunnel headers.
struct List {
    /// The GUE header as a little-endian word.
    gue: u64,
    hop_count: u8,
    /// Bytes that are cut out after the Ethernet header.
    strip: usize,
    /// True if the list has one hop: all offsets are then constant.
    is_one: bool,
}

impl List {
    #[inline(always)]
    const fn next_hop(&self) -> u8 {
        (self.gue >> 48) as u8
    }
}

/// The decision about a TCP segment.
enum Tcp<A> {
    Take(Reason),
    Send(A, PeerNextHop),
    Leave(Reason),
    GeneralProgram,
}

impl<F: Nested, H: Host, D: Actions<F>> FastPath<'_, F, H, D> {
    /// Decides about a tunnel packet. `total` is the outer packet's length; `udp_length` and `gue` are
    /// little-endian words with the bytes as they lie on the wire. The frame has at least `HEAD` bytes.
    #[inline(always)]
    fn tunnel<A: OuterFamily, const HEAD: usize>(
        &self,
        source: A,
        destination: A,
        total: usize,
        udp_length: u16,
        gue: u64,
    ) -> Option<D::Done> {
        let end = IP_OFFSET + total;
        if u16::from_be(udp_length) as usize + A::HEADER_LEN != total || end > self.frame.len() {
            return None;
        }
        /// Mask of version, control bit, flags and private type.
        const FIXED: u64 = 0x0000_ffff_ffff_00e0;
        /// Mask of header length, inner protocol and number of hops.
        const VARIABLE: u64 = 0xff00_0000_0000_ff1f;
        let fixed = (A::PRIVATE_TYPE.to_be() as u64) << 32;
        let words_per_hop = A::HOP_LEN / 4;
        let strip = |hlen: usize| A::GUE_OFFSET + 4 - EthernetHeader::LEN + 4 * hlen;
        // A list of one hop, as directors with two hops in a row send it.
        let one = |protocol: u8| {
            fixed | (1 << 56) | ((protocol as u64) << 8) | (1 + words_per_hop as u64)
        };
        if !self.host.is_local(&destination) || !self.host.may_send(&source) {
            return None;
        }
        let usual = gue & (FIXED | VARIABLE);
        if usual == one(protocol::IPV4) || usual == one(protocol::IPV6) {
            let strip = strip(1 + words_per_hop);
            let list = List { gue, hop_count: 1, strip, is_one: true };
            let taken = self.frame.rest_at(strip)?;
            return if usual == one(protocol::IPV4) {
                self.inner_v4::<A, HEAD>(&list, taken, end)
            } else {
                self.inner_v6::<A, HEAD>(&list, taken, end)
            };
        }
        let (hlen, hop_count) = (gue as usize & 0x1f, (gue >> 56) as usize);
        if gue & FIXED != fixed || hlen != 1 + words_per_hop * hop_count {
            return None;
        }
        let strip = strip(hlen);
        let list = List { gue, hop_count: hop_count as u8, strip, is_one: false };
        let taken = self.frame.rest(strip)?;
        match (gue >> 8) as u8 {
            protocol::IPV4 => self.inner_v4::<A, HEAD>(&list, taken, end),
            protocol::IPV6 => self.inner_v6::<A, HEAD>(&list, taken, end),
            _ => None,
        }
    }

    #[inline(always)]
    fn inner_v4<A: OuterFamily, const HEAD: usize>(
        &self,
        list: &List,
        taken: F::Rest<'_>,
        end: usize,
    ) -> Option<D::Done> {
        const TCP: usize = IP_OFFSET + Ipv4Header::LEN;
        const TAKEN: usize = TCP + TcpHeader::LEN;
        let head = taken.window::<TAKEN>()?;
        let start = u32_at(head, IP_OFFSET);
        let total = u16::from_be((start >> 16) as u16) as usize;
        let fields = u32_at(head, IP_OFFSET + 6);
        if start & 0xff != 0x45
            || fields & 0xff3f != 0
            || list.strip + IP_OFFSET + total > end
            || total < Ipv4Header::LEN + TcpHeader::LEN
        {
            return None;
        }
        let source = |head: &[u8; TAKEN]| V4::from_word(u32_at(head, IP_OFFSET + 12));
        let destination = V4::from_word(u32_at(head, IP_OFFSET + 16));
        let protocol = (fields >> 24) as u8;
        let take = Decap { strip: list.strip, ethertype: low(ethernet::IPV4), ..Decap::default() };
        self.inner::<A, V4, TCP, HEAD, TAKEN>(list, taken, protocol, source, destination, take)
    }

    #[inline(always)]
    fn inner_v6<A: OuterFamily, const HEAD: usize>(
        &self,
        list: &List,
        taken: F::Rest<'_>,
        end: usize,
    ) -> Option<D::Done> {
        const TCP: usize = IP_OFFSET + Ipv6Header::LEN;
        const TAKEN: usize = TCP + TcpHeader::LEN;
        let head = taken.window::<TAKEN>()?;
        let total = Ipv6Header::LEN + u16::from_be(u16_at(head, IP_OFFSET + 4)) as usize;
        if head[IP_OFFSET] >> 4 != 6
            || list.strip + IP_OFFSET + total > end
            || total < Ipv6Header::LEN + TcpHeader::LEN
        {
            return None;
        }
        let source = |head: &[u8; TAKEN]| {
            V6::from_words([u64_at(head, IP_OFFSET + 8), u64_at(head, IP_OFFSET + 16)])
        };
        let destination =
            V6::from_words([u64_at(head, IP_OFFSET + 24), u64_at(head, IP_OFFSET + 32)]);
        let protocol = head[IP_OFFSET + 6];
        let take = Decap { strip: list.strip, ethertype: low(ethernet::IPV6), ..Decap::default() };
        self.inner::<A, V6, TCP, HEAD, TAKEN>(list, taken, protocol, source, destination, take)
    }

    /// Decides about a packet whose inner IP header has been checked. `source` reads its source address.
    #[inline(always)]
    fn inner<
        A: OuterFamily,
        I: Address,
        const TCP: usize,
        const HEAD: usize,
        const TAKEN: usize,
    >(
        &self,
        list: &List,
        taken: F::Rest<'_>,
        protocol: u8,
        source: impl Fn(&[u8; TAKEN]) -> I,
        destination: I,
        take: Decap,
    ) -> Option<D::Done> {
        let vip = self.host.vip(&destination)?;
        let head = taken.window::<TAKEN>()?;
        let reason = match protocol {
            protocol::TCP => match self.tcp::<A, I, TCP, TAKEN>(list, head, destination, source) {
                Tcp::Take(reason) => reason,
                Tcp::Send(hop, peer) => return Some(self.send(list, hop, peer, vip)),
                Tcp::Leave(reason) => return Some(self.actions.leave(reason, vip)),
                Tcp::GeneralProgram => return None,
            },
            protocol::UDP => Reason::TakenUdp,
            _ => return None,
        };
        Some(self.actions.take::<HEAD, TAKEN>(self.frame, taken, take, reason, vip))
    }

    /// Decides about the TCP segment at offset `TCP` of `head`.
    #[inline(always)]
    fn tcp<A: OuterFamily, I: Address, const TCP: usize, const TAKEN: usize>(
        &self,
        list: &List,
        head: &[u8; TAKEN],
        destination: I,
        source: impl Fn(&[u8; TAKEN]) -> I,
    ) -> Tcp<A> {
        let flags = head[TCP + 13];
        if flags & tcp::SYN != 0 {
            return Tcp::Take(Reason::TakenSyn);
        }
        // These are read after the SYN check because a SYN needs none of them.
        let (ports, numbers) = (u32_at(head, TCP), u64_at(head, TCP + 4));
        let flow = Flow {
            source: source(head),
            destination,
            source_port: u16::from_be(ports as u16),
            destination_port: u16::from_be((ports >> 16) as u16),
            protocol: protocol::TCP,
        };
        let may_carry_cookie = flags & (tcp::ACK | tcp::RST) == tcp::ACK;
        let ack = Ack { sequence: numbers as u32, acknowledgement: (numbers >> 32) as u32 };
        match self.host.find_socket(&flow, may_carry_cookie.then_some(ack)) {
            SocketMatch::Socket => return Tcp::Take(Reason::TakenEstablished),
            SocketMatch::SynCookie => return Tcp::Take(Reason::TakenCookie),
            SocketMatch::NoSocket => {}
        }
        if list.next_hop() >= list.hop_count {
            return Tcp::Take(Reason::TakenLastHop);
        }
        if !self.host.second_chance_enabled() {
            return Tcp::Take(Reason::TakenNoSecondChance);
        }
        match self.next::<A>(list) {
            None => Tcp::GeneralProgram,
            Some((hop, Hop::Peer(peer))) if peer.interface != 0 => Tcp::Send(hop, peer),
            Some((_, Hop::Peer(_))) => Tcp::Leave(Reason::PeerUnresolved),
            Some((_, Hop::Unknown)) => Tcp::Leave(Reason::UnknownPeer),
            // This machine may be listed twice in a row: the general program looks further.
            Some((_, Hop::Local)) if list.next_hop() + 1 < list.hop_count => Tcp::GeneralProgram,
            Some((_, Hop::Local)) => Tcp::Take(Reason::TakenOwnHop),
        }
    }

    /// Reads and resolves the next hop.
    #[inline(always)]
    fn next<A: OuterFamily>(&self, list: &List) -> Option<(A, Hop)> {
        let rest = if list.is_one {
            self.frame.rest_at(A::HOPS_OFFSET)
        } else {
            self.frame.rest(A::HOPS_OFFSET + list.next_hop() as usize * A::HOP_LEN)
        };
        let hop = A::read(&rest?)?;
        Some((hop, self.host.resolve_hop(&hop)))
    }

    #[inline(always)]
    fn send<A: OuterFamily>(&self, list: &List, hop: A, peer: PeerNextHop, vip: u32) -> D::Done {
        match A::readdress(self.frame, list.next_hop(), 0, hop) {
            Some(outer) => {
                self.actions.send(self.frame, &Forward { peer, outer }, Reason::Forwarded, vip)
            }
            None => self.actions.leave(Reason::OuterMalformed, vip),
        }
    }
}

const _: () = assert!(GueHeader::LEN == 8, "the GUE header is read as one word");
