//! The backend's decision on plain bytes.
#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod support;

use std::net::IpAddr;

use glb_common::{
    reason::{Action, RedirectReason as Reason},
    second_chance::fast_path,
};
use proptest::prelude::*;
use support::{
    FakeHost, backend, golden, ip,
    packet::{
        ACK, FIN, Gue, PSH, RST, SYN, Segment, ethernet, gue, gue_v6, icmp, ip_packet, segment,
        too_big,
    },
    peer_mac, run, socket,
};

const CLIENT: &str = "198.51.100.7:40000";
const VIP: &str = "203.0.113.10:80";
const CLIENT_V6: &str = "[2001:db8:9::7]:40000";
const VIP_V6: &str = "[2001:db8::10]:80";

fn tcp(flags: u8) -> Vec<u8> {
    segment(socket(CLIENT), socket(VIP), flags).packet()
}

fn tcp_v6(flags: u8) -> Vec<u8> {
    segment(socket(CLIENT_V6), socket(VIP_V6), flags).packet()
}

/// A backend that holds the flows of [`CLIENT`] and [`CLIENT_V6`].
fn holder() -> FakeHost {
    let mut host = backend();
    host.flows.insert((socket(CLIENT), socket(VIP)));
    host.flows.insert((socket(CLIENT_V6), socket(VIP_V6)));
    host
}

#[test]
fn golden_cases() {
    for case in golden::cases() {
        let outcome = run(&case.host, &case.frame);
        assert_eq!(outcome.reason, case.reason, "{}", case.name);
        if let Some(forwarded) = case.forwarded {
            assert_eq!(outcome.frame, forwarded, "{}", case.name);
        }
    }
}

