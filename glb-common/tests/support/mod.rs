//! Shared parts of the tests of the backend's decision: packets, a fake host, and the edits applied to
//! slices. The kernel tests of glb-redirect use them too.
#![allow(dead_code, unreachable_pub, reason = "each test uses its part")]

pub mod golden;
pub mod packet;

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use glb_common::{
    flow::{Address, Flow},
    reason::{Action, RedirectReason as Reason},
    second_chance::{
        Ack, Decision, Hop, Host, NO_VIP, SocketMatch, TAG, Verdict, abi::PeerNextHop, decide,
        fast_path, tags,
    },
};

/// A host with given addresses and connections.
#[derive(Clone, Debug, Default)]
pub struct FakeHost {
    pub no_second_chance: bool,
    pub passes_unknown_senders: bool,
    pub own: HashSet<IpAddr>,
    /// Address and prefix length.
    pub senders: Vec<(IpAddr, u8)>,
    pub vips: HashSet<IpAddr>,
    /// Connections, client first.
    pub flows: HashSet<(SocketAddr, SocketAddr)>,
    /// Flows whose ACK returns a valid SYN cookie.
    pub cookies: HashSet<(SocketAddr, SocketAddr)>,
    pub peers: HashMap<IpAddr, PeerNextHop>,
}

/// Converts an address of glb-common.
pub fn ip_of<A: Address>(address: &A) -> IpAddr {
    let [high, low] = address.words();
    if A::FAMILY == 4 {
        return IpAddr::from((low as u32).to_le_bytes());
    }
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&high.to_le_bytes());
    bytes[8..].copy_from_slice(&low.to_le_bytes());
    IpAddr::from(bytes)
}

fn covers((network, bits): (IpAddr, u8), address: IpAddr) -> bool {
    match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            network.to_bits() & mask == address.to_bits() & mask
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            network.to_bits() & mask == address.to_bits() & mask
        }
        _ => false,
    }
}

impl Host for FakeHost {
    fn second_chance_enabled(&self) -> bool {
        !self.no_second_chance
    }

    fn passes_unknown_senders(&self) -> bool {
        self.passes_unknown_senders
    }

    fn is_local<A: Address>(&self, address: &A) -> bool {
        self.own.contains(&ip_of(address))
    }

    fn may_send<A: Address>(&self, source: &A) -> bool {
        let source = ip_of(source);
        self.peers.contains_key(&source)
            || self.senders.iter().any(|network| covers(*network, source))
    }

    fn vip<A: Address>(&self, address: &A) -> Option<u32> {
        self.vips.contains(&ip_of(address)).then_some(NO_VIP)
    }

    fn find_socket<A: Address>(&self, flow: &Flow<A>, ack: Option<Ack>) -> SocketMatch {
        let key = (
            SocketAddr::new(ip_of(&flow.source), flow.source_port),
            SocketAddr::new(ip_of(&flow.destination), flow.destination_port),
        );
        if self.flows.contains(&key) {
            SocketMatch::Socket
        } else if ack.is_some() && self.cookies.contains(&key) {
            SocketMatch::SynCookie
        } else {
            SocketMatch::NoSocket
        }
    }

    fn resolve_hop<A: Address>(&self, address: &A) -> Hop {
        let address = ip_of(address);
        match self.peers.get(&address) {
            _ if self.own.contains(&address) => Hop::Local,
            Some(peer) => Hop::Peer(*peer),
            None => Hop::Unknown,
        }
    }
}

/// A peer with a MAC address that ends in `last`.
pub fn peer(last: u8) -> PeerNextHop {
    PeerNextHop::new(peer_mac(last), OWN_MAC, 7)
}

/// The MAC of [`peer`].
pub fn peer_mac(last: u8) -> [u8; 6] {
    [2, 0, 0, 0, 1, last]
}

/// MAC of the machine under test.
pub const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Source MAC of frames that this machine sends.
pub const SENDER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// The interface that frames come in by.
pub const TEST_INTERFACE: u32 = 1;

/// The result of a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub reason: Reason,
    pub action: Action,
    /// The frame afterwards.
    pub frame: Vec<u8>,
}

/// Decides about a frame and applies the decision.
pub fn run(host: &FakeHost, received: &[u8]) -> Outcome {
    let tag_bytes = TAG * tags(&received);
    let mut start = received[..received.len().min(12 + tag_bytes)].to_vec();
    let mut rest = received.to_vec();
    rest.drain(..tag_bytes.min(received.len()));
    let decision = decide(&&rest[..], host);
    let Decision { verdict, reason, decap, forward, .. } = decision;
    // The quick decision is the same, or none.
    if let Some(quick) = fast_path::decide(&received, host, &fast_path::AsDecision) {
        assert_eq!(quick, decision, "the quick decision, of {received:02x?}");
    }
    match verdict {
        Verdict::Leave => {}
        Verdict::Take => {
            rest.drain(14..14 + decap.strip);
            rest[12..14].copy_from_slice(&decap.ethertype.to_le_bytes()[..2]);
            assert!(decap.mark(&mut rest[..]), "the mark lies outside the frame");
        }
        Verdict::Send => {
            assert!(forward.write_outer(&mut rest[..]), "an edit lies outside the frame");
            assert!(forward.write_macs(&mut start[..]), "an edit lies outside the frame");
            if forward.peer.interface != TEST_INTERFACE || forward.peer.tag != 0 {
                start.truncate(12);
            }
            if forward.peer.tag != 0 {
                start.extend(forward.peer.tag.to_ne_bytes());
            }
        }
    }
    // The pieces together again: MAC addresses and tags, then what follows.
    let frame = if rest.len() < 12 {
        received.to_vec()
    } else {
        start.extend_from_slice(&rest[12..]);
        start
    };
    Outcome { reason, action: reason.action(), frame }
}

/// The machine of most tests: 10.0.2.21, with one director, two fellows and a VIP of each family.
pub fn backend() -> FakeHost {
    let peers = [
        (IpAddr::V4(Ipv4Addr::new(10, 0, 2, 22)), peer(22)),
        (IpAddr::V4(Ipv4Addr::new(10, 0, 2, 23)), peer(23)),
        (IpAddr::V4(Ipv4Addr::new(10, 0, 2, 24)), PeerNextHop::default()),
        (ip("fd00:2::22"), peer(122)),
        (ip("fd00:2::24"), PeerNextHop::default()),
    ];
    FakeHost {
        own: [ip("10.0.2.21"), ip("fd00:2::21")].into(),
        senders: vec![(ip("10.0.2.10"), 31), (ip("fd00:2::10"), 127)],
        vips: [ip("203.0.113.10"), ip("2001:db8::10")].into(),
        peers: peers.into(),
        ..FakeHost::default()
    }
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap()
}
