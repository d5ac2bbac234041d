//! Second chance: the backend's decision about a tunnelled packet.
//!
//! A backend decapsulates a packet that belongs to one of its own connections and sends all other packets to the next backend in the packet's hop list. The decision is a pure function of the frame
//! and of a [`Host`], which answers questions about the machine; the tests use a fake host, the BPF
//! program uses maps and the kernel's socket table.
//!
//! The steps and their modules:
//!
//! 1. `tunnel` checks the outer headers: is this a tunnel packet, sent to this machine by a permitted
//!    sender? It is the only module that knows the outer format.
//! 2. `inner_packet` checks the inner headers and asks the kernel's socket table whose flow it is.
//! 3. [`decide`] combines both into a [`Decision`].
//! 4. `rewrite` holds the edits: [`Decap`] cuts the tunnel out, [`Forward`] readdresses the packet.
//!
//! [`fast_path::decide`] gives the same decision for ordinary packets in fewer instructions, and none
//! for the others. [`abi`] holds the structs that the program shares with user space.

pub mod abi;
pub mod fast_path;
mod inner_packet;
mod rewrite;
mod tunnel;

pub use rewrite::{Decap, EcnMark, Forward};
pub use tunnel::OuterRewrite;

use crate::{
    flow::{Address, Flow, V4, V6},
    packet_access::Nested,
    reason::RedirectReason as Reason,
    wire::{
        ethernet::{self, EthernetHeader},
        protocol,
    },
};

use abi::PeerNextHop;
use inner_packet::Ownership;
use tunnel::OuterFamily;

/// The result of a socket look-up for a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketMatch {
    /// This machine has no connection for the flow.
    NoSocket,
    /// This machine has a connection for the flow, in any state but LISTEN.
    Socket,
    /// A listener accepts the segment's SYN cookie, which makes a connection of it.
    SynCookie,
}

/// The numbers of a segment that may return a SYN cookie: it has ACK set, SYN and RST clear. They are
/// native words with the bytes as they lie on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number: the cookie plus one.
    pub acknowledgement: u32,
}

/// The role of an address in a hop list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// An address of this machine.
    Local,
    /// The address of a fellow backend, with its next hop.
    Peer(PeerNextHop),
    /// An address that is neither.
    Unknown,
}

/// The machine that decides: its configuration, addresses and sockets.
pub trait Host {
    /// True if packets of other backends' connections are forwarded to the next hop.
    fn second_chance_enabled(&self) -> bool;
    /// True if tunnel packets from unknown senders are left to the kernel instead of dropped.
    fn passes_unknown_senders(&self) -> bool;
    /// True if the tunnel may end at this address.
    fn is_local<A: Address>(&self, address: &A) -> bool;
    /// True if a machine may send into the tunnel: it is a director or a fellow backend.
    fn may_send<A: Address>(&self, source: &A) -> bool;
    /// The index of a VIP's counters; `None` if this machine does not serve the address.
    fn vip<A: Address>(&self, address: &A) -> Option<u32>;
    /// Looks a flow up in the kernel's socket table. `ack` is set if the segment may return a SYN
    /// cookie.
    fn find_socket<A: Address>(&self, flow: &Flow<A>, ack: Option<Ack>) -> SocketMatch;
    /// The role of an address in a hop list.
    fn resolve_hop<A: Address>(&self, address: &A) -> Hop;
}

/// The program's action on a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Leaves the frame unchanged. [`Reason::action`] tells whether the kernel gets it or it is dropped.
    Leave,
    /// Decapsulates the packet and passes it to the kernel.
    Take,
    /// Sends the packet to the next hop.
    Send,
}

/// The index of the counters for packets of no VIP.
pub const NO_VIP: u32 = 0;

/// The decision about a frame: the verdict, its reason, the VIP, and the edit that goes with it.
///
/// The struct is flat and every field is always set: the verifier rejects a program that copies a
/// value which some paths leave undefined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The action on the frame.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// The index of the VIP's counters; [`NO_VIP`] if the decision came before the VIP was known.
    pub vip: u32,
    /// The edit for [`Verdict::Take`].
    pub decap: Decap,
    /// The edit for [`Verdict::Send`].
    pub forward: Forward,
}

impl Decision {
    #[inline(always)]
    fn leave(reason: Reason, vip: u32) -> Self {
        let (decap, forward) = (Decap::default(), Forward::default());
        Self { verdict: Verdict::Leave, reason, vip, decap, forward }
    }

    #[inline(always)]
    fn take(reason: Reason, vip: u32, decap: Decap) -> Self {
        Self { verdict: Verdict::Take, decap, ..Self::leave(reason, vip) }
    }