#[test]
fn who_gets_what() {
    let (client, router) = (ip("198.51.100.7"), ip("198.51.100.1"));
    let unreachable = icmp(router, ip("203.0.113.10"), 3, 3, &tcp(ACK));
    let udp = ip_packet(client, ip("203.0.113.10"), 17, 0, &[0x9c, 0x40, 0, 53, 0, 8, 0, 0]);
    let foreign = icmp(router, ip("203.0.113.10"), 3, 4, &{
        segment(socket("203.0.113.99:80"), socket(CLIENT), ACK).packet()
    });
    let about_udp = icmp(router, ip("203.0.113.10"), 3, 4, &{
        ip_packet(ip("203.0.113.10"), client, 17, 0, &[0, 53, 0x9c, 0x40, 0, 8, 0, 0])
    });
    let mut later_fragment = tcp(ACK);
    later_fragment[6..8].copy_from_slice(&[0x00, 0x64]);
    let elsewhere = segment(socket(CLIENT), socket("203.0.113.99:80"), SYN).packet();
    let with = |edit: fn(&mut Gue)| {
        let mut packet = gue(tcp(ACK));
        edit(&mut packet);
        packet
    };

    #[rustfmt::skip]
    let cases: Vec<(&str, FakeHost, Gue, Reason)> = vec![
        ("SYN", backend(), gue(tcp(SYN)), Reason::TakenSyn),
        ("SYN with data (Fast Open)", backend(), gue({
            let mut syn = segment(socket(CLIENT), socket(VIP), SYN);
            syn.data = 100;
            syn.packet()
        }), Reason::TakenSyn),
        ("ACK, held here", holder(), gue(tcp(ACK)), Reason::TakenEstablished),
        ("RST, held here", holder(), gue(tcp(RST)), Reason::TakenEstablished),
        ("FIN, held here", holder(), gue(tcp(FIN | ACK)), Reason::TakenEstablished),
        ("ACK, held elsewhere", backend(), gue(tcp(ACK)), Reason::Forwarded),
        ("data, held elsewhere", backend(), gue(tcp(ACK | PSH)), Reason::Forwarded),
        ("RST, held elsewhere", backend(), gue(tcp(RST)), Reason::Forwarded),
        ("FIN, held elsewhere", backend(), gue(tcp(FIN | ACK)), Reason::Forwarded),
        ("no flags at all", backend(), gue(tcp(0)), Reason::Forwarded),
        ("IPv6 in IPv4", backend(), gue(tcp_v6(ACK)), Reason::Forwarded),
        ("IPv6 in IPv4, held here", holder(), gue(tcp_v6(ACK)), Reason::TakenEstablished),
        ("IPv4 in IPv6", backend(), gue_v6(tcp(ACK)), Reason::Forwarded),
        ("IPv6 in IPv6", backend(), gue_v6(tcp_v6(ACK)), Reason::Forwarded),
        ("IPv6 in IPv6, held here", holder(), gue_v6(tcp_v6(ACK)), Reason::TakenEstablished),
        ("cookie", { let mut host = backend(); host.cookies.insert((socket(CLIENT), socket(VIP))); host },
            gue(tcp(ACK)), Reason::TakenCookie),
        ("RST is no cookie", { let mut host = backend(); host.cookies.insert((socket(CLIENT), socket(VIP))); host },
            gue(tcp(ACK | RST)), Reason::Forwarded),
        ("no second chance", FakeHost { no_second_chance: true, ..backend() }, gue(tcp(ACK)), Reason::TakenNoSecondChance),
        ("no second chance needed", FakeHost { no_second_chance: true, ..holder() }, gue(tcp(ACK)), Reason::TakenEstablished),
        ("no hop", backend(), with(|gue| gue.hops.clear()), Reason::TakenLastHop),
        ("list exhausted", backend(), with(|gue| gue.next_hop = 1), Reason::TakenLastHop),
        ("next_hop beyond the list", backend(), with(|gue| gue.next_hop = 255), Reason::TakenLastHop),
        ("own address in the list", backend(), with(|gue| gue.hops[0] = gue.destination), Reason::TakenOwnHop),
        ("own address in the list, and another after it", backend(), with(|gue| gue.hops = vec![gue.destination, ip("10.0.2.22")]), Reason::Forwarded),
        ("own address in a list of IPv6, and another after it", backend(), { let mut gue = gue_v6(tcp(ACK)); gue.hops = vec![gue.destination, ip("fd00:2::22")]; gue }, Reason::Forwarded),
        ("own address twice in the list", backend(), with(|gue| gue.hops = vec![gue.destination; 2]), Reason::TakenOwnHop),
        ("hop that is no backend", backend(), with(|gue| gue.hops[0] = ip("192.0.2.1")), Reason::UnknownPeer),
        ("hop without a MAC", backend(), with(|gue| gue.hops[0] = ip("10.0.2.24")), Reason::PeerUnresolved),
        ("error about a flow here", holder(), gue(too_big(router, socket(CLIENT), socket(VIP))), Reason::TakenIcmpError),
        ("error about a flow elsewhere", backend(), gue(too_big(router, socket(CLIENT), socket(VIP))), Reason::ForwardedIcmpError),
        ("IPv6 error about a flow here", holder(), gue(too_big(ip("2001:db8:9::1"), socket(CLIENT_V6), socket(VIP_V6))), Reason::TakenIcmpError),
        ("IPv6 error about a flow elsewhere", backend(), gue(too_big(ip("2001:db8:9::1"), socket(CLIENT_V6), socket(VIP_V6))), Reason::ForwardedIcmpError),
        ("error about another address", holder(), gue(foreign), Reason::ForeignIcmpError),
        ("too big, about UDP", backend(), gue(about_udp), Reason::TakenIcmp),
        ("another error", backend(), gue(unreachable), Reason::TakenIcmp),
        ("echo", backend(), gue(icmp(client, ip("203.0.113.10"), 8, 0, b"ping")), Reason::TakenIcmp),
        ("UDP", backend(), gue(udp), Reason::TakenUdp),
        ("later fragment", backend(), gue(later_fragment), Reason::TakenFragment),
        ("GRE", backend(), gue(ip_packet(client, ip("203.0.113.10"), 47, 0, &[0; 20])), Reason::UnknownTransport),
        ("not our VIP", backend(), gue(elsewhere), Reason::NotVip),
        ("ICMP that is not for our VIP", backend(), gue(icmp(client, ip("203.0.113.99"), 8, 0, b"ping")), Reason::NotVip),
        ("echo to our own address, as GLB's checker sends", backend(), gue(icmp(client, ip("10.0.2.21"), 8, 0, b"ping")), Reason::TakenIcmp),
        ("SYN to our own address", backend(), gue(segment(socket(CLIENT), socket("10.0.2.21:80"), SYN).packet()), Reason::NotVip),
        ("fellow backend sends", backend(), with(|gue| { gue.source = ip("10.0.2.22"); gue.hops[0] = ip("10.0.2.23") }), Reason::Forwarded),
        ("unknown_sender", backend(), with(|gue| gue.source = ip("10.0.2.99")), Reason::UnknownSender),
        ("stranger, left alone", FakeHost { passes_unknown_senders: true, ..backend() }, with(|gue| gue.source = ip("10.0.2.99")), Reason::UnknownSenderPassed),
        ("for another machine", backend(), with(|gue| gue.destination = ip("10.0.2.22")), Reason::WrongDestination),
        ("another port", backend(), with(|gue| gue.port = 19524), Reason::NotTunnel),
        ("GUE version 1", backend(), with(|gue| gue.first = Some(0x42)), Reason::BadVersion),
        ("control message", backend(), with(|gue| gue.first = Some(0x22)), Reason::ControlMessage),
        ("flags", backend(), with(|gue| gue.flags = [0x80, 0]), Reason::BadFlags),
        ("private type 2", backend(), with(|gue| gue.private_type = Some(2)), Reason::BadPrivateType),
        ("IPv6 hops over IPv4", backend(), with(|gue| gue.private_type = Some(1)), Reason::BadPrivateType),
        ("IPv4 hops over IPv6", backend(), { let mut gue = gue_v6(tcp(ACK)); gue.private_type = Some(0); gue }, Reason::BadPrivateType),
        ("hlen too small", backend(), with(|gue| gue.first = Some(1)), Reason::BadHeaderLength),
        ("hlen too big", backend(), with(|gue| gue.first = Some(3)), Reason::BadHeaderLength),
        ("hop_count that lies", backend(), with(|gue| gue.hop_count = Some(200)), Reason::BadHeaderLength),
        ("inner protocol unknown", backend(), with(|gue| gue.inner_protocol = Some(47)), Reason::BadInnerProtocol),
        ("another IP version than said", backend(), { let mut gue = gue(tcp_v6(ACK)); gue.inner_protocol = Some(4); gue.inner[2..4].copy_from_slice(&[0, 60]); gue }, Reason::BadInnerProtocol),
        ("three hops, the third", backend(), with(|gue| { gue.next_hop = 2; gue.hops = ["10.0.2.99", "10.0.2.98", "10.0.2.23"].map(ip).into() }), Reason::Forwarded),
        ("seven IPv6 hops", backend(), { let mut gue = gue_v6(tcp(ACK)); gue.hops = vec![ip("fd00:2::22"); 7]; gue.next_hop = 6; gue }, Reason::Forwarded),
    ];
    for (what, host, packet, expected) in cases {
        for udp_checksum in [false, true] {
            let packet = Gue { udp_checksum, ..packet.clone() };
            let received = packet.frame();
            let outcome = run(&host, &received);
            assert_eq!(outcome.reason, expected, "{what}");
            check(what, &packet, &received, &outcome);
        }
    }
}

