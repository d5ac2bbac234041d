//! The self-test of a generation: packets made for its configuration go through the program
//! (`BPF_PROG_TEST_RUN`), and what comes out is compared with the pure decision.
//!
//! The program under test is a second copy, loaded from the same image with counters of its own, so
//! that nothing of the test is counted and no way to a peer is touched.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use aya::programs::{ProgramError, TestRun as _, TestRunOptions};
use glb_common::{
    checksum,
    flow::{Address, Flow},
    reason::Action,
    second_chance::{
        Ack, Decision, Hop, Host, NO_VIP, SocketMatch, Verdict, abi::PeerNextHop, decide,
    },
};
use glb_host::bpf_loader::LoadError;

use crate::{
    config::{Config, Strangers},
    generation::Generation,
    image::Image,
};

/// The interface that a test run's packets come in by: the loopback's.
const TEST_INTERFACE: u32 = 1;
/// Nobody's, by RFC 5737 and RFC 3849: no connection of this machine is from there.
const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1);

const SYN: u8 = 2;
const ACK: u8 = 16;

/// Why a generation is not to be trusted.
#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    /// A test run could not be made.
    #[error("the self-test could not run: {0}")]
    Run(#[from] ProgramError),
    /// The copy could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The program's answer is not the right one.
    #[error(
        "self-test: the program does not do what it should with this packet; it is not used.\n  \
         packet:   {packet}\n  expected: {expected}\n  got:      {got}"
    )]
    Differs {
        /// The packet in hex.
        packet: String,
        /// The pure decision's answer.
        expected: String,
        /// The program's.
        got: String,
    },
}

/// Tries what `image` makes of a program on packets for `config` on a machine with these addresses;
/// how many they were.
///
/// # Errors
/// When an answer is wrong, or none could be had.
pub fn run(config: &Config, own: &BTreeSet<IpAddr>, image: &Image) -> Result<usize, SelfTestError> {
    try_out(config, own, image, Generation::load(image, None)?)
}

/// As [`run`], with the program that shows its decisions.
///
/// # Errors
/// As [`run`].
pub fn run_traced(
    config: &Config,
    own: &BTreeSet<IpAddr>,
    image: &Image,
) -> Result<usize, SelfTestError> {
    try_out(config, own, image, Generation::load_traced(image, None)?)
}

fn try_out(
    config: &Config,
    own: &BTreeSet<IpAddr>,
    image: &Image,
    mut generation: Generation,
) -> Result<usize, SelfTestError> {
    let way = PeerNextHop::new([2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 1], TEST_INTERFACE);
    for peer in &image.peers {
        generation.enter_peer(*peer, way)?;
    }
    let host = Known { config, own, peers: &image.peers, way };
    let packets = packets(&host);
    let program = generation.program()?;
    for packet in &packets {
        let (wanted, expected, name) = reference(&host, packet);
        let mut out = vec![0; packet.len() + 64];
        let result = program.test_run(TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ..TestRunOptions::default()
        })?;
        out.truncate(result.data_size_out as usize);
        if result.return_value != wanted || out != expected {
            return Err(SelfTestError::Differs {
                packet: hex(packet),
                expected: format!("verdict {wanted} ({name}), {}", hex(&expected)),
                got: format!("verdict {}, {}", result.return_value, hex(&out)),
            });
        }
    }
    Ok(packets.len())
}

/// The configuration, as the pure decision asks for it.
struct Known<'a> {
    config: &'a Config,
    own: &'a BTreeSet<IpAddr>,
    peers: &'a BTreeSet<IpAddr>,
    way: PeerNextHop,
}

fn ip_of<A: Address>(address: &A) -> IpAddr {
    let words = address.words().map(u64::to_le_bytes);
    let mut bytes = [0; 16];
    for (place, byte) in bytes.iter_mut().zip(words.as_flattened()) {
        *place = *byte;
    }
    match (A::FAMILY, bytes) {
        (4, [_, _, _, _, _, _, _, _, a, b, c, d, ..]) => IpAddr::from([a, b, c, d]),
        _ => IpAddr::from(bytes),
    }
}

impl Host for Known<'_> {
    fn second_chance_enabled(&self) -> bool {
        self.config.second_chance
    }

    fn passes_unknown_senders(&self) -> bool {
        self.config.strangers == Strangers::Pass
    }

    fn is_local<A: Address>(&self, address: &A) -> bool {
        self.own.contains(&ip_of(address))
    }

    fn may_send<A: Address>(&self, source: &A) -> bool {
        let source = ip_of(source);
        self.peers.contains(&source)
            || self.config.directors.iter().any(|net| net.contains(&source))
    }

    fn vip<A: Address>(&self, address: &A) -> Option<u32> {
        self.config.vips.contains(&ip_of(address)).then_some(NO_VIP)
    }

    fn find_socket<A: Address>(&self, _flow: &Flow<A>, _ack: Option<Ack>) -> SocketMatch {
        SocketMatch::NoSocket
    }

    fn resolve_hop<A: Address>(&self, address: &A) -> Hop {
        match ip_of(address) {
            own if self.own.contains(&own) => Hop::Local,
            peer if self.peers.contains(&peer) => Hop::Peer(self.way),
            _ => Hop::Unknown,
        }
    }
}

