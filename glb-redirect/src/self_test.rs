//! The self-test of a generation: synthetic packets run through the program (`BPF_PROG_TEST_RUN`), and
//! the results are compared with [`glb_common::second_chance::decide`].
//!
//! The program under test is a second copy with the same data and private counters, so that the test
//! neither counts packets nor changes next hops.

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
    config::{Config, UnknownSenders},
    generation::Generation,
    program_data::ProgramData,
};

/// The ingress interface of a test run's packets: lo.
const TEST_INTERFACE: u32 = 1;
/// Documentation addresses (RFC 5737 and RFC 3849): no real client has them.
const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1);

const SYN: u8 = 2;
const ACK: u8 = 16;

/// Why a generation must not be activated.
#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    /// The kernel refused a test run.
    #[error("cannot run the self-test (BPF_PROG_TEST_RUN): {0}")]
    Run(#[from] ProgramError),
    /// The copy could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The program handled a packet wrongly.
    #[error(
        "self-test failed: the program handles a packet wrongly and is not activated. This is a bug: \
         please report it with these lines.\n  packet:   {packet}\n  expected: {expected}\n  got:      {got}"
    )]
    Differs {
        /// The packet in hex.
        packet: String,
        /// The reference decision's result.
        expected: String,
        /// The program's result.
        got: String,
    },
}

/// Tests the program with `data` on packets for `config`, on a host with the addresses `own`. Returns
/// the number of packets.
///
/// # Errors
/// When the program handles a packet wrongly, or cannot be run.
pub fn run(
    config: &Config,
    own: &BTreeSet<IpAddr>,
    data: &ProgramData,
) -> Result<usize, SelfTestError> {
    test_packets(config, own, data, Generation::load(data, None)?)
}

/// As [`run`], with the program build that reports its decisions.
///
/// # Errors
/// As [`run`].
pub fn run_traced(
    config: &Config,
    own: &BTreeSet<IpAddr>,
    data: &ProgramData,
) -> Result<usize, SelfTestError> {
    test_packets(config, own, data, Generation::load_traced(data, None)?)
}

fn test_packets(
    config: &Config,
    own: &BTreeSet<IpAddr>,
    data: &ProgramData,
    mut generation: Generation,
) -> Result<usize, SelfTestError> {
    let way = PeerNextHop::new([2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 1], TEST_INTERFACE);
    for peer in &data.peers {
        generation.set_next_hop(*peer, way)?;
    }
    let host = ReferenceHost { config, own, peers: &data.peers, way };
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

/// The configuration in the form that the reference decision needs.
struct ReferenceHost<'a> {
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

impl Host for ReferenceHost<'_> {
    fn second_chance_enabled(&self) -> bool {
        self.config.second_chance
    }

    fn passes_unknown_senders(&self) -> bool {
        self.config.unknown_senders == UnknownSenders::Pass
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
fn reference(host: &ReferenceHost<'_>, packet: &[u8]) -> (u32, Vec<u8>, &'static str) {
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
fn packets(host: &ReferenceHost<'_>) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for v4 in [true, false] {
        let of = |set: &BTreeSet<IpAddr>| -> Vec<IpAddr> {
            set.iter().filter(|address| address.is_ipv4() == v4).copied().collect()
        };
        let unknown: IpAddr = if v4 { CLIENT_V4.into() } else { CLIENT_V6.into() };
        let peers = of(host.peers);
        let mut directors = host.config.directors.iter().map(ipnet::IpNet::network);
        let director = directors.rfind(|net| net.is_ipv4() == v4);
        let Some(own) = of(host.own).last().copied() else { continue };
        let hop = peers.last().copied().unwrap_or(unknown);
        let vips = host.config.vips.iter();
        let ends = [true, false].map(|v4| vips.clone().filter(move |vip| vip.is_ipv4() == v4));
        for vip in ends.into_iter().flat_map(|mut of| of.clone().take(1).chain(of.next_back())) {
            for sender in director.into_iter().chain(peers.first().copied()) {
                packets.push(tunnelled(sender, own, &[hop], *vip, SYN));
                packets.push(tunnelled(sender, own, &[hop], *vip, ACK));
            }
            packets.push(tunnelled(unknown, own, &[hop], *vip, SYN));
            if let Some(director) = director {
                packets.push(tunnelled(director, own, &[], *vip, ACK));
                packets.push(tunnelled(director, own, &[unknown], *vip, ACK));
                packets.push(tunnelled(director, unknown, &[hop], *vip, SYN));
            }
        }
        if let Some(director) = director {
            // An inner destination that is not a VIP of this backend.
            packets.push(tunnelled(director, own, &[hop], unknown, SYN));
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

/// An IP packet with a valid header checksum.
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

/// A TCP segment to a VIP inside the tunnel, Ethernet header included.
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
