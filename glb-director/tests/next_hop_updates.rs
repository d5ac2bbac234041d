//! Ways to backends that change under a running program: each packet goes by the old ones or by the
//! new ones, whatever instant it comes in, and whatever instant the director is killed in. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use aya::{maps::MapData, programs::Xdp};
use common::{Fixed, private_pins};
use glb_common::abi::{Backend, BindSlot, MapValue, TableInfo};
use glb_director::{
    compiled_tables::{CompiledTables, ForwardingOptions},
    generation::{
        Generation,
        self_test::{TEST_INTERFACE, test_run},
    },
    oracle::{self, Verdict},
};
use glb_host::{
    bpffs::PinFolder,
    generations::{folder, pinned_program},
    mmap_array::MappedArray,
    next_hop::NextHop,
};
use glb_table::TableSet;

const TABLE: &str = r#"
[[tables]]
name = "t"
hash_key = "12345678901234561234567890123456"
seed = "34567890123456783456789012345678"
binds = [
  { ip = "198.51.100.1", proto = "tcp", port = 80 },
  { ip = "198.51.100.0/24", proto = "tcp", port_start = 81, port_end = 90 },
]
backends = [
  { ip = "10.0.1.11", state = "active", healthy = true },
  { ip = "10.0.1.12", state = "active", healthy = true },
]
"#;

/// The table with ways of which no word is the same in both.
fn image(tables: &TableSet, which: u8) -> CompiledTables {
    let hop = NextHop {
        interface: TEST_INTERFACE + u32::from(which),
        own_mac: [2, which, which, which, which, 0xaa],
        mac: [2, which, which, which, which, 2],
        source: Some(IpAddr::from([10, 0, which, which])),
        mtu: 1500 + u32::from(which),
        link_mtu: 1600 + u32::from(which),
    };
    let backends = tables.tables.iter().flat_map(|table| &table.backends);
    let ways = backends.map(|backend| (backend.address, Ok(hop))).collect();
    CompiledTables::new(tables, &Fixed::new(tables), &ways, &ForwardingOptions::default()).unwrap()
}

/// A packet that the fast path sends, and one that the general program does.
fn packets() -> [Vec<u8>; 2] {
    [80, 85].map(|port| {
        let builder = etherparse::PacketBuilder::ethernet2([2; 6], [2, 0, 0, 0, 0, 1])
            .ipv4([203, 0, 113, 5], [198, 51, 100, 1], 64)
            .tcp(40_000, port, 1, 1000)
            .ack(1);
        let mut frame = Vec::new();
        builder.write(&mut frame, &[7; 64]).unwrap();
        frame
    })
}

/// The verdict's number and the frame after a run.
fn right(image: &CompiledTables, packet: &[u8]) -> (u32, Vec<u8>) {
    match oracle::expected_outcome(image, packet).verdict {
        Verdict::Send { backend, frame } if backend.interface == TEST_INTERFACE => (3, frame),
        Verdict::Send { frame, .. } => (4, frame),
        other => panic!("{other:?}"),
    }
}

struct Loaded {
    generation: Generation,
    /// The same program, for use in another thread.
    program: Xdp,
    images: [CompiledTables; 2],
    packets: [Vec<u8>; 2],
}

impl Loaded {
    fn new(pins: &PinFolder) -> Self {
        let tables = common::tables(TABLE, glb_table::Format::Toml);
        let images = [image(&tables, 0), image(&tables, 1)];
        let generation = Generation::load(images[0].clone(), 1, pins).unwrap();
        let program = pinned_program(pins, 1).unwrap().unwrap();
        Self { generation, program, images, packets: packets() }
    }

    /// By which of the ways each packet goes; nothing for a mixture.
    fn by(&self) -> Vec<Option<usize>> {
        let by = |packet: &Vec<u8>| {
            let answer = test_run(&self.program, packet).unwrap();
            self.images.iter().position(|image| right(image, packet) == answer)
        };
        self.packets.iter().map(by).collect()
    }
}

/// The number of updates: `GLB_TEST_CHANGES`, or a default.
fn changes() -> usize {
    std::env::var("GLB_TEST_CHANGES").ok().and_then(|text| text.parse().ok()).unwrap_or(200)
}

