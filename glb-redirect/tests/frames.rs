//! Frames with VLAN tags, several buffers, IPv6 extension headers or fragments. Each runs through the
//! program in the kernel and through the reference decision. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;
#[path = "../../glb-common/tests/support/mod.rs"]
mod support;

use std::net::{SocketAddr, TcpListener};

use common::{in_namespace, program::Program, tcp::Client};
use glb_common::wire::ipv6::MAX_EXTENSION_HEADERS;
use glb_common::{reason::RedirectReason as Reason, second_chance::abi::PeerNextHop};
use glb_redirect::{config::Config, counters, generation::Generation, program_data::ProgramData};
use support::{
    FakeHost, TEST_INTERFACE, backend, ip,
    packet::{ACK, SYN, Segment, ethernet, extended, gue, gue_v6, ip_packet, segment, tagged},
    peer, socket,
};

const VLAN: u32 = 0x8100_0064;
const SERVICE: u32 = 0x88a8_0065;
/// A priority without a VLAN.
const PRIORITY: u32 = 0x8100_e000;

fn pairs() -> [(SocketAddr, SocketAddr); 2] {
    [("198.51.100.7:40000", "203.0.113.10:80"), ("[2001:db8:9::7]:40000", "[2001:db8::10]:80")]
        .map(|(client, vip)| (socket(client), socket(vip)))
}

/// A backend with peers behind three interfaces: .22 behind the ingress interface, .23 behind another
/// one, .25 to .27 on a VLAN.
fn host() -> FakeHost {
    let mut host = backend();
    let tag = VLAN.swap_bytes();
    let (here, elsewhere) = (TEST_INTERFACE, 7);
    for (address, way) in [
        ("10.0.2.22", PeerNextHop { interface: here, ..peer(22) }),
        ("fd00:2::22", PeerNextHop { interface: here, ..peer(122) }),
        ("10.0.2.23", PeerNextHop { interface: elsewhere, ..peer(23) }),
        ("10.0.2.25", PeerNextHop { interface: here, tag, ..peer(25) }),
        ("10.0.2.26", PeerNextHop { interface: elsewhere, tag, ..peer(26) }),
        ("fd00:2::25", PeerNextHop { interface: here, tag, ..peer(125) }),
    ] {
        host.peers.insert(ip(address), way);
    }
    host
}

#[test]
fn vlan_tags_are_kept_removed_or_written() {
    in_namespace(|_| {
        let mut program = Program::new(host());
        let tags: [&[u32]; 6] =
            [&[], &[VLAN], &[PRIORITY], &[SERVICE, VLAN], &[VLAN, VLAN], &[SERVICE]];
        for tags in tags {
            for (client, vip) in pairs() {
                let what = format!("{tags:x?}, {vip}");
                let syn = segment(client, vip, SYN).packet();
                let ack = segment(client, vip, ACK).packet();
                for packet in [gue(syn.clone()), gue_v6(syn)] {
                    let frame = tagged(&packet.frame(), tags);
                    let outcome = program.compare(&what, &frame);
                    assert_eq!(outcome.reason, Reason::TakenSyn, "{what}");
                    // A packet that is taken keeps its tags.
                    let at = 12 + 4 * tags.len();
                    assert_eq!(outcome.frame[..at], frame[..at], "{what}");
                    assert_eq!(outcome.frame.len(), 14 + 4 * tags.len() + packet.inner.len());
                }
                for (hop, left) in [
                    // Out of the ingress interface: with the tags it arrived with.
                    ("10.0.2.22", tags.len()),
                    ("fd00:2::22", tags.len()),
                    // Out of another interface: without tags.
                    ("10.0.2.23", 0),
                    // Through a VLAN: with its tag.
                    ("10.0.2.25", 1),
                    ("10.0.2.26", 1),
                    ("fd00:2::25", 1),
                ] {
                    let hop = ip(hop);
                    let mut packet =
                        if hop.is_ipv4() { gue(ack.clone()) } else { gue_v6(ack.clone()) };
                    packet.hops = vec![hop];
                    packet.udp_checksum = true;
                    let frame = tagged(&packet.frame(), tags);
                    let outcome = program.compare(&format!("{what} to {hop}"), &frame);
                    assert_eq!(outcome.reason, Reason::Forwarded, "{what} to {hop}");
                    let grown = outcome.frame.len() as isize - frame.len() as isize;
                    assert_eq!(grown, 4 * (left as isize - tags.len() as isize), "{what} to {hop}");
                }
            }
        }
        // A frame with three tags is passed to the kernel.
        let frame = gue(segment(pairs()[0].0, pairs()[0].1, SYN).packet()).frame();
        let outcome = program.compare("three tags", &tagged(&frame, &[SERVICE, VLAN, VLAN]));
        assert_eq!(outcome.reason, Reason::NotTunnel);
        // A frame that ends within its tags.
        for length in 14..24 {
            program.compare("cut", &tagged(&frame, &[SERVICE, VLAN])[..length]);
        }
    });
}