/// The verdict, the frame afterwards, and the reason's name.
fn reference(host: &Known<'_>, packet: &[u8]) -> (u32, Vec<u8>, &'static str) {
    const XDP_DROP: u32 = 1;
    const XDP_PASS: u32 = 2;
    const XDP_TX: u32 = 3;
    let mut frame = packet.to_vec();
    let Decision { verdict, reason, decap, forward, .. } = decide(&packet, host);
    let written = match verdict {
        Verdict::Leave => true,
        Verdict::Take => {
            frame.drain(14..14 + decap.strip);
            frame[12..14].copy_from_slice(&decap.ethertype.to_le_bytes()[..2]);
            decap.mark(&mut frame[..])
        }
        Verdict::Send => forward.write(&mut frame[..]),
    };
    let number = match reason.action() {
        _ if !written => XDP_DROP,
        Action::Pass | Action::Take => XDP_PASS,
        Action::Drop | Action::Answer => XDP_DROP,
        Action::Send => XDP_TX,
    };
    (number, frame, reason.name())
}

/// A packet of each kind, over each family that the tunnel can have here, to the first and the last
/// VIP of each family.
fn packets(host: &Known<'_>) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for v4 in [true, false] {
        let of = |set: &BTreeSet<IpAddr>| -> Vec<IpAddr> {
            set.iter().filter(|address| address.is_ipv4() == v4).copied().collect()
        };
        let stranger: IpAddr = if v4 { CLIENT_V4.into() } else { CLIENT_V6.into() };
        let peers = of(host.peers);
        let mut directors = host.config.directors.iter().map(ipnet::IpNet::network);
        let director = directors.rfind(|net| net.is_ipv4() == v4);
        let Some(own) = of(host.own).last().copied() else { continue };
        let hop = peers.last().copied().unwrap_or(stranger);
        let vips = host.config.vips.iter();
        let ends = [true, false].map(|v4| vips.clone().filter(move |vip| vip.is_ipv4() == v4));
        for vip in ends.into_iter().flat_map(|mut of| of.clone().take(1).chain(of.next_back())) {
            for sender in director.into_iter().chain(peers.first().copied()) {
                packets.push(tunnelled(sender, own, &[hop], *vip, SYN));
                packets.push(tunnelled(sender, own, &[hop], *vip, ACK));
            }
            packets.push(tunnelled(stranger, own, &[hop], *vip, SYN));
            if let Some(director) = director {
                packets.push(tunnelled(director, own, &[], *vip, ACK));
                packets.push(tunnelled(director, own, &[stranger], *vip, ACK));
                packets.push(tunnelled(director, stranger, &[hop], *vip, SYN));
            }
        }
        if let Some(director) = director {
            // Whether or not it is somebody's VIP, it is none of ours.
            packets.push(tunnelled(director, own, &[hop], stranger, SYN));
        }
    }
    packets
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// An IP packet with a right header checksum.
fn packet(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    if source.is_ipv4() {
        packet.extend([0x45, 0]);
        packet.extend((20 + payload.len() as u16).to_be_bytes());
        packet.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    } else {
        packet.extend([0x60, 0, 0, 0]);
        packet.extend((payload.len() as u16).to_be_bytes());
        packet.extend([protocol, 64]);
    }
    packet.extend(octets(source));
    packet.extend(octets(destination));
    if source.is_ipv4() {
        let words = packet.chunks_exact(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
        let sum = !checksum::fold(words.sum());
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    packet.extend(payload);
    packet
}

/// A TCP segment to a VIP in the tunnel, Ethernet header included.
fn tunnelled(from: IpAddr, to: IpAddr, hops: &[IpAddr], vip: IpAddr, flags: u8) -> Vec<u8> {
    let client: IpAddr = if vip.is_ipv4() { CLIENT_V4.into() } else { CLIENT_V6.into() };
    let mut tcp = vec![0, 9, 0, 9, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags];
    tcp.extend([1, 0, 0, 0, 0, 0]);
    let inner = packet(client, vip, 6, &tcp);
    let list: Vec<u8> = hops.iter().flat_map(|hop| octets(*hop)).collect();
    let mut gue = vec![1 + (list.len() / 4) as u8, if vip.is_ipv4() { 4 } else { 41 }, 0, 0];
    gue.extend([0, u8::from(from.is_ipv6()), 0, hops.len() as u8]);
    gue.extend(list);
    gue.extend(inner);
    let mut udp = vec![0x80, 1, 0x4c, 0x43];
    udp.extend((8 + gue.len() as u16).to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(gue);
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(if from.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] });
    frame.extend(packet(from, to, 17, &udp));
    frame
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
