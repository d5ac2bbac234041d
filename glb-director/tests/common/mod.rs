//! Shared by the director's tests: GLB's vectors, images made for them, and a place to load
//! programs in.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub(crate) mod bird;
pub(crate) mod generate;
pub(crate) mod live;
pub(crate) mod traffic;

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use glb_common::hash::HashFields;
use glb_director::{
    compiled_tables::{CompiledTables, ForwardingOptions},
    counters::{BackendId, CounterSlots},
    generation::Generation,
};
use glb_host::{
    bpffs::PinFolder,
    next_hop::{NextHop, Snapshot},
};
use glb_table::TableSet;
use serde_json::Value;

pub(crate) fn golden() -> Value {
    serde_json::from_str(include_str!("../data/encap_vectors.json")).unwrap()
}

pub(crate) fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

/// Tables and backends by their place in the file.
pub(crate) struct Fixed(HashMap<String, u32>);

impl Fixed {
    pub(crate) fn new(tables: &TableSet) -> Self {
        let names = tables.tables.iter().map(|table| table.name.clone());
        Self(names.zip(2..).collect())
    }
}

impl CounterSlots for Fixed {
    fn table(&self, name: &str) -> u32 {
        self.0[name]
    }

    fn backend(&self, backend_id: &BackendId) -> u32 {
        let last = match backend_id.address {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(address) => address.octets()[15],
        };
        1 + u32::from(last) + 256 * self.0[&backend_id.table]
    }
}

/// Outer source of IPv6 tunnels.
pub(crate) const SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xaaaa, 0, 0, 0, 0, 1);

/// Every backend behind one gateway.
pub(crate) fn gateway(tables: &TableSet, interface: u32, mac: [u8; 6]) -> Snapshot {
    let hop = |backend: &glb_table::Backend| NextHop {
        interface,
        own_mac: [2, 0, 0, 0, 0, 0xaa],
        mac,
        source: Some(match backend.address {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::new(65, 65, 65, 65)),
            IpAddr::V6(_) => IpAddr::V6(SOURCE_V6),
        }),
        mtu: 1600,
        link_mtu: 1700,
    };
    let backends = tables.tables.iter().flat_map(|table| &table.backends);
    backends.map(|backend| (backend.address, Ok(hop(backend)))).collect()
}

pub(crate) fn image_of(tables: &TableSet, interface: u32) -> CompiledTables {
    let next_hops = gateway(tables, interface, [2, 0, 0, 0, 0, 1]);
    let options = ForwardingOptions { answers_per_second: 0, ..ForwardingOptions::default() };
    CompiledTables::new(tables, &Fixed::new(tables), &next_hops, &options).unwrap()
}

/// As [`image_of`], with the outer TOS that GLB's vectors have.
pub(crate) fn glb_image_of(tables: &TableSet, interface: u32) -> CompiledTables {
    let next_hops = gateway(tables, interface, [2, 0, 0, 0, 0, 1]);
    let options = ForwardingOptions { outer_tos: Some(0), ..ForwardingOptions::default() };
    CompiledTables::new(tables, &Fixed::new(tables), &next_hops, &options).unwrap()
}

/// Text as a table file.
pub(crate) fn tables(text: &str, form: glb_table::Format) -> TableSet {
    glb_table::parse_bytes(Path::new("test"), form, text.as_bytes())
        .unwrap_or_else(|error| panic!("{}", error.render(false)))
}

/// Tables that use what a table can have.
pub(crate) fn varied() -> TableSet {
    tables(include_str!("../data/varied.toml"), glb_table::Format::Toml)
}

/// The vectors' tables under one of their configurations.
pub(crate) fn golden_tables(golden: &Value, config: &str) -> TableSet {
    let text = golden["forwarding_table"].to_string();
    let mut tables = tables(&text, glb_table::Format::Json);
    let config = &golden["config"]["hash_fields"][config];
    // Four digits in the order of the fields: source and destination address, then the ports.
    let fields = |digits: &Value| {
        let digits = digits.as_str().unwrap().bytes().enumerate();
        HashFields::from_bits(digits.map(|(bit, digit)| (digit - b'0') << bit).sum())
    };
    for table in &mut tables.tables {
        table.hash_fields = fields(&config["hash_fields"]).unwrap();
        table.alt_hash_fields = fields(&config["alt_hash_fields"]);
    }
    tables
}

/// Runs `test` in a thread, which may have mounts of its own.
pub(crate) fn alone(test: impl FnOnce() + Send + 'static) {
    if let Err(panic) = std::thread::spawn(test).join() {
        std::panic::resume_unwind(panic);
    }
}

pub(crate) fn load(image: &CompiledTables, number: u64, pins: &PinFolder) -> Generation {
    Generation::load(image.clone(), number, pins).unwrap_or_else(|error| panic!("{error}"))
}

/// A pin folder of this thread's own.
pub(crate) fn private_pins() -> PinFolder {
    PinFolder::private().expect("this test loads BPF programs: run it as root (./x test says how)")
}
