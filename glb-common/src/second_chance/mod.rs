//! The backend's decision, pure: a packet of the tunnel and what this machine knows give a
//! verdict. Take it, send it to the next hop in its list, or leave it.
//!
//! [`decide`] is the whole decision. [`fast_path::decide`] comes to the same end for what makes up nearly
//! all packets, and to none for the others.

mod decap;
pub mod fast_path;
mod inner_packet;
pub mod layout;
mod rewrite;

pub use rewrite::{EcnMark, Forward, Readdressed, Take};

use crate::{
    hash::{Address, V4, V6},
    packet_access::Nested,
    parse::Flow,
    reason::RedirectReason as Reason,
    wire::{
        ethernet::{self, EthernetHeader},
        protocol,
    },
};
use decap::Outer;
use inner_packet::Answer;
use layout::Peer;

/// Who a flow belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// No connection of this machine.
    Nobody,
    /// A connection of this machine, in any state but LISTEN.
    Here,
    /// A connection that a valid SYN cookie is about to make.
    Cookie,
}

/// What a segment that may carry a SYN cookie says besides its flow: it has ACK, not SYN or RST.
/// Numbers as they lie on the wire, in native words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number: the cookie.
    pub acknowledgement: u32,
}

/// What an address in the list of hops is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// This machine's own.
    Own,
    /// A fellow backend's, and the way there.
    Peer(Peer),
    /// Neither.
    Unknown,
}

/// What this machine knows.
pub trait Host {
    /// Whether packets that are not ours are sent on.
    fn gives_second_chance(&self) -> bool;
    /// Whether strangers' packets are left to the kernel, not dropped.
    fn passes_strangers(&self) -> bool;
    /// Whether the tunnel may end at this address.
    fn is_own<A: Address>(&self, address: &A) -> bool;
    /// Whether this machine may send into the tunnel: a director or a fellow backend.
    fn may_send<A: Address>(&self, source: &A) -> bool;
    /// The number of the counters of this VIP; nothing if it is not an address that we serve.
    fn vip<A: Address>(&self, address: &A) -> Option<u32>;
    /// Whose flow this is, by the kernel's sockets. `ack` is what may be a SYN cookie.
    fn owner<A: Address>(&self, flow: &Flow<A>, ack: Option<Ack>) -> Owner;
    /// What this address in the list of hops is.
    fn hop<A: Address>(&self, address: &A) -> Hop;
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Left to the kernel as it came, or dropped: the reason says which.
    Leave,
    /// Stripped of its tunnel and handed to the kernel.
    Take,
    /// Sent to the next hop.
    Send,
}

/// The counters of packets that are for no VIP.
pub const NO_VIP: u32 = 0;

/// What becomes of a frame, why, and whose it is. Flat, with every field always set: what is
/// undefined on some ways through a BPF program is what the verifier stumbles over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What becomes of the frame.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// The number of the VIP's counters, [`NO_VIP`] if the decision came before the VIP was known.
    pub vip: u32,
    /// How it is taken, if it is.
    pub take: Take,
    /// How it is sent, if it is.
    pub forward: Forward,
}

impl Decision {
    #[inline(always)]
    fn leave(reason: Reason, vip: u32) -> Self {
        let (take, forward) = (Take::default(), Forward::default());
        Self { verdict: Verdict::Leave, reason, vip, take, forward }
    }

    #[inline(always)]
    fn take(reason: Reason, vip: u32, take: Take) -> Self {
        Self { verdict: Verdict::Take, take, ..Self::leave(reason, vip) }
    }

    #[inline(always)]
    fn send(reason: Reason, vip: u32, forward: Forward) -> Self {
        Self { verdict: Verdict::Send, forward, ..Self::leave(reason, vip) }
    }
}

/// Decides about a frame whose VLAN tags, if it had any, have been left out: see [`tags`].
#[inline(always)]
pub fn decide<F: Nested, H: Host>(frame: &F, host: &H) -> Decision {
    let mut vip = NO_VIP;
    match try_decide(frame, host, &mut vip) {
        Ok((reason, Ok(take))) => Decision::take(reason, vip, take),
        Ok((reason, Err(forward))) => Decision::send(reason, vip, forward),
        Err(reason) => Decision::leave(reason, vip),
    }
}

