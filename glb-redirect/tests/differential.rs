//! Differential test: generated packets, most of them malformed, run through the program in the kernel
//! and through the reference decision. Verdict, bytes and counters must be equal. Needs root.
//!
//! `GLB_TEST_SEED` repeats a run, `GLB_TEST_PACKETS` makes it longer.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;
#[path = "../../glb-common/tests/support/mod.rs"]
mod support;

use std::{
    collections::BTreeMap,
    env,
    net::{IpAddr, SocketAddr, TcpListener},
    time::{SystemTime, UNIX_EPOCH},
};

use common::{in_namespace, program::Program, tcp::Client};
use glb_common::reason::RedirectReason as Reason;
use support::{
    FakeHost, backend, ip,
    packet::{Gue, Segment, extended, gue, gue_v6, icmp, ip_packet, segment, tagged, too_big},
    peer, socket,
};

/// Least number of packets in a run.
const PACKETS: usize = 250_000;
/// Number of packets between two comparisons of the counters.
const BATCH: usize = 5_000;

/// The SplitMix64 generator.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn byte(&mut self) -> u8 {
        self.next() as u8
    }

    fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    fn choose<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// The configurations that take turns.
fn hosts() -> Vec<FakeHost> {
    let mut many = backend();
    many.vips.extend((0..20).map(|i| ip(&format!("203.0.113.{}", 100 + i))));
    many.senders.extend((0..20).map(|i| (ip(&format!("10.{i}.7.0")), 24)));
    many.senders.extend((0..20).map(|i| (ip(&format!("fd00:{i:x}:7::")), 48)));
    let mut v4_only = backend();
    v4_only.own.retain(IpAddr::is_ipv4);
    v4_only.vips.retain(IpAddr::is_ipv4);
    v4_only.senders.retain(|(ip, _)| ip.is_ipv4());
    v4_only.peers.retain(|ip, _| ip.is_ipv4());
    let mut back = backend();
    back.peers.insert(ip("10.0.2.23"), {
        glb_common::second_chance::abi::PeerNextHop {
            interface: common::program::TEST_INTERFACE,
            ..peer(23)
        }
    });
    // Directors by address only, without a network.
    back.senders = vec![(ip("10.0.2.10"), 32), (ip("fd00:2::10"), 128)];
    let mut on_vlan = backend();
    for (address, interface) in
        [("10.0.2.22", common::program::TEST_INTERFACE), ("10.0.2.23", 7), ("fd00:2::22", 7)]
    {
        let way = on_vlan.peers.get_mut(&ip(address)).unwrap();
        (way.interface, way.tag) = (interface, 0x8100_0064_u32.to_be());
    }
    vec![
        backend(),
        back,
        on_vlan,
        FakeHost { no_second_chance: true, ..backend() },
        FakeHost { passes_unknown_senders: true, ..many },
        v4_only,
    ]
}

struct Generator {
    random: Random,
    /// Connections of this host.
    here: Vec<Client>,
}

impl Generator {
    fn flow(&mut self, v6: bool) -> (SocketAddr, SocketAddr) {
        let here: Vec<Client> =
            self.here.iter().filter(|flow| flow.vip.is_ipv6() == v6).copied().collect();
        if self.random.once_in(2) {
            let flow = self.random.choose(&here);
            return (flow.client, flow.vip);
        }
        let (mut client, mut vip) = if v6 {
            (socket("[2001:db8:9::7]:40000"), socket("[2001:db8::10]:80"))
        } else {
            (socket("198.51.100.7:40000"), socket("203.0.113.10:80"))
        };
        client.set_port(self.random.choose(&[1, 40_000, 40_001, 40_099]));
        vip.set_port(self.random.choose(&[80, 80, 81]));
        if self.random.once_in(8) {
            // Unused entries hold addresses of zeroes; a backend's address is in the table, but not a VIP.
            vip.set_ip(ip(self.random.choose(if v6 {
                &["2001:db8::11", "2001:db8:0:1::10", "::", "fd00:2::21", "fd00:2::22"]
            } else {
                &["203.0.113.100", "203.0.113.100", "0.0.0.0", "10.0.2.21", "10.0.2.22"]
            })));
        }
        (client, vip)
    }