#[test]
fn packets_see_next_hops_before_or_after_an_update_only() {
    let pins = private_pins();
    let Loaded { mut generation, program, images, packets } = Loaded::new(&pins);
    let expected: Vec<[(u32, Vec<u8>); 2]> = packets
        .iter()
        .map(|packet| [right(&images[0], packet), right(&images[1], packet)])
        .collect();
    for [old, new] in &expected {
        assert_ne!(old, new);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let traffic = thread::spawn(move || {
        let mut seen = [0_u64; 2];
        while !stopped.load(Ordering::Relaxed) {
            for (packet, answers) in packets.iter().zip(&expected) {
                let got = test_run(&program, packet).unwrap();
                let which = answers.iter().position(|answer| *answer == got);
                seen[which.unwrap_or_else(|| panic!("neither nor: {got:x?}, of {answers:x?}"))] +=
                    1;
            }
        }
        seen
    });
    let all: Vec<usize> = (0..images[0].backends.len()).collect();
    for round in 1..=changes() {
        if traffic.is_finished() {
            break;
        }
        generation.image = images[round % 2].clone();
        generation.update_next_hops(&all).unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    let seen = traffic.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    println!("{} changes: {seen:?} packets by the one way and by the other", changes());
    assert!(seen.iter().all(|count| *count > 100), "{seen:?}");
}

/// A pinned array, as a successor or a debugger opens it.
fn pinned<T: MapValue>(pins: &PinFolder, name: &str) -> MappedArray<T> {
    let data = MapData::from_pin(folder(pins, 1).join(name)).unwrap();
    let info = data.info().unwrap();
    // Of some arrays one value holds all elements.
    let bytes = info.max_entries() as usize * info.value_size() as usize;
    MappedArray::new(data.fd(), bytes / MappedArray::<T>::STRIDE).unwrap()
}

#[test]
fn an_interrupted_update_is_repaired_at_the_next_start() {
    let pins = private_pins();
    let loaded = Loaded::new(&pins);
    assert_eq!(loaded.by(), [Some(0), Some(0)]);
    let backends = pinned::<Backend>(&pins, "backends");
    let adopt = |image: &CompiledTables| Generation::adopt(image.clone(), 1, &pins).unwrap();

    // Killed while the other side was written: there is half of something.
    let junk = Backend { header: [u64::MAX; 6], interface: 77, mtu: 9999, ..Backend::default() };
    for index in 0..2 {
        backends.set(2 * index + 1, &junk).unwrap();
    }
    assert_eq!(loaded.by(), [Some(0), Some(0)], "the side that is not in force was read");
    drop(adopt(&loaded.images[0]));
    assert_eq!(backends.get(1).unwrap(), backends.get(0).unwrap());
    assert_eq!(loaded.by(), [Some(0), Some(0)]);

    // Killed when the binds had been told, and the tables not.
    for (index, new) in loaded.images[1].backends.iter().enumerate() {
        backends.set(2 * index + 1, new).unwrap();
    }
    let binds = pinned::<BindSlot>(&pins, "binds");
    for index in 0..loaded.images[0].binds.len() {
        binds.set(index, &BindSlot { bank: 1, ..binds.get(index).unwrap() }).unwrap();
    }
    assert_eq!(loaded.by(), [Some(1), Some(0)]);
    drop(adopt(&loaded.images[0]));
    assert_eq!(loaded.by(), [Some(0), Some(0)]);

    // Killed when all had been told, before the old side was made equal; the successor finds that
    // the ways are others by now.
    for (index, new) in loaded.images[1].backends.iter().enumerate() {
        backends.set(2 * index + 1, new).unwrap();
    }
    let tables = pinned::<TableInfo>(&pins, "tables");
    for index in 0..loaded.images[0].binds.len() {
        binds.set(index, &BindSlot { bank: 1, ..binds.get(index).unwrap() }).unwrap();
    }
    tables.set(0, &TableInfo { bank: 1, ..tables.get(0).unwrap() }).unwrap();
    assert_eq!(loaded.by(), [Some(1), Some(1)]);
    drop(adopt(&loaded.images[1]));
    assert_eq!(loaded.by(), [Some(1), Some(1)]);
    drop(adopt(&loaded.images[0]));
    assert_eq!(loaded.by(), [Some(0), Some(0)]);
}
