//! The director's program in the kernel against the pure functions: GLB's vectors, packets cut at
//! every length, and generated ones, hostile ones among them. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{env, thread};

use common::{
    alone, generate::frame, golden, golden_tables, hex, image_of, load, private_pins, varied,
};
use glb_common::reason::DirectorReason as Reason;
use glb_director::{
    compiled_tables::{CompiledTables, ForwardingOptions},
    generation::self_test::{TEST_INTERFACE, compare, test_run},
    oracle::{self, Verdict},
};
use proptest::{
    strategy::{Strategy as _, ValueTree as _},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

#[test]
fn program_agrees_with_oracle_on_truncated_golden_packets() {
    alone(|| {
        let pins = private_pins();
        let golden = golden();
        for (number, config) in
            ["default", "src_addr+src_port", "all_fields", "migration"].into_iter().enumerate()
        {
            let image = image_of(&golden_tables(&golden, config), TEST_INTERFACE);
            let mut generation = load(&image, number as u64, &pins);
            let program = generation.program().unwrap();
            for vector in golden["vectors"].as_array().unwrap() {
                let packet = hex(vector["input"].as_str().unwrap());
                // The kernel makes no test run of less than an Ethernet header.
                for length in (14..packet.len().min(160)).chain([packet.len()]) {
                    compare(program, &image, &packet[..length])
                        .unwrap_or_else(|error| panic!("{} {config}: {error}", vector["name"]));
                }
            }
        }
    });
}

/// The options under which generated packets are run.
fn matrix() -> Vec<ForwardingOptions> {
    let plain = ForwardingOptions { answers_per_second: 0, ..ForwardingOptions::default() };
    vec![
        plain.clone(),
        ForwardingOptions { outer_tos: Some(0x48), fragment_tunnel: true, ..plain.clone() },
        ForwardingOptions { vlan: Some(vec![]), forward_echo: false, ..plain.clone() },
        ForwardingOptions { vlan: Some(vec![100]), fragment_tunnel: true, ..plain.clone() },
        ForwardingOptions { vlan: Some(vec![4094, 7]), ..plain },
    ]
}

/// How many packets: `GLB_TEST_PACKETS`, else a number that takes some seconds.
fn packets() -> u32 {
    env::var("GLB_TEST_PACKETS").ok().and_then(|text| text.parse().ok()).unwrap_or(1_000_000)
}

fn seed() -> [u8; 32] {
    let given = env::var("GLB_TEST_SEED").ok().and_then(|text| text.parse::<u64>().ok());
    let seed = given.unwrap_or_else(|| {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap();
        now.as_nanos() as u64
    });
    println!("GLB_TEST_SEED={seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes
}

/// Sent packets must be valid for an independent parser.
fn check_outer_headers(sent: &Verdict, packet: &[u8], options: &ForwardingOptions) {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    let Verdict::Send { backend, frame } = sent else { return };
    let outer = SlicedPacket::from_ethernet(frame).unwrap();
    let vlans: Vec<u16> = outer.vlan_ids().iter().map(|id| id.value()).collect();
    let start = tagged(packet);
    let received = packet[12..start - 2].chunks_exact(4);
    let kept = received.map(|tag| u16::from_be_bytes([tag[2] & 0x0f, tag[3]])).collect();
    assert_eq!(vlans, options.vlan.clone().unwrap_or(kept));
    let class = match packet[start] >> 4 {
        4 => packet[start + 1],
        _ => packet[start] << 4 | packet[start + 1] >> 4,
    };
    let class = options.outer_tos.unwrap_or(class);
    let length = match outer.net.unwrap() {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum(), "{packet:02x?}");
            assert_eq!(header.destination, backend.address.to_le_bytes());
            assert_eq!(header.source, [65; 4]);
            assert_eq!(header.dscp.value() << 2 | header.ecn.value(), class);
            // Packets without DF on the tunnel were too big otherwise.
            assert!(header.dont_fragment || header.total_len > backend.mtu);
            usize::from(header.total_len) - 20
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.traffic_class, class);
            assert_eq!(header.source, common::SOURCE_V6.octets());
            assert_eq!(header.destination[..6], [0x20, 1, 0x0d, 0xb8, 0, 1]);
            usize::from(header.payload_length)
        }
        NetSlice::Arp(_) => panic!("ARP is sent"),
    };
    let Some(TransportSlice::Udp(udp)) = outer.transport else { panic!("{:?}", outer.transport) };
    assert_eq!((udp.destination_port(), udp.checksum()), (19_523, 0));
    assert_eq!(usize::from(udp.length()), length);
}

