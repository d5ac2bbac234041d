//! Reads arbitrary bytes as a capture file. Asserts: no panic; packets are numbered in order and are no
//! longer than the file.
#![no_main]

#[path = "../../glb-host/src/capture_file.rs"]
#[allow(dead_code, reason = "shared with the daemons")]
mod capture_file;

use std::{io::Cursor, path::Path};

use capture_file::CaptureReader;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let source = Cursor::new(bytes.to_vec());
    let Ok(mut reader) = CaptureReader::from_reader(source, Path::new("x.pcap")) else { return };
    let mut number = 0;
    while let Ok(Some(packet)) = reader.next_packet() {
        number += 1;
        assert_eq!(packet.number, number);
        assert!(packet.data.len() <= bytes.len() && packet.data.len() <= packet.length as usize);
        assert_eq!(packet.is_truncated(), packet.data.len() < packet.length as usize);
    }
});