/// Bytes of a VLAN tag.
pub const TAG: usize = 4;

/// How many VLAN tags (802.1Q, 802.1ad; two at most) stand between the MAC addresses and the
/// EtherType. What follows the first `TAG` × this many bytes looks like a frame without tags, but
/// for the MAC addresses.
#[inline(always)]
pub fn tags<F: Nested>(frame: &F) -> usize {
    let is_tag = |offset| frame.read::<[u8; 2]>(offset).is_some_and(ethernet::is_tag);
    match (is_tag(12), is_tag(12 + TAG)) {
        (false, _) => 0,
        (true, false) => 1,
        (true, true) => 2,
    }
}

#[inline(always)]
fn try_decide<F: Nested, H: Host>(
    frame: &F,
    host: &H,
    vip: &mut u32,
) -> Result<(Reason, Result<Take, Forward>), Reason> {
    let Some(ethernet) = frame.read::<EthernetHeader>(0) else { return Err(Reason::NotTunnel) };
    let tunnel = match ethernet.ethertype {
        ethernet::IPV4 => decap::open_v4(frame, host)?,
        ethernet::IPV6 => decap::open_v6(frame, host)?,
        _ => return Err(Reason::NotTunnel),
    };
    let answer = match tunnel.inner_protocol {
        protocol::IPV4 => inner_packet::ask_v4(host, &tunnel, vip)?,
        protocol::IPV6 => inner_packet::ask_v6(host, &tunnel, vip)?,
        _ => return Err(Reason::BadInnerProtocol),
    };
    let reason = match answer {
        Answer::Take(reason) => reason,
        Answer::NotOurs(_) if tunnel.next_hop >= tunnel.hop_count => Reason::TakenLastHop,
        Answer::NotOurs(_) if !host.gives_second_chance() => Reason::TakenNoSecondChance,
        Answer::NotOurs(reason) => {
            let forwarded = if ethernet.ethertype == ethernet::IPV4 {
                forward::<F, H, V4>(frame, host, tunnel.next_hop, tunnel.hop_count)?
            } else {
                forward::<F, H, V6>(frame, host, tunnel.next_hop, tunnel.hop_count)?
            };
            match forwarded {
                Some(forward) => return Ok((reason, Err(forward))),
                None => Reason::TakenOwnHop,
            }
        }
    };
    Ok((reason, Ok(rewrite::take(&tunnel)?)))
}

/// The way on, or nothing if only this machine is left. It may be listed twice in a row: as the last
/// hop of a row, and as the first of the row of before that follows it while a hash changes.
#[inline(always)]
fn forward<F: Nested, H: Host, A: Outer>(
    frame: &F,
    host: &H,
    next_hop: u8,
    hop_count: u8,
) -> Result<Option<Forward>, Reason> {
    match forward_to::<F, H, A>(frame, host, next_hop, 0)? {
        None if next_hop + 1 < hop_count => forward_to::<F, H, A>(frame, host, next_hop, 1),
        found => Ok(found),
    }
}

/// The way on to the hop that stands `skipped` places beyond the next one, or nothing if that is this
/// machine.
#[inline(always)]
fn forward_to<F: Nested, H: Host, A: Outer>(
    frame: &F,
    host: &H,
    next_hop: u8,
    skipped: u8,
) -> Result<Option<Forward>, Reason> {
    let offset = A::HOPS_OFFSET + (next_hop as usize + skipped as usize) * A::HOP_LEN;
    // The list lies inside the packet (checked), so this fails only where it cannot be read.
    let Some(hop) = frame.rest(offset).and_then(|rest| A::read(&rest)) else {
        return Err(Reason::OuterMalformed);
    };
    let peer = match host.hop(&hop) {
        Hop::Own => return Ok(None),
        Hop::Unknown => return Err(Reason::UnknownPeer),
        Hop::Peer(peer) if peer.interface == 0 => return Err(Reason::PeerUnresolved),
        Hop::Peer(peer) => peer,
    };
    A::readdress(frame, next_hop, skipped, hop)
        .map(|outer| Some(Forward { peer, outer }))
        .ok_or(Reason::OuterMalformed)
}