/// Where a frame's IP header starts.
fn tagged(frame: &[u8]) -> usize {
    let is_tag = |at: usize| matches!(frame[at..at + 2], [0x81, 0] | [0x88, 0xa8]);
    let mut at = 12;
    while is_tag(at) {
        at += 4;
    }
    at + 2
}

/// A frame with some bits of it changed: what a generator of proper headers would not think of.
fn mutated(frame: &[u8], random: &mut u64) -> Vec<u8> {
    let mut next = |below: usize| {
        *random ^= *random << 13;
        *random ^= *random >> 7;
        *random ^= *random << 17;
        (*random >> 16) as usize % below
    };
    let mut frame = frame.to_vec();
    // Mostly in the headers.
    let reach = if next(4) == 0 { frame.len() } else { frame.len().min(90) };
    for _ in 0..=next(3) {
        frame[next(reach)] ^= 1 << next(8);
    }
    if next(8) == 0 {
        frame.truncate(14.max(next(frame.len()) + 1));
    }
    frame
}

#[test]
fn program_agrees_with_oracle_on_generated_packets() {
    alone(|| {
        let pins = private_pins();
        let (tables, matrix) = (varied(), matrix());
        let next_hops = common::gateway(&tables, TEST_INTERFACE, [2, 0, 0, 0, 0, 1]);
        let seed = seed();
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
        let mut runner = TestRunner::new_with_rng(Config::default(), rng);
        let mut random = u64::from_le_bytes(*seed.first_chunk().unwrap()) | 1;
        let strategy = frame();
        let mut reasons = std::collections::BTreeMap::<Reason, u32>::new();
        let share = packets() / matrix.len() as u32;
        for (number, options) in matrix.iter().enumerate() {
            let image =
                CompiledTables::new(&tables, &common::Fixed::new(&tables), &next_hops, options)
                    .unwrap();
            let mut generation = load(&image, number as u64, &pins);
            let program = generation.program().unwrap();
            // Each generated packet is also run in mutations.
            const MUTATIONS: u32 = 7;
            for _ in 0..share / (1 + MUTATIONS) {
                let mut packet = strategy.new_tree(&mut runner).unwrap().current();
                for _ in 0..=MUTATIONS {
                    let expected = oracle::expected_outcome(&image, &packet);
                    compare(program, &image, &packet).unwrap_or_else(|error| panic!("{error}"));
                    check_outer_headers(&expected.verdict, &packet, options);
                    *reasons.entry(expected.reason).or_default() += 1;
                    packet = mutated(&packet, &mut random);
                }
            }
        }
        println!("{reasons:?}");
        // The generator is worth something only if it reaches every answer it can.
        for reason in [
            Reason::Encapsulated,
            Reason::NotIp,
            Reason::NoBind,
            Reason::Malformed,
            Reason::LaterFragment,
            Reason::OtherProtocol,
            Reason::OtherIcmp,
            Reason::ForeignIcmpError,
            Reason::TooBig,
            Reason::TooBigUnanswered,
            Reason::TooBigMayFragment,
        ] {
            assert!(
                reasons.get(&reason).is_some_and(|count| *count > packets() / 50_000),
                "{reason:?}"
            );
        }
    });
}

/// A TCP packet of `length` bytes from the IP header on, to the vectors' first bind of its family.
fn long_packet(is_v6: bool, length: u16) -> Vec<u8> {
    let mut packet = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    if is_v6 {
        packet.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        packet.extend((length - 40).to_be_bytes());
        packet.extend([6, 64]);
        packet.extend(std::net::Ipv6Addr::new(0x2001, 0xdb8, 9, 9, 9, 9, 9, 9).octets());
        packet.extend(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).octets());
    } else {
        packet.extend([8, 0, 0x45, 0]);
        packet.extend(length.to_be_bytes());
        packet.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 9, 8, 7, 1, 1, 1, 1]);
    }
    packet.extend([0x30, 0x39, 0, 80]);
    packet.resize(14 + usize::from(length), 0x77);
    packet
}