    #[inline(always)]
    fn send(reason: Reason, vip: u32, forward: Forward) -> Self {
        Self { verdict: Verdict::Send, forward, ..Self::leave(reason, vip) }
    }
}

/// The outcome for a tunnel packet that passed all checks.
enum Accepted {
    /// This machine decapsulates it.
    Take(Reason, Decap),
    /// The next hop gets it.
    Send(Reason, Forward),
}

/// Decides about a frame. VLAN tags, if it had any, have been skipped: see [`tags`].
#[inline(always)]
pub fn decide<F: Nested, H: Host>(frame: &F, host: &H) -> Decision {
    let mut vip = NO_VIP;
    match accept(frame, host, &mut vip) {
        Ok(Accepted::Take(reason, decap)) => Decision::take(reason, vip, decap),
        Ok(Accepted::Send(reason, forward)) => Decision::send(reason, vip, forward),
        Err(reason) => Decision::leave(reason, vip),
    }
}

/// Length of a VLAN tag in bytes.
pub const TAG: usize = 4;

/// Counts the VLAN tags (802.1Q, 802.1ad; two at most) between the MAC addresses and the EtherType.
/// The rest of the frame from `TAG` times this number on looks like a frame without tags, but for
/// the MAC addresses.
#[inline(always)]
pub fn tags<F: Nested>(frame: &F) -> usize {
    let is_tag = |offset| frame.read::<[u8; 2]>(offset).is_some_and(ethernet::is_tag);
    match (is_tag(12), is_tag(12 + TAG)) {
        (false, _) => 0,
        (true, false) => 1,
        (true, true) => 2,
    }
}

/// Checks the outer headers, then the inner ones, and chooses between taking and sending. Sets `vip`
/// as soon as the packet's VIP is known.
///
/// # Errors
/// The reason why the frame is left unchanged.
#[inline(always)]
fn accept<F: Nested, H: Host>(frame: &F, host: &H, vip: &mut u32) -> Result<Accepted, Reason> {
    let Some(ethernet) = frame.read::<EthernetHeader>(0) else { return Err(Reason::NotTunnel) };
    let tunnel = match ethernet.ethertype {
        ethernet::IPV4 => tunnel::open_v4(frame, host)?,
        ethernet::IPV6 => tunnel::open_v6(frame, host)?,
        _ => return Err(Reason::NotTunnel),
    };
    let ownership = match tunnel.inner_protocol {
        protocol::IPV4 => inner_packet::classify_v4(host, &tunnel, vip)?,
        protocol::IPV6 => inner_packet::classify_v6(host, &tunnel, vip)?,
        _ => return Err(Reason::BadInnerProtocol),
    };
    let reason = match ownership {
        Ownership::Here(reason) => reason,
        Ownership::Elsewhere(_) if tunnel.next_hop >= tunnel.hop_count => Reason::TakenLastHop,
        Ownership::Elsewhere(_) if !host.second_chance_enabled() => Reason::TakenNoSecondChance,
        Ownership::Elsewhere(reason) => {
            let forward = if ethernet.ethertype == ethernet::IPV4 {
                forward::<F, H, V4>(frame, host, tunnel.next_hop, tunnel.hop_count)?
            } else {
                forward::<F, H, V6>(frame, host, tunnel.next_hop, tunnel.hop_count)?
            };
            match forward {
                Some(forward) => return Ok(Accepted::Send(reason, forward)),
                None => Reason::TakenOwnHop,
            }
        }
    };
    Ok(Accepted::Take(reason, rewrite::decap(&tunnel)?))
}

/// The edit that sends a packet to the next hop, or `None` if only this machine is left. This machine
/// may be listed twice in a row: as the last hop of a row, and as the first hop of the alternative row
/// that follows.
#[inline(always)]
fn forward<F: Nested, H: Host, A: OuterFamily>(
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

/// The edit that sends a packet to the hop `skipped` entries after the next one, or `None` if that is
/// this machine.
#[inline(always)]
fn forward_to<F: Nested, H: Host, A: OuterFamily>(
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
    let peer = match host.resolve_hop(&hop) {
        Hop::Local => return Ok(None),
        Hop::Unknown => return Err(Reason::UnknownPeer),
        Hop::Peer(peer) if peer.interface == 0 => return Err(Reason::PeerUnresolved),
        Hop::Peer(peer) => peer,
    };
    A::readdress(frame, next_hop, skipped, hop)
        .map(|outer| Some(Forward { peer, outer }))
        .ok_or(Reason::OuterMalformed)
}