#[test]
fn a_frame_in_several_buffers_is_handled_like_one_in_a_single_buffer() {
    in_namespace(|mut wire| {
        let mut program = Program::new(host());
        for (client, vip) in pairs() {
            let listener = TcpListener::bind(vip).unwrap();
            let open = Client::connect(&mut wire, client, vip);
            let _stream = listener.accept().unwrap();
            program.host.flows.insert((client, vip));
            let mut elsewhere = client;
            elsewhere.set_port(7);
            for data in [3_000, 3_400, 4_000, 8_900, 16_000] {
                for tags in [&[][..], &[VLAN]] {
                    let what = format!("{data} bytes, {tags:x?}, {vip}");
                    let here = Segment { data, ..open.segment(ACK) }.packet();
                    let there = Segment { data, ..segment(elsewhere, vip, ACK) }.packet();
                    for (inner, reason) in
                        [(here, Reason::TakenEstablished), (there, Reason::Forwarded)]
                    {
                        for mut packet in [gue(inner.clone()), gue_v6(inner)] {
                            packet.udp_checksum = true;
                            let frame = tagged(&packet.frame(), tags);
                            let before = program.bytes(reason);
                            let outcome = program.compare(&what, &frame);
                            assert_eq!(outcome.reason, reason, "{what}");
                            let counted = program.bytes(reason) - before;
                            assert_eq!(counted, frame.len() as u64, "{what}: bytes");
                        }
                    }
                }
            }
            // A false length, far behind the first buffer.
            let whole = gue(Segment { data: 8_900, ..open.segment(ACK) }.packet()).frame();
            let cut = &whole[..whole.len() - 1];
            assert_eq!(program.compare("cut", cut).reason, Reason::OuterMalformed);
            // Packets outside the tunnel are counted with their whole length too.
            let plain = ethernet(&ip_packet(client.ip(), vip.ip(), 17, 0, &[0; 8_000]));
            let before = program.bytes(Reason::NotTunnel);
            assert_eq!(program.compare("plain", &plain).reason, Reason::NotTunnel);
            assert_eq!(program.bytes(Reason::NotTunnel) - before, plain.len() as u64);
        }
    });
}

#[test]
fn extension_headers_are_skipped_and_later_fragments_taken() {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const OPTIONS: u8 = 60;
    in_namespace(|mut wire| {
        let mut program = Program::new(host());
        let [_, (client, vip)] = pairs();
        let listener = TcpListener::bind(vip).unwrap();
        let open = Client::connect(&mut wire, client, vip);
        let _stream = listener.accept().unwrap();
        program.host.flows.insert((client, vip));
        let mut other = client;
        other.set_port(7);
        let (here, there) = (open.segment(ACK).packet(), segment(other, vip, ACK).packet());
        let last = |offset: u8| vec![0, offset, 0, 0, 0, 1];
        let options = |units: usize| [vec![units as u8], vec![0; 6 + 8 * units]].concat();
        let frame = |packet: &[u8], headers: &[(u8, Vec<u8>)]| extended(packet, headers);
        for headers in [
            vec![(HOP_BY_HOP, options(0))],
            vec![(OPTIONS, options(3))],
            vec![(ROUTING, options(2))],
            // Offset 0: the first fragment, or the only one.
            vec![(FRAGMENT, vec![0, 0, 1, 0, 0, 0, 7])],
            vec![(HOP_BY_HOP, options(0)), (OPTIONS, options(1)), (ROUTING, options(0))],
            vec![(HOP_BY_HOP, options(1)); 4],
            vec![(OPTIONS, options(0)); MAX_EXTENSION_HEADERS],
        ] {
            for (packet, reason) in [(&here, Reason::TakenEstablished), (&there, Reason::Forwarded)]
            {
                let inner = frame(packet, &headers);
                for packet in [gue(inner.clone()), gue_v6(inner)] {
                    let outcome = program.compare(&format!("{headers:?}"), &packet.frame());
                    assert_eq!(outcome.reason, reason, "{headers:?}");
                }
            }
        }
        let mut lying = frame(&there, &[(OPTIONS, options(0))]);
        lying[41] = 40;
        for (what, inner, reason) in [
            (
                "a later fragment",
                frame(&there, &[(HOP_BY_HOP, options(0)), (FRAGMENT, [vec![0], last(8)].concat())]),
                Reason::TakenFragment,
            ),
            (
                "one header too many",
                frame(&here, &vec![(OPTIONS, options(0)); MAX_EXTENSION_HEADERS + 1]),
                Reason::UnknownTransport,
            ),
            ("AH", frame(&here, &[(AUTHENTICATION, options(1))]), Reason::UnknownTransport),
            ("too long", frame(&here, &[(OPTIONS, options(200))]), Reason::UnknownTransport),
            ("a length that lies", lying, Reason::InnerMalformed),
            (
                "nothing behind it",
                frame(&there[..40], &[(OPTIONS, options(0))]),
                Reason::InnerMalformed,
            ),
        ] {
            let outcome = program.compare(what, &gue(inner).frame());
            assert_eq!(outcome.reason, reason, "{what}");
        }

        // IPv4: the first fragment has ports and is looked up; later ones are taken.
        let [(client, vip), _] = pairs();
        let mut first = segment(client, vip, ACK).packet();
        first[6] = 0x20;
        assert_eq!(program.compare("first", &gue(first).frame()).reason, Reason::Forwarded);
        let mut later = segment(client, vip, ACK).packet();
        later[7] = 100;
        assert_eq!(program.compare("later", &gue(later).frame()).reason, Reason::TakenFragment);
    });
}

