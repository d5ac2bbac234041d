//! Lookups of flows: GLB's own hash vectors, the choice of a bind, and the reasons.
#![expect(clippy::unwrap_used, reason = "test helpers")]

mod common;

use std::net::IpAddr;

use common::load_json;
use glb_table::{
    HashFields, Proto, TableSet, hash_field_names,
    lookup::{FlowQuery, LookupError, lookup},
};
use serde_json::{Value, json};

fn set(key: &str, fields: &Value, bind: &Value) -> TableSet {
    load_json(&json!({ "tables": [{
        "name": "web", "hash_key": key, "seed": "34567890123456783456789012345678", "hash_fields": fields,
        "binds": [bind], "backends": [
            { "ip": "10.0.0.1", "state": "active", "healthy": true },
            { "ip": "10.0.0.2", "state": "draining", "healthy": true },
            { "ip": "10.0.0.3", "state": "inactive", "healthy": true },
        ],
    }] }))
    .unwrap()
}

fn query(
    source: &str,
    port: Option<u16>,
    vip: &str,
    vip_port: Option<u16>,
    proto: Proto,
) -> FlowQuery {
    let (source, vip) = (source.parse().unwrap(), vip.parse().unwrap());
    FlowQuery { source, source_port: port, vip, port: vip_port, proto }
}

#[test]
fn hashes_and_rows_equal_glb() {
    let vectors: Value =
        serde_json::from_str(include_str!("../../glb-common/tests/data/hash_vectors.json"))
            .unwrap();
    let mut compared = 0;
    for vector in vectors["vectors"].as_array().unwrap() {
        let tuple = &vector["tuple"];
        let port = |key: &str| u16::try_from(tuple[key].as_u64().unwrap()).unwrap();
        // Echo requests have no ports, and no bind names port 0.
        if port("dst_port") == 0 {
            continue;
        }
        let proto = if vector["bind_proto"] == 17 { Proto::Udp } else { Proto::Tcp };
        let (source, vip) =
            (tuple["src_addr"].as_str().unwrap(), tuple["dst_addr"].as_str().unwrap());
        let question = query(source, Some(port("src_port")), vip, Some(port("dst_port")), proto);
        let bind = json!({ "ip": vip, "proto": proto.name(), "port": port("dst_port") });
        for expected in vector["vectors"].as_array().unwrap() {
            let set = set(vector["hash_key"].as_str().unwrap(), &expected["fields"], &bind);
            let found = lookup(&set, &question).unwrap().main;
            assert_eq!(found.hash, expected["hash_u64"].as_str().unwrap(), "{vector}");
            assert_eq!(u64::from(found.row), expected["row"].as_u64().unwrap());
            assert_eq!(json!(found.hash_fields), expected["fields"]);
            compared += 1;
        }
    }
    assert!(compared >= 60, "{compared}");
}

#[test]
fn reasons_name_skipped_and_reordered_backends() {
    let set = set(
        "12345678901234561234567890123456",
        &json!(["src_addr"]),
        &json!({ "ip": "203.0.113.0/24", "proto": "tcp", "port": 80 }),
    );
    let mut seen = [false; 3];
    for last in 1..=200_u8 {
        let answer = lookup(
            &set,
            &query(&format!("198.51.100.{last}"), None, "203.0.113.9", Some(80), Proto::Tcp),
        )
        .unwrap();
        let addresses: Vec<IpAddr> = answer.hops.iter().map(|hop| hop.address).collect();
        assert_eq!(addresses, ["10.0.0.1".parse::<IpAddr>().unwrap(), "10.0.0.2".parse().unwrap()]);
        let why = answer.main.why.join("\n");
        seen[0] |= why.contains("10.0.0.3 is skipped: it is inactive");
        seen[1] |= why.contains("10.0.0.2 is draining, and 10.0.0.1 takes new connections");
        seen[2] |= why.contains("in the order of rank");
    }
    assert_eq!(seen, [true; 3]);
}

#[test]
fn the_longest_prefix_with_the_port_matches() {
    let table = |name: &str, ip: &str, first: u16, last: u16| {
        json!({ "name": name, "hash_key": "12345678901234561234567890123456", "seed": "34567890123456783456789012345678",
            "binds": [{ "ip": ip, "proto": "tcp", "port_start": first, "port_end": last }],
            "backends": [{ "ip": "10.0.0.1", "state": "active", "healthy": true }] })
    };
    let set = load_json(&json!({ "tables": [
        table("net", "203.0.113.0/24", 1, 65535),
        table("host", "203.0.113.9", 80, 80),
    ] }))
    .unwrap();
    let name = |port| {
        lookup(&set, &query("192.0.2.1", None, "203.0.113.9", port, Proto::Tcp))
            .map(|answer| answer.table)
    };
    assert_eq!(name(Some(80)).unwrap(), "host");
    assert_eq!(name(Some(81)).unwrap(), "net");
    assert!(matches!(name(None), Err(LookupError::WhichPort { .. })));
    let answer =
        lookup(&set, &query("192.0.2.1", None, "203.0.113.9", Some(80), Proto::Tcp)).unwrap();
    assert_eq!(answer.hops.len(), 1);
    assert!(answer.main.why.iter().any(|why| why.contains("one usable backend")));
    let udp = lookup(&set, &query("192.0.2.1", None, "203.0.113.9", Some(80), Proto::Udp));
    assert!(matches!(udp, Err(LookupError::NoBind { .. })));
}

#[test]
fn a_hash_over_ports_needs_the_ports() {
    let set = set(
        "12345678901234561234567890123456",
        &json!(["src_addr", "src_port"]),
        &json!({ "ip": "203.0.113.9", "proto": "tcp", "port": 80 }),
    );
    assert_eq!(hash_field_names(HashFields::SRC_PORT), ["src_port"]);
    let error =
        lookup(&set, &query("192.0.2.1", None, "203.0.113.9", None, Proto::Tcp)).unwrap_err();
    assert!(error.to_string().contains("192.0.2.1:54321"), "{error}");
    assert!(lookup(&set, &query("192.0.2.1", Some(5), "203.0.113.9", None, Proto::Tcp)).is_ok());
}