#[test]
fn too_big_packets_are_answered_with_the_path_mtu() {
    use etherparse::{Icmpv4Type, Icmpv6Type, NetSlice, SlicedPacket, TransportSlice};
    alone(|| {
        let pins = private_pins();
        let image = image_of(&varied(), TEST_INTERFACE);
        let mut generation = load(&image, 1, &pins);
        let program = generation.program().unwrap();
        // The way's MTU is 1,600; one listed hop costs 40 bytes.
        for (is_v6, length) in [(false, 1_560), (false, 1_561), (true, 1_560), (true, 1_561)] {
            let packet = long_packet(is_v6, length);
            let (verdict, frame) = test_run(program, &packet).unwrap();
            assert_eq!(verdict, 3, "the packet or its answer is sent");
            if length == 1_560 {
                assert_eq!(frame.len(), packet.len() + 40);
                continue;
            }
            assert_eq!(
                (&frame[..6], &frame[6..12]),
                (&packet[6..12], &packet[..6]),
                "turned round"
            );
            let answer = SlicedPacket::from_ethernet(&frame).unwrap();
            match (answer.net.unwrap(), answer.transport.unwrap()) {
                (NetSlice::Ipv4(ip), TransportSlice::Icmpv4(icmp)) => {
                    let header = ip.header().to_header();
                    assert_eq!(header.header_checksum, header.calc_header_checksum());
                    assert_eq!((header.source, header.destination), ([1, 1, 1, 1], [10, 9, 8, 7]));
                    assert_eq!(
                        icmp.header().checksum,
                        icmp.icmp_type().calc_checksum(icmp.payload())
                    );
                    let Icmpv4Type::DestinationUnreachable(
                        etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded {
                            next_hop_mtu,
                        },
                    ) = icmp.icmp_type()
                    else {
                        panic!("{:?}", icmp.icmp_type());
                    };
                    assert_eq!(next_hop_mtu, 1_560);
                    assert_eq!(icmp.payload(), &packet[14..][..icmp.payload().len()]);
                }
                (NetSlice::Ipv6(ip), TransportSlice::Icmpv6(icmp)) => {
                    let header = ip.header().to_header();
                    assert_eq!(header.source, packet[38..54]);
                    assert!(icmp.is_checksum_valid(header.source, header.destination));
                    let Icmpv6Type::PacketTooBig { mtu } = icmp.icmp_type() else {
                        panic!("{:?}", icmp.icmp_type());
                    };
                    assert_eq!(mtu, 1_560);
                    assert_eq!(icmp.payload(), &packet[14..][..icmp.payload().len()]);
                }
                other => panic!("{other:?}"),
            }
        }
    });
}

#[test]
fn multi_buffer_frames_are_handled() {
    alone(|| {
        let pins = private_pins();
        let tables = varied();
        let mut next_hops = common::gateway(&tables, TEST_INTERFACE, [2, 0, 0, 0, 0, 1]);
        for way in next_hops.values_mut().flatten() {
            (way.mtu, way.link_mtu) = (12_000, 16_000);
        }
        for options in matrix() {
            let image =
                CompiledTables::new(&tables, &common::Fixed::new(&tables), &next_hops, &options)
                    .unwrap();
            let mut generation = load(&image, 1, &pins);
            let program = generation.program().unwrap();
            let mut sent = 0;
            // From what one buffer holds to more than the way does.
            for length in (3_000..=14_000).step_by(97) {
                for is_v6 in [false, true] {
                    let mut packet = long_packet(is_v6, length);
                    compare(program, &image, &packet).unwrap_or_else(|error| panic!("{error}"));
                    let answer = oracle::expected_outcome(&image, &packet);
                    sent += u32::from(answer.reason == Reason::Encapsulated);
                    // The same in a tunnel of IPv6, tagged, padded, and with a length that lies.
                    packet[if is_v6 { 53 } else { 33 }] = 4;
                    compare(program, &image, &packet).unwrap_or_else(|error| panic!("{error}"));
                    packet.splice(12..12, [0x81, 0, 0, 9]);
                    compare(program, &image, &packet).unwrap_or_else(|error| panic!("{error}"));
                    packet.extend([0; 9]);
                    compare(program, &image, &packet).unwrap_or_else(|error| panic!("{error}"));
                    packet.truncate(packet.len() - 10);
                    compare(program, &image, &packet).unwrap_or_else(|error| panic!("{error}"));
                }
            }
            assert!(sent > 150, "{sent}");
            generation.discard(&pins);
        }
    });
}