/// The quick decision may always be none; this is what it is there for.
#[test]
fn ordinary_packets_are_decided_quickly() {
    let mut host = holder();
    host.cookies.insert((socket("198.51.100.8:40000"), socket(VIP)));
    let quick = |what: &str, frame: &[u8], expected: Reason| {
        let decision = fast_path::decide(&frame, &host, &fast_path::AsDecision);
        assert_eq!(decision.map(|decision| decision.reason), Some(expected), "{what}");
        assert_eq!(run(&host, frame).reason, expected, "{what}");
    };
    let (client, vip) = (ip("198.51.100.7"), ip("203.0.113.10"));
    let from = |client: &str, vip: &str| segment(socket(client), socket(vip), ACK).packet();
    for (inner, reason) in [
        (tcp(SYN), Reason::TakenSyn),
        (tcp_v6(SYN), Reason::TakenSyn),
        (tcp(ACK), Reason::TakenEstablished),
        (tcp_v6(ACK), Reason::TakenEstablished),
        (from("198.51.100.8:40000", VIP), Reason::TakenCookie),
        (ip_packet(client, vip, 17, 0, &[0; 20]), Reason::TakenUdp),
        (from("198.51.100.9:40000", VIP), Reason::Forwarded),
        (from("[2001:db8:9::9]:40000", VIP_V6), Reason::Forwarded),
    ] {
        for (mut packet, own, peer, unresolved, unknown) in [
            (gue(inner.clone()), "10.0.2.21", "10.0.2.22", "10.0.2.24", "10.0.2.99"),
            (gue_v6(inner), "fd00:2::21", "fd00:2::22", "fd00:2::24", "fd00:2::99"),
        ] {
            let forwarded = reason == Reason::Forwarded;
            for (hops, next_hop, otherwise) in [
                (&[peer][..], 0, reason),
                (&[own, peer], 1, reason),
                (&[peer, own, own], 0, reason),
                (&[own, own, own, peer], 3, reason),
                (&[], 0, Reason::TakenLastHop),
                (&[peer], 1, Reason::TakenLastHop),
                (&[peer, peer], 2, Reason::TakenLastHop),
                (&[own], 0, Reason::TakenOwnHop),
                (&[peer, own], 1, Reason::TakenOwnHop),
                (&[unresolved], 0, Reason::PeerUnresolved),
                (&[peer, unknown], 1, Reason::UnknownPeer),
            ] {
                packet.hops = hops.iter().map(|hop| ip(hop)).collect();
                packet.next_hop = next_hop;
                let expected = if forwarded { otherwise } else { reason };
                // One of ECN's bits is no mark of congestion.
                for ecn in [0, 2] {
                    packet.ecn = ecn;
                    quick(&format!("{packet:?}"), &packet.frame(), expected);
                }
            }
        }
    }
    let plain = |source, destination, protocol| {
        let packet = ip_packet(ip(source), ip(destination), protocol, 0, &[0; 40]);
        quick("plain", &ethernet(&packet), Reason::NotTunnel);
    };
    for protocol in [6, 17] {
        plain("198.51.100.7", "203.0.113.10", protocol);
        plain("2001:db8:9::7", "2001:db8::10", protocol);
    }
}

