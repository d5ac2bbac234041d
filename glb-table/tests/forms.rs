//! Tables in their three formats: TOML, JSON and GLBD.
mod common;

use std::{net::IpAddr, path::Path};

use common::{hex, load_json, load_toml, vectors};
use glb_table::{Format, Key, Order, State, TableSet, edit, glbd, parse_bytes};
use serde_json::json;
use sha2::{Digest, Sha256};

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// A table file with every key.
const FULL: &str = r#"
[[tables]]
name = "web"
hash_key = "12345678901234561234567890123456"
seed = "34567890123456783456789012345678"
hash_fields = ["src_addr", "src_port"]
alt_hash_fields = ["src_addr"]
alt_hash_key = "00000000000000000000000000000001"
alt_seed = "00000000000000000000000000000002"
hops = 4
healthchecks = { interval = 2.5, list = [1, "x", true] }
binds = [
  { ip = "203.0.113.10", proto = "tcp", port = 80 },
  { ip = "2001:db8:1::/64", proto = "udp", port_start = 1, port_end = 65535 },
]

[[tables.backends]]
ip = "10.0.0.1"
state = "filling"
healthy = true
weight = 65535
zone = "a"
healthchecks = { http = 80, gue = 19523 }

[[tables.backends]]
ip = "10.0.0.2"
state = "draining"
zone = "b"

[[tables]]
name = "git"
hash_key = "12345678901234561234567890123456"
seed = "34567890123456783456789012345678"
order = "glb"
binds = [{ ip = "203.0.113.10", proto = "tcp", port = 22 }]
backends = [{ ip = "2001:db8::1", state = "active", healthy = true }]
"#;

fn same(a: &TableSet, b: &TableSet) {
    assert_eq!(a.tables, b.tables);
    assert_eq!(a.healthchecks, b.healthchecks);
}

#[test]
fn toml_and_json_are_written_without_loss() {
    let set = load_toml(FULL).unwrap();
    assert_eq!(set.tables[0].backends[1].weight, 1);
    let toml = set.to_text(Format::Toml).unwrap();
    same(&set, &load_toml(&toml).unwrap());
    let json = set.to_text(Format::Json).unwrap();
    let back = parse_bytes(Path::new("t.json"), Format::Json, json.as_bytes()).unwrap();
    same(&set, &back);
    assert_eq!(back.to_text(Format::Toml).unwrap(), toml);
    assert!(toml.contains("[[tables.backends]]"), "{toml}");
}

#[test]
fn values_that_glb_writes_are_kept() {
    // As GLB's health checker writes it: with a null at the top, and checks at each backend.
    let glb = json!({ "healthchecks": null, "tables": [{
        "name": "x", "hash_key": "12345678901234561234567890123456", "seed": "34567890123456783456789012345678",
        "binds": [{ "ip": "1.1.1.1", "proto": "tcp", "port": 80 }],
        "backends": [{ "ip": "10.0.0.1", "state": "active", "healthy": true, "healthchecks": { "http": 80, "gue": 19523 } }],
    }] });
    let set = load_json(&glb).unwrap();
    let mut written: serde_json::Value =
        serde_json::from_str(&set.to_text(Format::Json).unwrap()).unwrap();
    written["healthchecks"] = serde_json::Value::Null;
    assert_eq!(written, glb);
    let mut odd = glb.clone();
    odd["tables"][0]["backends"][0]["healthchecks"]["http"] = serde_json::Value::Null;
    let error = load_json(&odd).unwrap().to_text(Format::Toml).unwrap_err().to_string();
    assert!(error.contains("10.0.0.1") && error.contains("null"), "{error}");
}

#[test]
fn exports_equal_glb_to_the_byte_and_can_be_imported() {
    let mut compared = 0;
    for case in vectors()["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let mut input = case["input"].clone();
        let patched = name == "cidr_binds";
        if patched {
            for bind in input["tables"][0]["binds"].as_array_mut().unwrap() {
                let net: ipnet::IpNet = bind["ip"].as_str().unwrap().parse().unwrap();
                bind["ip"] = json!(net.trunc().to_string());
            }
        }
        let Ok(mut set) = load_json(&input) else { continue };
        set.tables.iter_mut().for_each(|table| table.order = Order::Glb);
        let exported = glbd::export(&set);
        if name == "binds_257" {
            assert!(exported.unwrap_err().to_string().contains("257 binds"));
            continue;
        }
        let mut bytes = exported.unwrap();
        assert_eq!(bytes.len() as u64, case["bin"]["size"].as_u64().unwrap());
        for (table, imported) in set.tables.iter().zip(glbd::import(&bytes).unwrap()) {
            assert_eq!(imported.backends, table.backends, "{name}");
            assert_eq!(imported.binds, table.binds, "{name}");
            assert_eq!(imported.hash_key, table.hash_key, "{name}");
            assert_eq!(imported.rows, table.rows(), "{name}");
            assert_eq!(
                imported.differing_rows(&imported.with_name_and_seed("x", table.seed)),
                0,
                "{name}"
            );
            assert!(
                imported.differing_rows(&imported.with_name_and_seed("x", Key::new([7; 16]))) > 0
                    || table.backends.len() == 1
            );
        }
        if patched {
            // GLB keeps the host bits of 1.2.3.77/24, the fourth bind: its last address byte.
            let at = 24 + 4 + 256 * 24 + 4 + 3 * 28 + 4 + 3;
            assert_eq!(bytes[at], 0);
            bytes[at] = 77;
        }
        if let Some(expected) = case["bin"]["sha256"].as_str() {
            assert_eq!(sha256(&bytes), expected, "{name}");
            compared += 1;
        }
    }
    assert_eq!(compared, 16);
}