    fn inner(&mut self) -> Vec<u8> {
        let v6 = self.random.once_in(2);
        let (client, vip) = self.flow(v6);
        let router = if v6 { ip("2001:db8:9::1") } else { ip("192.0.2.1") };
        match self.random.below(20) {
            0..12 => {
                let segment = Segment {
                    data: if self.random.once_in(20) {
                        self.random.choose(&[3_380, 3_400, 3_420, 5_000, 9_000])
                    } else {
                        self.random.choose(&[0, 0, 1, 64, 1400])
                    },
                    ecn: self.random.byte() & 3,
                    ..segment(client, vip, 0)
                };
                let flags =
                    self.random.choose(&[0x10, 0x10, 0x10, 0x18, 0x11, 0x04, 0x02, 0x12, 0, 0xff]);
                let packet = Segment { flags, ..segment }.packet();
                match (v6, self.random.once_in(4)) {
                    (_, false) => packet,
                    (false, true) => self.with_options(packet),
                    (true, true) => self.with_extension_headers(&packet),
                }
            }
            12..15 => {
                let error = too_big(router, client, vip);
                if self.random.once_in(4) { self.another_code(error, v6) } else { error }
            }
            15 => {
                let kind = if v6 {
                    self.random.choose(&[1, 3, 4, 128, 129, 135])
                } else {
                    self.random.choose(&[0, 3, 5, 8, 11, 12])
                };
                let quoted = segment(vip, client, 0x10).packet();
                icmp(router, vip.ip(), kind, self.random.byte() & 7, &quoted)
            }
            16 => {
                let about = SocketAddr::new(
                    if v6 { ip("2001:db8::99") } else { ip("203.0.113.99") },
                    vip.port(),
                );
                let quoted = segment(about, client, 0x10).packet();
                icmp(router, vip.ip(), if v6 { 2 } else { 3 }, if v6 { 0 } else { 4 }, &quoted)
            }
            17 => {
                let length = self.random.below(20);
                let payload: Vec<u8> = (0..length).map(|_| self.random.byte()).collect();
                ip_packet(client.ip(), vip.ip(), 17, 0, &payload)
            }
            18 => {
                let protocol = self.random.choose(&[0, 2, 6, 43, 44, 47, 50, 60, 132, 255]);
                ip_packet(client.ip(), vip.ip(), protocol, 0, &[self.random.byte(); 40])
            }
            _ => {
                let mut packet = segment(client, vip, 0x10).packet();
                if !v6 {
                    // A fragment: the first, or a later one.
                    packet[6..8].copy_from_slice(&self.random.choose(&[
                        [0x20, 0],
                        [0, 7],
                        [0x20, 9],
                    ]));
                }
                packet
            }
        }
    }

    /// An IPv6 packet with extension headers, some of them malformed.
    fn with_extension_headers(&mut self, packet: &[u8]) -> Vec<u8> {
        let count = 1 + self.random.below(5);
        let headers: Vec<(u8, Vec<u8>)> = (0..count)
            .map(|_| {
                let kind = self.random.choose(&[0, 0, 43, 44, 60, 60, 51]);
                let units = if kind == 44 { 0 } else { self.random.choose(&[0, 1, 2, 9, 60, 150]) };
                let mut rest = vec![0; 7 + 8 * units];
                rest[0] = units as u8;
                if kind == 44 && self.random.once_in(2) {
                    rest[2] = self.random.byte();
                }
                if self.random.once_in(10) {
                    rest[0] = self.random.byte();
                }
                (kind, rest)
            })
            .collect();
        extended(packet, &headers)
    }

    /// An IPv4 packet with options in its header.
    fn with_options(&mut self, mut packet: Vec<u8>) -> Vec<u8> {
        let words = 1 + self.random.below(10);
        packet[0] = 0x45 + words as u8;
        let total = (packet.len() + 4 * words) as u16;
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        packet.splice(20..20, vec![1; 4 * words]);
        packet
    }

    fn another_code(&mut self, mut error: Vec<u8>, v6: bool) -> Vec<u8> {
        let offset = if v6 { 41 } else { 21 };
        error[offset] = self.random.byte() & 7;
        error
    }

    fn tunnel(&mut self) -> Gue {
        let inner = self.inner();
        let v6 = self.random.once_in(3);
        let mut packet = if v6 { gue_v6(inner) } else { gue(inner) };
        // A VIP is in the address table, but is not a backend.
        let known: &[&str] = if v6 {
            &["fd00:2::22", "fd00:2::22", "fd00:2::24", "fd00:2::21", "fd00:2::99", "2001:db8::10"]
        } else {
            &[
                "10.0.2.22",
                "10.0.2.22",
                "10.0.2.23",
                "10.0.2.24",
                "10.0.2.21",
                "10.0.2.99",
                "203.0.113.10",
            ]
        };
        let most = if v6 { 7 } else { 30 };
        let count =
            if self.random.once_in(6) { self.random.below(most + 1) } else { self.random.below(4) };
        packet.hops = (0..count).map(|_| ip(self.random.choose(known))).collect();
        packet.next_hop = if self.random.once_in(8) {
            self.random.byte()
        } else {
            self.random.below(count.max(1)) as u8
        };
        packet.udp_checksum = self.random.once_in(2);
        packet.ecn = if self.random.once_in(3) { self.random.byte() & 3 } else { 0 };
        if self.random.once_in(10) {
            packet.source = ip(if v6 {
                self.random.choose(&[
                    "fd00:2::22",
                    "fd00:3:7::9",
                    "fd00:2::99",
                    "fd00:2:1::10",
                    "::",
                ])
            } else {
                self.random.choose(&[
                    "10.0.2.22",
                    "10.3.7.9",
                    "10.0.2.99",
                    "10.0.2.11",
                    "10.0.2.12",
                    "0.0.0.0",
                ])
            });
        }
        match self.random.below(60) {
            0 => {
                packet.destination = ip(if v6 {
                    self.random.choose(&["fd00:2::22", "fd00:2:1::21", "::"])
                } else {
                    self.random.choose(&["10.0.2.22", "0.0.0.0"])
                });
            }
            1 => packet.port = 19_524,
            2 => packet.first = Some(self.random.byte()),
            3 => packet.flags = [self.random.byte(), self.random.byte() & 1],
            4 => packet.private_type = Some(self.random.choose(&[0, 1, 2, 256])),
            5 => packet.hop_count = Some(self.random.byte() & 0x1f),
            6 => packet.inner_protocol = Some(self.random.choose(&[4, 41, 6, 0])),
            _ => {}
        }
        packet
    }

