//! Sets a backend's state in an arbitrary table file. Asserts: no panic; the result is a valid table that
//! differs in that state only.
#![no_main]

use std::path::Path;

use glb_table::{Format, State, edit, parse_bytes};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((&choice, bytes)) = bytes.split_first() else { return };
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (path, form) =
        if choice & 1 == 0 { (Path::new("t.toml"), Format::Toml) } else { (Path::new("t.json"), Format::Json) };
    let Ok(old) = parse_bytes(path, form, bytes) else { return };
    let (_, state) = State::NAMES[usize::from(choice >> 1) % 4];
    let Some(address) = old.tables.iter().flat_map(|table| &table.backends).map(|backend| backend.address).next() else {
        return;
    };
    if let Ok((text, _)) = edit::set_state(path, text, address, state, None) {
        let mut new = parse_bytes(path, form, text.as_bytes()).expect("an edit leaves a valid table");
        for (new, old) in new.tables.iter_mut().zip(&old.tables) {
            for (new, old) in new.backends.iter_mut().zip(&old.backends) {
                assert!(new.address != address || new.state == state);
                new.state = old.state;
            }
        }
        assert_eq!(old.tables, new.tables);
    }
});
