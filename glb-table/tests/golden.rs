//! Rows equal those that GLB's own tool builds.
mod common;

use common::{load_json, rows_sha256, vectors};
use glb_table::{Order, ROWS};
use serde_json::{Value, json};

/// Inputs that this project refuses on purpose, with a part of the error.
const REFUSED: [(&str, &str); 5] = [
    ("cidr_binds", "bits set after its prefix"),
    ("all_inactive", "no backend of table"),
    ("no_backends", "`backends` is empty"),
    ("no_tables", "`tables` is empty"),
    ("ipv6_backends", "IPv4 and IPv6 backends"),
];

#[test]
fn rows_of_every_case_equal_glb_in_both_orders() {
    let mut compared = 0;
    for case in vectors()["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let mut input = case["input"].clone();
        if let Some((_, word)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
            let error = load_json(&input).unwrap_err().to_string();
            assert!(error.contains(word), "{name}: {error}");
            if name != "cidr_binds" {
                continue;
            }
            // GLB keeps the host bits; its rows do not depend on them.
            for bind in input["tables"][0]["binds"].as_array_mut().unwrap() {
                let net: ipnet::IpNet = bind["ip"].as_str().unwrap().parse().unwrap();
                bind["ip"] = json!(net.trunc().to_string());
            }
        }
        let set = load_json(&input).unwrap_or_else(|error| panic!("{name}: {error}"));
        for (table, expected) in set.tables.iter().zip(case["tables"].as_array().unwrap()) {
            assert_eq!(table.backends.len() as u64, expected["num_backends"], "{name}");
            assert_eq!(table.hash_key.to_hex(), expected["hash_key"], "{name}");
            let Some(glb) = expected["rows_sha256"].as_str() else { continue };
            let right = expected["rows_sha256_proposed"].as_str().unwrap_or(glb);
            let mut table = table.clone();
            let rows = table.rows();
            assert_eq!(rows_sha256(&table, &rows), right, "{name}, right order");
            table.order = Order::Glb;
            let glb_rows = table.rows();
            assert_eq!(rows_sha256(&table, &glb_rows), glb, "{name}, order = \"glb\"");
            let differing = rows.iter().zip(glb_rows.iter()).filter(|(a, b)| a != b).count();
            assert_eq!(differing as u64, expected["rows_differing_glb_vs_proposed"], "{name}");
            for (row, indices) in expected["first16_indices"].as_array().unwrap().iter().enumerate()
            {
                assert_eq!(json!(glb_rows.row(row)), *indices, "{name}, row {row}");
            }
            compared += 1;
        }
    }
    assert_eq!(compared, 18);
}

#[test]
fn one_usable_backend_makes_rows_of_one_hop() {
    let vectors = vectors();
    let case = vectors["cases"]
        .as_array()
        .unwrap()
        .iter()
        .find(|case| case["name"] == "one_backend_after_three")
        .unwrap();
    let set = load_json(&case["input"]).unwrap();
    let rows = set.tables[1].rows();
    assert_eq!(rows.hops, 1);
    assert_eq!(rows.as_flat(), vec![0; ROWS]);
    assert_eq!(set.tables[0].rows().hops, 2);
}

#[test]
fn the_order_of_hops_follows_the_state_matrix_in_both_orders() {
    let vectors = vectors();
    let matrix = vectors["swap_matrix"]["rows"].as_array().unwrap();
    assert_eq!(matrix.len(), 36);
    let table = |a: &Value, b: &Value, order: Order| {
        let backend = |ip: &str, of: &Value| json!({ "ip": ip, "state": of["state"], "healthy": of["healthy"] });
        let mut set = load_json(&json!({ "tables": [{
            "hash_key": "12345678901234561234567890123456",
            "seed": "34567890123456783456789012345678",
            "binds": [{ "ip": "1.1.1.1", "proto": "tcp", "port": 80 }],
            "backends": [backend("10.0.0.1", a), backend("10.0.0.2", b)],
        }] }))
        .unwrap();
        set.tables[0].order = order;
        set.tables.remove(0)
    };
    let healthy = json!({ "state": "active", "healthy": true });
    // Two equal backends stand by rank.
    let by_rank = table(&healthy, &healthy, Order::HealthyFirst).rows();
    for case in matrix {
        for (order, prefix) in [(Order::Glb, ""), (Order::HealthyFirst, "proposed_")] {
            let table = table(&case["a"], &case["b"], order);
            let rows = table.rows();
            let swapped = |first: u16| {
                let mut swaps = rows
                    .iter()
                    .zip(by_rank.iter())
                    .filter(|(_, rank)| rank[0] == first)
                    .map(|(row, rank)| row != rank);
                let one = swaps.next().unwrap();
                assert!(swaps.all(|other| other == one), "{case}: a table's rows follow one rule");
                one
            };
            assert_eq!(swapped(0), case[format!("{prefix}a_first_rows_swapped")], "{case}");
            assert_eq!(swapped(1), case[format!("{prefix}b_first_rows_swapped")], "{case}");
            if order == Order::Glb {
                assert_eq!(rows_sha256(&table, &rows), case["rows_sha256"], "{case}");
            }
        }
    }
}

#[test]
fn ranks_of_single_rows_follow_the_step_by_step_vectors() {
    for vector in vectors()["row_vectors"].as_array().unwrap() {
        let backends: Vec<&String> = vector["host_digests"].as_object().unwrap().keys().collect();
        let set = load_json(&json!({ "tables": [{
            "hash_key": "00000000000000000000000000000000",
            "seed": vector["seed"],
            "binds": [{ "ip": "1.1.1.1", "proto": "tcp", "port": 80 }],
            "backends": backends.iter().map(|ip| json!({ "ip": ip, "state": "active", "healthy": true })).collect::<Vec<_>>(),
        }] }))
        .unwrap();
        let row = vector["index"].as_u64().unwrap() as u16;
        let order: Vec<&String> = set.tables[0]
            .ranks()
            .full(row)
            .into_iter()
            .map(|index| backends[usize::from(index)])
            .collect();
        assert_eq!(json!(order), vector["order"]);
    }
}