#[test]
fn packets_are_counted_by_vip() {
    in_namespace(|_| {
        let text = "interfaces = [\"eth0\"]\nvips = [\"203.0.113.10\", \"2001:db8::10\", \
                    \"203.0.113.11\"]\ndirectors = [\"10.0.2.10\"]\nbackends = [\"10.0.2.22\"]\n";
        let config = Config::parse(text, std::path::Path::new("x")).unwrap();
        let mut image = ProgramData::new(&config, &[ip("10.0.2.21")].into());
        let slots = [("203.0.113.10", 1), ("2001:db8::10", 2), ("203.0.113.11", 255)];
        image.assign_counters(&slots.map(|(vip, slot)| (ip(vip), slot)).into());
        let mut generation = Generation::load(&image, None).unwrap();
        let way = PeerNextHop { interface: TEST_INTERFACE, ..peer(22) };
        generation.set_next_hop(ip("10.0.2.22"), way).unwrap();
        generation.program().unwrap().attach("idle0", aya::programs::XdpMode::Driver).unwrap();
        let mut run = |inner: Vec<u8>| {
            use aya::programs::{TestRun as _, TestRunOptions};
            let (frame, mut out) = (gue(inner).frame(), vec![0; 2_000]);
            let options = TestRunOptions {
                data_in: Some(&frame),
                data_out: Some(&mut out),
                ..TestRunOptions::default()
            };
            generation.program().unwrap().test_run(options).unwrap();
        };
        let to =
            |client: &str, vip: &str, flags| segment(socket(client), socket(vip), flags).packet();
        run(to("192.0.2.1:7", "203.0.113.10:80", SYN));
        run(to("192.0.2.1:7", "203.0.113.10:80", ACK));
        run(to("[2001:db8:9::7]:7", "[2001:db8::10]:80", SYN));
        run(to("192.0.2.1:7", "203.0.113.11:80", SYN));
        run(to("192.0.2.1:7", "203.0.113.99:80", SYN));
        // Handled by the general program.
        let mut with_options = to("192.0.2.1:7", "203.0.113.11:80", SYN);
        with_options[0] = 0x46;
        with_options.splice(20..20, [1; 4]);
        let total = with_options.len() as u16;
        with_options[2..4].copy_from_slice(&total.to_be_bytes());
        run(with_options);
        let map = generation.counters().unwrap();
        let counted = |slot| {
            let reasons = counters::of_slot(map, slot).unwrap();
            reasons.into_iter().map(|(reason, count)| (reason, count.packets)).collect::<Vec<_>>()
        };
        assert_eq!(counted(0), [("not_vip", 1)]);
        assert_eq!(counted(1), [("forwarded", 1), ("taken_syn", 1)]);
        assert_eq!(counted(2), [("taken_syn", 1)]);
        assert_eq!(counted(255), [("taken_syn", 2)]);
    });
}