    /// Writes outer lengths that agree with each other but not with the frame.
    fn falsify_lengths(&mut self, frame: &mut [u8]) {
        let (ip, udp, header) = if frame[12] == 8 { (16, 38, 20) } else { (18, 58, 0) };
        let length = u16::from_be_bytes([frame[ip], frame[ip + 1]]);
        let length = match self.random.below(4) {
            0 => self.random.below(120) as u16,
            1 => length + 1 + self.random.below(60) as u16,
            _ => length.saturating_sub(1 + self.random.below(60) as u16),
        };
        frame[ip..ip + 2].copy_from_slice(&length.to_be_bytes());
        frame[udp..udp + 2].copy_from_slice(&length.wrapping_sub(header).to_be_bytes());
    }

    fn frame(&mut self) -> Vec<u8> {
        let mut frame = self.tunnel().frame();
        // Not of several buffers: `Program` explains why their bytes are counted differently.
        if frame.len() < 3_000 && self.random.once_in(20) {
            self.falsify_lengths(&mut frame);
        }
        if self.random.once_in(3) {
            for _ in 0..=self.random.below(3) {
                // Changed headers find more than changed payloads.
                let at = self.random.below(frame.len().min(180));
                frame[at] = match self.random.below(3) {
                    0 => self.random.byte(),
                    1 => frame[at] ^ 1 << self.random.below(8),
                    _ => self.random.choose(&[0, 1, 0x7f, 0x80, 0xff]),
                };
            }
        }
        if self.random.once_in(8) {
            let count = 1 + self.random.below(3);
            let tags: Vec<u32> = (0..count)
                .map(|_| self.random.choose(&[0x8100_0064, 0x8100_0000, 0x88a8_0065, 0x0800_4500]))
                .collect();
            frame = tagged(&frame, &tags);
        }
        if self.random.once_in(12) {
            // BPF_PROG_TEST_RUN refuses less than an Ethernet header.
            frame.truncate(14 + self.random.below(frame.len() - 13));
        }
        if self.random.once_in(12) {
            let padding = self.random.choose(&[1, 2, 18, 46]);
            frame.resize(frame.len() + padding, self.random.byte());
        }
        frame
    }
}

#[test]
fn the_program_and_the_reference_decision_agree_on_generated_packets() {
    let seed = env::var("GLB_TEST_SEED").map_or_else(
        |_| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64,
        |text| text.parse().expect("GLB_TEST_SEED is a number"),
    );
    let packets: usize = env::var("GLB_TEST_PACKETS")
        .map_or(PACKETS, |text| text.parse().expect("GLB_TEST_PACKETS is a number"));
    println!("{packets} packets, GLB_TEST_SEED={seed}");
    in_namespace(move |mut wire| {
        let mut here = Vec::new();
        let mut streams = Vec::new();
        let mut listeners = Vec::new();
        for (client, vip) in
            [("198.51.100.7", "203.0.113.10:80"), ("2001:db8:9::7", "[2001:db8::10]:80")]
        {
            let listener = TcpListener::bind(vip).unwrap();
            for port in 40_000..40_008 {
                let client = SocketAddr::new(ip(client), port);
                here.push(Client::connect(&mut wire, client, socket(vip)));
                streams.push(listener.accept().unwrap());
            }
            listeners.push(listener);
        }
        let hosts = hosts();
        let share = packets.div_ceil(hosts.len());
        let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
        let mut generator = Generator { random: Random(seed), here };
        for (number, mut host) in hosts.into_iter().enumerate() {
            host.flows.extend(generator.here.iter().map(|flow| (flow.client, flow.vip)));
            let mut program = Program::new(host);
            for index in 0..share {
                let what = || format!("GLB_TEST_SEED={seed}, machine {number}, packet {index}");
                let outcome = program.compare_frame(what, &generator.frame());
                *reasons.entry(outcome.reason.name()).or_default() += 1;
                if index % BATCH == 0 {
                    program.compare_counters(&what());
                }
            }
            program.compare_counters(&format!("GLB_TEST_SEED={seed}, machine {number}"));
        }
        drop((streams, listeners));
        println!("{reasons:#?}");
        // A run that misses a reason proves little. Cookies and refused edits cannot be generated; other
        // tests cover them.
        for reason in Reason::ALL {
            let elsewhere = matches!(reason, Reason::TakenCookie | Reason::Refused);
            assert!(elsewhere || reasons.contains_key(reason.name()), "never: {}", reason.name());
        }
    });
}
