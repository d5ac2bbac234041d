//! Flow hashes, rows and outer source ports against GLB's own.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use glb_common::{
    flow::{FiveTuple, V4},
    hash::{HashFields, flow_hash},
    parse::{Packet, parse},
    reason::DirectorReason as Reason,
};
use serde_json::Value;

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn fields(names: &Value) -> HashFields {
    names
        .as_array()
        .unwrap()
        .iter()
        .map(|name| match name.as_str().unwrap() {
            "src_addr" => HashFields::SRC_ADDR,
            "dst_addr" => HashFields::DST_ADDR,
            "src_port" => HashFields::SRC_PORT,
            "dst_port" => HashFields::DST_PORT,
            other => panic!("unknown field {other}"),
        })
        .reduce(HashFields::union)
        .unwrap()
}

fn check(name: &str, key: [u64; 2], packet: &Packet, vectors: &Value) -> usize {
    let vectors = vectors.as_array().unwrap();
    for vector in vectors {
        let hash = flow_hash(key, fields(&vector["fields"]), &packet.flow);
        let at = format!("{name}, {}", vector["fields"]);
        assert_eq!(format!("{hash:016x}"), vector["hash_u64"].as_str().unwrap(), "{at}");
        assert_eq!(hash & 0xffff, vector["row"].as_u64().unwrap(), "{at}");
        let source_port = 0x8000 | ((hash as u16 ^ packet.flow_hint) & 0x7fff);
        assert_eq!(u64::from(source_port), vector["outer_udp_sport"].as_u64().unwrap(), "{at}");
    }
    vectors.len()
}

/// The IPv4 packet in `frame` without options, as `parse` would see it if port 0 could be bound.
fn zeroes(frame: &[u8]) -> Packet {
    let address = |at: usize| V4::new(frame[at..at + 4].try_into().unwrap());
    let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let (source_port, destination_port) = (port(34), port(36));
    let flow = FiveTuple::new(address(26), address(30), frame[23]);
    Packet {
        flow: FiveTuple { source_port, destination_port, ..flow },
        ip_length: port(16),
        flow_hint: source_port,
        ..Packet::default()
    }
}

#[test]
fn every_vector_of_every_packet() {
    let golden: Value = serde_json::from_str(include_str!("data/hash_vectors.json")).unwrap();
    let mut checked = 0;
    for case in golden["vectors"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let key = hex(case["hash_key"].as_str().unwrap());
        let word = |half: &[u8]| u64::from_le_bytes(half.try_into().unwrap());
        let key = [word(&key[..8]), word(&key[8..])];
        let frame = hex(case["packet"].as_str().unwrap());
        let packet = match parse(&frame[..]) {
            Ok(packet) => packet,
            // Everything in this vector is 0, its ports too: no such packet is forwarded, but the
            // hash must be right.
            Err(Reason::NoBind) if name == "v4_zero_addr" => zeroes(&frame),
            Err(reason) => panic!("{name}: {reason:?}"),
        };
        assert_eq!(u64::from(packet.ip_length), case["ip_total_length"].as_u64().unwrap());
        checked += check(name, key, &packet, &case["vectors"]);
    }
    assert!(checked >= 100, "only {checked} vectors were found");
}