/// Checks the properties that every outcome of an action has.
fn check(what: &str, packet: &Gue, received: &[u8], outcome: &support::Outcome) {
    match outcome.action {
        Action::Pass | Action::Drop | Action::Answer => {
            assert_eq!(outcome.frame, received, "{what}")
        }
        Action::Take => assert_eq!(outcome.frame, ethernet(&packet.inner), "{what}"),
        Action::Send => {
            // The first in the rest of the list that is not this machine.
            let rest = &packet.hops[usize::from(packet.next_hop)..];
            let skipped = rest.iter().take_while(|hop| **hop == packet.destination).count();
            let hop = rest[skipped];
            let mut expected = Gue {
                source: packet.destination,
                destination: hop,
                next_hop: packet.next_hop + 1 + skipped as u8,
                ..packet.clone()
            }
            .frame();
            let last = match hop {
                IpAddr::V4(hop) => hop.octets()[3],
                IpAddr::V6(_) => 122,
            };
            expected[..6].copy_from_slice(&peer_mac(last));
            expected[6..12].copy_from_slice(&support::OWN_MAC);
            assert_eq!(outcome.frame, expected, "{what}");
            checksums_hold(what, &outcome.frame);
        }
    }
}

/// By etherparse, which shares no code with us.
fn checksums_hold(what: &str, frame: &[u8]) {
    let sliced = etherparse::SlicedPacket::from_ethernet(frame).unwrap();
    let Some(etherparse::TransportSlice::Udp(udp)) = sliced.transport else {
        panic!("{what}: not UDP any more");
    };
    let header = udp.to_header();
    match sliced.net {
        Some(etherparse::NetSlice::Ipv4(ip)) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum(), "{what}");
            if udp.checksum() != 0 {
                let sum = udp.to_header().calc_checksum_ipv4(&header, udp.payload()).unwrap();
                assert_eq!(udp.checksum(), sum, "{what}");
            }
        }
        Some(etherparse::NetSlice::Ipv6(ip)) if udp.checksum() != 0 => {
            let sum = header.calc_checksum_ipv6(&ip.header().to_header(), udp.payload()).unwrap();
            assert_eq!(udp.checksum(), sum, "{what}");
        }
        _ => {}
    }
}