#[test]
fn fifty_thousand_binds_and_many_ranges_are_found() {
    use std::fmt::Write as _;
    alone(|| {
        let pins = private_pins();
        let mut text = String::new();
        for table in 0..50u32 {
            writeln!(
                text,
                "[[tables]]\nname = \"t{table}\"\nhash_key = \"{table:032x}\"\n\
                 seed = \"{table:032x}\"\n\
                 backends = [{{ ip = \"10.0.0.{table}\", state = \"active\", healthy = true }}]\n\
                 binds = ["
            )
            .unwrap();
            for index in 0..1_000u32 {
                let (high, low) = (index >> 8, index & 255);
                writeln!(
                    text,
                    "{{ ip = \"20.{table}.{high}.{low}\", proto = \"tcp\", port = 80 }},"
                )
                .unwrap();
            }
            for index in 0..60u32 {
                let (first, last) = (index * 1_000 + 1, index * 1_000 + 900);
                writeln!(
                    text,
                    "{{ ip = \"30.{table}.{index}.0/24\", proto = \"udp\", port_start = {first}, \
                     port_end = {last} }},"
                )
                .unwrap();
            }
            text.push_str("]\n");
        }
        let tables = common::tables(&text, glb_table::Format::Toml);
        let image = image_of(&tables, TEST_INTERFACE);
        assert_eq!(image.binds.iter().filter(|slot| slot.port_key != 0).count(), 50_000);
        let mut generation = load(&image, 1, &pins);
        let program = generation.program().unwrap();
        let mut packet = long_packet(false, 60);
        let mut sent = 0;
        for index in (0..50_000u32).step_by(61) {
            let (table, address) = (index / 1_000, index % 1_000);
            let (high, low) = ((address >> 8) as u8, address as u8);
            // Each bind, and its neighbour among the ranges or beside them.
            for (first, protocol, port) in [(20, 6, 80), (30, 17, (address % 60) as u16 * 1_001)] {
                packet[30..34].copy_from_slice(&[first, table as u8, high, low]);
                if first == 30 {
                    packet[32] = (address % 60) as u8;
                }
                packet[23] = protocol;
                packet[36..38].copy_from_slice(&port.to_be_bytes());
                compare(program, &image, &packet).unwrap_or_else(|error| panic!("{error}"));
                let answer = oracle::expected_outcome(&image, &packet);
                sent += u32::from(answer.reason == Reason::Encapsulated);
                if protocol == 6 {
                    assert_eq!(answer.counter_slot, 2 + table);
                }
            }
        }
        assert!(sent > 1_500, "{sent}");
    });
}

#[test]
fn answers_are_rate_limited() {
    alone(|| {
        let pins = private_pins();
        let tables = varied();
        let next_hops = common::gateway(&tables, TEST_INTERFACE, [2, 0, 0, 0, 0, 1]);
        let options = ForwardingOptions { answers_per_second: 3, ..ForwardingOptions::default() };
        let image =
            CompiledTables::new(&tables, &common::Fixed::new(&tables), &next_hops, &options)
                .unwrap();
        let mut generation = load(&image, 1, &pins);
        let program = generation.program().unwrap();
        let begun = std::time::Instant::now();
        let packet = long_packet(false, 1_561);
        let answered = (0..200).filter(|_| test_run(program, &packet).unwrap().0 == 3).count();
        // As many for each CPU and for each second that has begun.
        let cpus = thread::available_parallelism().unwrap().get();
        let seconds = begun.elapsed().as_secs() as usize + 2;
        assert!((1..=3 * cpus * seconds).contains(&answered), "{answered}");
    });
}
