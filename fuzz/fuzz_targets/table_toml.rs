//! Reads arbitrary bytes as a TOML table. Asserts: no panic; every problem has a place and a remedy; a
//! valid table survives writing and reading as TOML and as JSON.
#![no_main]

use std::path::Path;

use glb_table::{Format, parse_bytes};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match parse_bytes(Path::new("t.toml"), Format::Toml, bytes) {
        Ok(set) => {
            if let Ok(text) = set.to_text(Format::Toml) {
                let again = parse_bytes(Path::new("t.toml"), Format::Toml, text.as_bytes()).expect("what is written is valid");
                assert_eq!(set.tables, again.tables);
            }
            let text = set.to_text(Format::Json).expect("JSON holds every set");
            let again = parse_bytes(Path::new("t.json"), Format::Json, text.as_bytes()).expect("what is written is valid");
            assert_eq!(set.tables, again.tables);
        }
        Err(error) => {
            let _ = error.render(false);
            for problem in error.problems() {
                assert!(problem.line > 0 && problem.column > 0 && !problem.help.is_empty());
            }
        }
    }
});