#[test]
fn exports_that_do_not_fit_are_refused() {
    let set = load_toml(FULL).unwrap();
    let error = |index: usize| {
        let mut one = set.clone();
        one.tables = vec![one.tables.remove(index)];
        glbd::export(&one).unwrap_err().to_string()
    };
    assert!(error(0).contains("4 hops"), "{}", error(0));
    assert!(error(1).contains("IPv6"), "{}", error(1));
}

#[test]
fn imports_of_invalid_bytes_are_refused_with_their_offset() {
    let vectors = vectors();
    let set = load_json(&vectors["cases"][1]["input"]).unwrap();
    let good = glbd::export(&set).unwrap();
    let rows = good.len() - 65_536 * 8;
    let table = [
        (0, b'X', "start with GLBD"),
        (4, 3, "version is 3"),
        (8, 9, "9 tables take"),
        (12, 1, "number of rows"),
        (16, 1, "backend slots"),
        (24, 0, "0 backends"),
        (25, 2, "515 backends"),
        (28, 3, "address family 3"),
        (24 + 4 + 20, 3, "state 3"),
        (24 + 4 + 22, 2, "health 2"),
        (24 + 4 + 256 * 24, 0, "0 binds"),
        (24 + 8 + 256 * 24 + 20, 33, "prefix of 33"),
        (24 + 8 + 256 * 24 + 26, 1, "protocol 1"),
        (rows + 8 * 5, 3, "row 5 names backend 3 of 3"),
    ];
    for (at, byte, expected) in table {
        let mut bad = good.clone();
        bad[at] = byte;
        let error = glbd::import(&bad).unwrap_err().to_string();
        assert!(error.contains(expected), "{at}: {error}");
    }
    for length in [0, 3, 4, 23, 24, 100, good.len() - 1] {
        assert!(glbd::import(&good[..length]).is_err(), "{length}");
    }
    assert!(glbd::import(&[&good[..], &[0]].concat()).is_err());
}

#[test]
fn an_edit_changes_one_word_only() {
    let path = Path::new("t.toml");
    let text = FULL.replace("state = \"filling\"", "state    =   'filling'   # came on Monday");
    let address: IpAddr = "10.0.0.1".parse().unwrap();
    let (edited, changes) = edit::set_state(path, &text, address, State::Draining, None).unwrap();
    assert_eq!(edited, text.replace("'filling'", "\"draining\""));
    assert_eq!(
        (changes.len(), changes[0].from, changes[0].to),
        (1, State::Filling, State::Draining)
    );
    let (again, changes) =
        edit::set_state(path, &edited, address, State::Draining, Some("web")).unwrap();
    assert_eq!((again, changes.len()), (edited, 0));
    let json = r#"{ "tables":[ {"hash_key":"12345678901234561234567890123456","seed":"12345678901234561234567890123456",
        "binds":[{"ip":"1.1.1.1","proto":"tcp","port":1}],  "backends":[{"state":"active", "ip":"10.0.0.1"},
        { "ip":"10.0.0.2","state":"active" }]}]}"#;
    let (edited, _) =
        edit::set_state(Path::new("t.json"), json, address, State::Inactive, None).unwrap();
    assert_eq!(edited, json.replacen("\"active\"", "\"inactive\"", 1));
    let error = edit::set_state(
        Path::new("t.json"),
        &edited,
        "10.0.0.2".parse().unwrap(),
        State::Inactive,
        None,
    )
    .unwrap_err();
    assert!(error.to_string().contains("no backend of table"), "{error}");
    let error = edit::set_state(path, &text, "10.9.9.9".parse().unwrap(), State::Active, None)
        .unwrap_err()
        .to_string();
    assert!(error.contains("10.9.9.9") && error.contains("10.0.0.2"), "{error}");
    let error =
        edit::set_state(path, &text, address, State::Active, Some("wib")).unwrap_err().to_string();
    assert!(error.contains("\"wib\"") && error.contains("\"web\", \"git\""), "{error}");
}

#[test]
fn replacing_a_file_keeps_its_mode_and_link() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let (file, link) = (folder.path().join("t.toml"), folder.path().join("link.toml"));
    std::fs::write(&file, "old").unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o664)).unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    glb_table::atomic_file::replace(&link, b"new").unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), b"new");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o664);
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    let fresh = folder.path().join("fresh");
    glb_table::atomic_file::replace(&fresh, b"x").unwrap();
    assert_eq!(std::fs::metadata(&fresh).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
}
