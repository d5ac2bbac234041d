//! The MSS of SYN-ACKs: what is changed and what is left, checked by an independent parser.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use etherparse::{PacketBuilder, SlicedPacket, TcpOptionElement, TransportSlice};
use glb_common::{
    flow::Address,
    mss::{Clamp, Limits, Vips, clamp},
};

const LIMITS: Limits = Limits { v4: 1420, v6: 1400 };

struct Only;

impl Vips for Only {
    fn is_vip<A: Address>(&self, address: &A) -> bool {
        let [high, low] = address.words();
        let v4 = u64::from(u32::from_le_bytes([203, 0, 113, 10]));
        let v6 = [[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0x10]];
        if A::FAMILY == 4 { low == v4 } else { [high, low] == v6.map(u64::from_le_bytes) }
    }
}

#[derive(Clone, Copy)]
enum From {
    Vip,
    Another,
}

/// A frame with these raw options; SYN-ACK unless `flags` says otherwise.
fn frame(v6: bool, from: From, options: &[u8], flags: (bool, bool, bool)) -> Vec<u8> {
    let link = PacketBuilder::ethernet2([2; 6], [4; 6]);
    let ip = if v6 {
        let mut source = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10];
        if matches!(from, From::Another) {
            source[15] = 0x11;
        }
        link.ipv6(source, [9; 16], 64)
    } else {
        let last = if matches!(from, From::Another) { 11 } else { 10 };
        link.ipv4([203, 0, 113, last], [198, 51, 100, 7], 64)
    };
    let mut tcp = ip.tcp(80, 40_000, 1, 1000).options_raw(options).unwrap();
    let (syn, ack, rst) = flags;
    if syn {
        tcp = tcp.syn();
    }
    if ack {
        tcp = tcp.ack(5);
    }
    if rst {
        tcp = tcp.rst();
    }
    let mut bytes = Vec::new();
    tcp.write(&mut bytes, &[]).unwrap();
    bytes
}

/// The MSS in the frame; its checksum must be right.
fn mss(frame: &[u8]) -> Option<u16> {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(TransportSlice::Tcp(tcp)) = packet.transport else { panic!("no TCP") };
    let sum = match packet.net.unwrap() {
        etherparse::NetSlice::Ipv4(ip) => {
            let header = ip.header();
            let (source, destination) = (header.source(), header.destination());
            tcp.to_header().calc_checksum_ipv4_raw(source, destination, &[]).unwrap()
        }
        etherparse::NetSlice::Ipv6(ip) => {
            tcp.to_header().calc_checksum_ipv6(&ip.header().to_header(), &[]).unwrap()
        }
        _ => panic!("no IP"),
    };
    assert_eq!(tcp.checksum(), sum, "checksum");
    tcp.options_iterator().find_map(|option| match option.unwrap() {
        TcpOptionElement::MaximumSegmentSize(mss) => Some(mss),
        _ => None,
    })
}

const SYN_ACK: (bool, bool, bool) = (true, true, false);

#[test]
fn only_downward_wherever_the_option_stands() {
    for v6 in [false, true] {
        let limit = if v6 { LIMITS.v6 } else { LIMITS.v4 };
        for said in [0u16, 1, 536, limit - 1, limit, limit + 1, 1460, 8960, 0xffff] {
            let [a, b] = said.to_be_bytes();
            for options in [
                &[2, 4, a, b][..],
                // At an odd place, at the end, behind options with lengths.
                &[1, 2, 4, a, b, 0, 0, 0],
                &[4, 2, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 3, 3, 7, 2, 4, a, b, 0],
                &[&[1; 36][..], &[2, 4, a, b]].concat(),
                &[&[1; 35][..], &[2, 4, a, b, 0]].concat(),
            ] {
                let mut frame = frame(v6, From::Vip, options, SYN_ACK);
                let before = frame.clone();
                match clamp(&&frame.clone()[..], LIMITS, &Only) {
                    Some(change) => {
                        assert!(said > limit, "{said} was lowered to {limit}");
                        assert!(change.write(&mut frame[..]));
                    }
                    None => assert!(said <= limit, "{said} stays: {options:?}"),
                }
                assert_eq!(mss(&frame), Some(said.min(limit)), "{options:?}");
                let changed = before.iter().zip(&frame).filter(|(a, b)| a != b).count();
                assert!(changed <= 4, "{changed} bytes changed");
            }
        }
    }
}

#[test]
fn everything_else_is_left() {
    let full = [2, 4, 5, 180];
    for v6 in [false, true] {
        for (what, from, options, flags) in [
            ("a SYN", From::Vip, &full[..], (true, false, false)),
            ("an ACK", From::Vip, &full, (false, true, false)),
            ("a RST", From::Vip, &full, (true, true, true)),
            ("another address", From::Another, &full, SYN_ACK),
            ("no options", From::Vip, &[], SYN_ACK),
            ("after the end", From::Vip, &[0, 0, 0, 0, 2, 4, 5, 180], SYN_ACK),
            ("a length of 0", From::Vip, &[9, 0, 1, 1, 2, 4, 5, 180], SYN_ACK),
            ("a length of 1", From::Vip, &[9, 1, 1, 1, 2, 4, 5, 180], SYN_ACK),
            ("a length beyond the end", From::Vip, &[9, 200, 1, 1, 2, 4, 5, 180], SYN_ACK),
            ("another length of MSS", From::Vip, &[2, 5, 5, 180, 0, 0, 0, 0], SYN_ACK),
            ("cut off", From::Vip, &[1, 1, 2, 4], SYN_ACK),
        ] {
            let frame = frame(v6, from, options, flags);
            assert_eq!(clamp(&&frame[..], LIMITS, &Only), None, "{what}");
        }
        let whole = frame(v6, From::Vip, &full, SYN_ACK);
        assert!(matches!(clamp(&&whole[..], LIMITS, &Only), Some(Clamp { is_odd: false, .. })));
        assert_eq!(clamp(&&whole[..], Limits::default(), &Only), None, "no limit");
        for length in 0..whole.len() {
            assert_eq!(clamp(&&whole[..length], LIMITS, &Only), None, "cut to {length}");
        }
    }
    let mut fragment = frame(false, From::Vip, &full, SYN_ACK);
    fragment[20] = 0x20;
    assert_eq!(clamp(&&fragment[..], LIMITS, &Only), None, "a fragment");
}