#[test]
fn a_udp_checksum_that_becomes_zero_is_sent_as_ones() {
    let mut packet = gue(tcp(ACK));
    packet.udp_checksum = true;
    // Choose bytes of the payload so that the checksum on the way on comes out as zero.
    let mut segment = segment(socket(CLIENT), socket(VIP), ACK);
    segment.data = 2;
    packet.inner = segment.packet();
    let sent = Gue {
        source: packet.destination,
        destination: packet.hops[0],
        next_hop: 1,
        ..packet.clone()
    };
    let frame = sent.frame();
    let sum = u16::from_be_bytes([frame[40], frame[41]]);
    let end = packet.inner.len();
    let payload = u16::from_be_bytes([packet.inner[end - 2], packet.inner[end - 1]]);
    // One's complement addition: the sum of all words becomes 0xffff.
    let wanted = u32::from(payload) + u32::from(sum);
    let wanted = (wanted & 0xffff) + (wanted >> 16);
    packet.inner[end - 2..].copy_from_slice(&(wanted as u16).to_be_bytes());
    let outcome = run(&backend(), &packet.frame());
    assert_eq!(outcome.reason, Reason::Forwarded);
    assert_eq!(outcome.frame[40..42], [0xff, 0xff]);
    checksums_hold("ones", &outcome.frame);
}

#[test]
fn congestion_in_the_tunnel_reaches_the_inner_packet() {
    // RFC 6040, figure 4: [inner][outer], 9 for drop.
    const EXPECTED: [[u8; 4]; 4] = [[0, 0, 0, 9], [1, 1, 1, 3], [2, 1, 2, 3], [3, 3, 3, 3]];
    for v6 in [false, true] {
        for (inner, row) in EXPECTED.iter().enumerate() {
            for (outer, expected) in row.iter().enumerate() {
                let (client, vip) = if v6 { (CLIENT_V6, VIP_V6) } else { (CLIENT, VIP) };
                let mut segment = segment(socket(client), socket(vip), SYN);
                segment.ecn = inner as u8;
                for mut packet in [gue(segment.packet()), gue_v6(segment.packet())] {
                    packet.ecn = outer as u8;
                    let outcome = run(&backend(), &packet.frame());
                    if *expected == 9 {
                        assert_eq!(outcome.reason, Reason::CongestionDropped);
                        continue;
                    }
                    segment.ecn = *expected;
                    assert_eq!(outcome.frame, ethernet(&segment.packet()), "{inner} {outer}");
                    segment.ecn = inner as u8;
                }
            }
        }
    }
}

#[test]
fn padding_is_no_part_of_the_packet() {
    let mut frame = gue(tcp(ACK)).frame();
    frame.extend([0; 9]);
    let outcome = run(&backend(), &frame);
    assert_eq!(outcome.reason, Reason::Forwarded);
    assert_eq!(outcome.frame[frame.len() - 9..], [0; 9]);
}

#[test]
fn a_packet_cut_anywhere_is_never_taken() {
    let with_data = |client, vip| {
        let segment = segment(socket(client), socket(vip), ACK);
        Segment { data: 30, ..segment }.packet()
    };
    for inner in [with_data(CLIENT, VIP), with_data(CLIENT_V6, VIP_V6)] {
        for packet in [gue(inner.clone()), gue_v6(inner)] {
            let whole = packet.frame();
            for length in 0..whole.len() {
                let outcome = run(&holder(), &whole[..length]);
                let left = matches!(outcome.action, Action::Pass | Action::Drop);
                assert!(left, "{length}: {outcome:?}");
            }
        }
    }
}

