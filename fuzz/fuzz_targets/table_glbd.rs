//! Reads arbitrary bytes as a GLBD file. Asserts: no panic; every index in the rows names a backend; no
//! range of ports is empty.
//!
//! The bytes are also written over a valid file, because the fuzzer alone never finds a valid size.
#![no_main]

use std::{path::Path, sync::LazyLock};

use glb_table::{Format, glbd, parse_bytes};
use libfuzzer_sys::fuzz_target;

const TABLE: &str = r#"{"tables":[{"hash_key":"12345678901234561234567890123456","seed":"12345678901234561234567890123456",
"binds":[{"ip":"1.1.1.0/24","proto":"tcp","port":80},{"ip":"2001:db8::1","proto":"udp","port_start":1,"port_end":9}],
"backends":[{"ip":"10.0.0.1","state":"active","healthy":true},{"ip":"10.0.0.2","state":"draining"},
{"ip":"10.0.0.3","state":"inactive"}]}]}"#;

static GOOD: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let set = parse_bytes(Path::new("t.json"), Format::Json, TABLE.as_bytes()).expect("a good table");
    glbd::export(&set).expect("it fits")
});

fn check(bytes: &[u8]) {
    if let Ok(tables) = glbd::import(bytes) {
        for table in tables {
            assert!(table.rows.as_flat().iter().all(|index| usize::from(*index) < table.backends.len()));
            assert!(table.binds.iter().all(|bind| bind.ports.start() <= bind.ports.end()));
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    // Four bytes are one change: an offset of three bytes, and a value.
    let mut file = GOOD.clone();
    for piece in bytes.chunks_exact(4) {
        let at = u32::from_le_bytes([piece[0], piece[1], piece[2], 0]) as usize;
        // Most changes go to the header and the first rows, which the reader checks.
        let span = if piece[2] & 1 == 0 { 14_000 } else { file.len() };
        file[at % span] = piece[3];
    }
    check(&file);
});
