//! The backend's decision, pure: a packet of the tunnel and what this machine knows give a
//! verdict. Take it, send it to the next hop in its list, or leave it.

mod edit;
mod inner;
pub mod layout;
mod outer;

pub use edit::{EcnMark, Forward, Readdressed, Take};

use crate::{
    frame::{Frame as _, Nested},
    hash::{Address, V4, V6},
    parse::Flow,
    reason::RedirectReason as Reason,
    wire::{
        ethernet::{self, EthernetHeader},
        protocol,
    },
};
use inner::Answer;
use layout::Peer;
use outer::Outer;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Sequence number, big endian.
    pub sequence: [u8; 4],
    /// Acknowledgement number, big endian: the cookie.
    pub acknowledgement: [u8; 4],
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
    /// Whether this is an address that we serve.
    fn is_vip<A: Address>(&self, address: &A) -> bool;
    /// Whose flow this is, by the kernel's sockets. `ack` is what may be a SYN cookie.
    fn owner<A: Address>(&self, flow: &Flow<A>, ack: Option<Ack>) -> Owner;
    /// The way to a fellow backend; nothing if it is not one.
    fn peer<A: Address>(&self, address: &A) -> Option<Peer>;
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Left to the kernel as it came, or dropped: the reason says which.
    Leave(Reason),
    /// Stripped of its tunnel and handed to the kernel.
    Take(Take),
    /// Sent to the next hop.
    Send(Forward),
}

impl Verdict {
    /// The reason, for the counter.
    #[inline(always)]
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Leave(reason) => *reason,
            Self::Take(take) => take.reason,
            Self::Send(forward) => forward.reason,
        }
    }
}

/// Decides about a frame.
#[inline(always)]
pub fn decide<F: Nested, H: Host>(frame: &F, host: &H) -> Verdict {
    match try_decide(frame, host) {
        Ok(verdict) => verdict,
        Err(reason) => Verdict::Leave(reason),
    }
}

#[inline(always)]
fn try_decide<F: Nested, H: Host>(frame: &F, host: &H) -> Result<Verdict, Reason> {
    let Some(ethernet) = frame.read::<EthernetHeader>(0) else { return Err(Reason::NotTunnel) };
    let tunnel = match ethernet.ethertype {
        ethernet::IPV4 => outer::open_v4(frame, host)?,
        ethernet::IPV6 => outer::open_v6(frame, host)?,
        _ => return Err(Reason::NotTunnel),
    };
    let answer = match tunnel.inner_protocol {
        protocol::IPV4 => inner::ask_v4(host, &tunnel)?,
        protocol::IPV6 => inner::ask_v6(host, &tunnel)?,
        _ => return Err(Reason::BadInnerProtocol),
    };
    let (reason, forwarded) = match answer {
        Answer::Take(reason) => (reason, None),
        Answer::NotOurs(_) if tunnel.next_hop >= tunnel.hop_count => (Reason::TakenLastHop, None),
        Answer::NotOurs(_) if !host.gives_second_chance() => (Reason::TakenNoSecondChance, None),
        Answer::NotOurs(reason) => {
            let forwarded = if ethernet.ethertype == ethernet::IPV4 {
                forward::<F, H, V4>(frame, host, tunnel.next_hop, reason)?
            } else {
                forward::<F, H, V6>(frame, host, tunnel.next_hop, reason)?
            };
            (Reason::TakenOwnHop, forwarded)
        }
    };
    match forwarded {
        Some(forwarded) => Ok(Verdict::Send(forwarded)),
        None => Ok(Verdict::Take(edit::take(&tunnel, reason)?)),
    }
}

/// The way on, or nothing if the next hop is this machine.
#[inline(always)]
fn forward<F: Nested, H: Host, A: Outer>(
    frame: &F,
    host: &H,
    next_hop: u8,
    reason: Reason,
) -> Result<Option<Forward>, Reason> {
    let offset = A::HOPS_OFFSET + next_hop as usize * size_of::<A::Bytes>();
    // The list lies inside the packet (checked), so this fails only where it cannot be read.
    let Some(hop) = frame.rest(offset).and_then(|rest| rest.read::<A::Bytes>(0)) else {
        return Err(Reason::OuterMalformed);
    };
    let hop = A::from_bytes(hop);
    if host.is_own(&hop) {
        return Ok(None);
    }
    let Some(peer) = host.peer(&hop) else { return Err(Reason::UnknownPeer) };
    if peer.interface == 0 {
        return Err(Reason::PeerUnresolved);
    }
    A::readdress(frame, next_hop, hop)
        .map(|outer| Some(Forward { reason, peer, outer }))
        .ok_or(Reason::OuterMalformed)
}