/// Headers that agree on where the packet ends, in front of what is inside.
#[test]
fn a_packet_that_says_it_ends_early_is_never_taken() {
    for inner in [tcp(ACK), tcp_v6(ACK)] {
        for packet in [gue(inner.clone()), gue_v6(inner)] {
            let whole = packet.frame();
            // Where the two lengths stand, and by how much they differ.
            let (ip, udp, header) = if whole[12] == 8 { (16, 38, 20) } else { (18, 58, 0) };
            for length in 0..u16::from_be_bytes([whole[ip], whole[ip + 1]]) {
                let mut frame = whole.clone();
                frame[ip..ip + 2].copy_from_slice(&length.to_be_bytes());
                let length_of_udp = length.wrapping_sub(header);
                frame[udp..udp + 2].copy_from_slice(&length_of_udp.to_be_bytes());
                let outcome = run(&holder(), &frame);
                let left = matches!(outcome.action, Action::Pass | Action::Drop);
                assert!(left, "{length}: {outcome:?}");
            }
        }
    }
}

/// Room enough, but a length inside that leaves none for the segment's header, or reaches beyond the
/// packet outside.
#[test]
fn a_segment_that_its_packet_has_no_room_for_is_never_taken() {
    for (inner, at) in [(tcp(SYN), 2), (tcp_v6(SYN), 4)] {
        let right = u16::from_be_bytes([inner[at], inner[at + 1]]);
        for length in (0..right).chain(right + 1..right + 40) {
            let mut inner = inner.clone();
            inner[at..at + 2].copy_from_slice(&length.to_be_bytes());
            for packet in [gue(inner.clone()), gue_v6(inner)] {
                // Padding is no room.
                let frame = [packet.frame(), vec![0; 50]].concat();
                let outcome = run(&backend(), &frame);
                assert_eq!(outcome.reason, Reason::InnerMalformed, "{length}");
            }
        }
    }
}

#[test]
fn outer_fragments_are_never_taken() {
    for (flags, expected) in [([0x20, 0], Reason::OuterFragment), ([0, 1], Reason::NotTunnel)] {
        let mut frame = gue(tcp(SYN)).frame();
        frame[20..22].copy_from_slice(&flags);
        assert_eq!(run(&backend(), &frame).reason, expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn nothing_that_arrives_is_sent_astray(
        seed in prop::collection::vec((0usize..120, any::<u8>()), 0..6),
        cut in 0usize..160,
        v6 in any::<bool>(),
        outer_v6 in any::<bool>(),
        next_hop in 0u8..3,
    ) {
        let inner = if v6 { tcp_v6(ACK) } else { tcp(ACK) };
        let mut packet = if outer_v6 { gue_v6(inner) } else { gue(inner) };
        packet.next_hop = next_hop;
        let mut frame = packet.frame();
        for (at, byte) in seed {
            let length = frame.len();
            frame[at % length] = byte;
        }
        frame.truncate(frame.len().saturating_sub(cut.saturating_sub(100)));
        let host = backend();
        let outcome = run(&host, &frame);
        match outcome.action {
            Action::Send => {
                let to = if frame[12] == 8 {
                    IpAddr::from(<[u8; 4]>::try_from(&outcome.frame[30..34]).unwrap())
                } else {
                    IpAddr::from(<[u8; 16]>::try_from(&outcome.frame[38..54]).unwrap())
                };
                prop_assert!(host.peers.contains_key(&to));
                prop_assert_eq!(outcome.frame.len(), frame.len());
            }
            Action::Take => {
                let to = if outcome.frame[12] == 8 {
                    IpAddr::from(<[u8; 4]>::try_from(&outcome.frame[30..34]).unwrap())
                } else {
                    IpAddr::from(<[u8; 16]>::try_from(&outcome.frame[38..54]).unwrap())
                };
                prop_assert!(host.vips.contains(&to));
                // The sender's MAC may be among the bytes that were changed, but it stays in place.
                prop_assert_eq!(&outcome.frame[6..12], &frame[6..12]);
            }
            Action::Pass | Action::Drop | Action::Answer => prop_assert_eq!(&outcome.frame, &frame),
        }
    }
}
