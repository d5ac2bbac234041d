//! Sorts the configured binds by how the program looks them up: a bind of one address and one port
//! goes into a perfect hash, every other bind into prefixes with ranges of ports.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use glb_common::{
    abi::{BindSlot, NO_ROWS, Segment},
    flow::{Address as _, V4, V6},
    hash::HashFields,
    vip_lookup::{NO_TABLE, hash, port_key, segment_key},
    wire::protocol,
};
use glb_host::perfect_hash::PerfectHash;
use glb_table::{Bind, TableSet};
use ipnet::IpNet;

/// The binds of a table set, by kind of look-up.
#[derive(Debug, Default)]
pub(super) struct Binds {
    /// Binds of one address and one port.
    pub(super) exact: Vec<BindSlot>,
    /// Binds of prefixes or port ranges, one range each. Packets without a port (echo requests and
    /// later fragments) have a range of port 0 for every bound address.
    pub(super) ranges: Vec<(IpNet, Segment)>,
    /// Whether any of the ranges is a bind, and not only for packets without a port.
    pub(super) has_port_ranges: bool,
}

/// Sorts the binds of `tables`. If several tables bind an address, its echo requests go to the first.
pub(super) fn collect(tables: &TableSet, forward_echo: bool) -> Binds {
    let mut binds = Binds::default();
    let segment = |protocol, first, last, table| Segment {
        first: segment_key(protocol, first),
        last: segment_key(protocol, last),
        table,
        padding: 0,
    };
    for (table, bind) in each_bind(tables) {
        let (first, last) = (*bind.ports.start(), *bind.ports.end());
        if is_one_address(bind.prefix) && first == last {
            let (address, port_key) = exact_key(bind.prefix.addr(), bind.proto.number(), first);
            binds.exact.push(BindSlot {
                address,
                port_key,
                table,
                plain_rows: NO_ROWS,
                ..BindSlot::default()
            });
        } else {
            binds.has_port_ranges = true;
            binds.ranges.push((bind.prefix, segment(bind.proto.number(), first, last, table)));
        }
    }
    if forward_echo {
        let mut seen = BTreeMap::new();
        for (table, bind) in each_bind(tables) {
            seen.entry(bind.prefix).or_insert(table);
        }
        for (prefix, table) in seen {
            let echo = match prefix {
                IpNet::V4(_) => protocol::ICMP,
                IpNet::V6(_) => protocol::ICMPV6,
            };
            binds.ranges.push((prefix, segment(echo, 0, 0, table)));
        }
    }
    for (prefix, protocol, table) in fragment_tables(tables) {
        binds.ranges.push((prefix, segment(protocol, 0, 0, table)));
    }
    binds
}

/// All binds, each with its table's index.
fn each_bind(tables: &TableSet) -> impl Iterator<Item = (u32, &Bind)> {
    let all = tables.tables.iter().enumerate();
    all.flat_map(|(table, t)| t.binds.iter().map(move |bind| (table as u32, bind)))
}

fn is_one_address(prefix: IpNet) -> bool {
    prefix.prefix_len() == prefix.max_prefix_len()
}

/// The table that gets later fragments of packets to each prefix and protocol. Such fragments carry
/// no ports: they can be forwarded only if all ports lead to one table and that table hashes no port.
fn fragment_tables(tables: &TableSet) -> Vec<(IpNet, u8, u32)> {
    let mut owners: BTreeMap<(IpNet, u8), BTreeSet<u32>> = BTreeMap::new();
    for (table, bind) in each_bind(tables) {
        owners.entry((bind.prefix, bind.proto.number())).or_default().insert(table);
    }
    let hashes_ports = |table: u32| {
        let table = &tables.tables[table as usize];
        let fields =
            table.alt_hash_fields.map_or(table.hash_fields, |f| table.hash_fields.union(f));
        fields.bits() & HashFields::SRC_PORT.union(HashFields::DST_PORT).bits() != 0
    };
    let owner = |(prefix, protocol): (IpNet, u8)| {
        let mut all = BTreeSet::new();
        let mut next = Some(prefix);
        while let Some(net) = next {
            all.extend(owners.get(&(net, protocol)).into_iter().flatten().copied());
            next = net.supernet();
        }
        match (all.pop_first(), all.len()) {
            (Some(table), 0) if !hashes_ports(table) => table,
            _ => NO_TABLE,
        }
    };
    owners.keys().map(|key| (key.0, key.1, owner(*key))).collect()
}

fn exact_key(address: IpAddr, protocol: u8, port: u16) -> ([u64; 2], u32) {
    match address {
        IpAddr::V4(address) => {
            (V4::new(address.octets()).words(), port_key(V4::FAMILY, protocol, port))
        }
        IpAddr::V6(address) => {
            (V6::new(address.octets()).words(), port_key(V6::FAMILY, protocol, port))
        }
    }
}

/// Places binds under which [`glb_common::vip_lookup::find`] finds them.
pub(super) fn place(binds: &[BindSlot]) -> PerfectHash {
    PerfectHash::build(binds, |seed, bind| hash(seed, bind.address, bind.port_key))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Binds as the program finds them.
    struct Placed(PerfectHash, Vec<BindSlot>);

    impl Placed {
        fn new(binds: &[BindSlot]) -> Self {
            let placed = place(binds);
            let slots = placed.arrange(binds.iter().copied());
            Self(placed, slots)
        }

        fn find(&self, address: [u64; 2], port_key: u32) -> Option<u32> {
            let found = self.1[self.0.slot_of(hash(self.0.seed, address, port_key))];
            (found.address == address && found.port_key == port_key).then_some(found.table)
        }
    }

    #[test]
    fn an_empty_set_of_binds_finds_nothing() {
        assert_eq!(Placed::new(&[]).find([0, 1], port_key(4, 6, 80)), None);
    }

    #[test]
    fn ten_thousand_neighbouring_binds_are_all_found() {
        let binds: Vec<BindSlot> = (0..10_000u32)
            .map(|i| BindSlot {
                address: V4::new((0x0a00_0000 + i / 4).to_be_bytes()).words(),
                port_key: port_key(4, 6, 80 + (i % 4) as u16),
                table: i,
                ..BindSlot::default()
            })
            .collect();
        let placed = Placed::new(&binds);
        for bind in &binds {
            assert_eq!(placed.find(bind.address, bind.port_key), Some(bind.table));
        }
    }

    fn tables(text: &str) -> TableSet {
        let path = std::path::Path::new("test");
        glb_table::parse_bytes(path, glb_table::Format::Toml, text.as_bytes()).unwrap()
    }

    fn table(name: &str, fields: &str, binds: &str) -> String {
        format!(
            "[[tables]]\nname = \"{name}\"\nhash_key = \"{0}\"\nseed = \"{0}\"\n\
             hash_fields = {fields}\nbinds = [{binds}]\n\
             backends = [{{ ip = \"10.0.0.1\", state = \"active\", healthy = true }}]\n",
            "00".repeat(16)
        )
    }

    #[test]
    fn fragments_are_forwarded_only_if_no_port_is_needed() {
        let text = [
            table(
                "a",
                "[\"src_addr\"]",
                "{ ip = \"1.0.0.0/8\", proto = \"udp\", port = 53 }, \
                 { ip = \"2.0.0.1\", proto = \"tcp\", port = 80 }, \
                 { ip = \"2.0.0.1\", proto = \"tcp\", port = 443 }",
            ),
            table("b", "[\"src_addr\"]", "{ ip = \"1.2.3.4\", proto = \"udp\", port = 54 }"),
            table("c", "[\"src_port\"]", "{ ip = \"3.0.0.1\", proto = \"tcp\", port = 80 }"),
        ]
        .concat();
        let found: Vec<(String, u8, u32)> = fragment_tables(&tables(&text))
            .into_iter()
            .map(|(prefix, protocol, table)| (prefix.to_string(), protocol, table))
            .collect();
        assert_eq!(
            found,
            [
                ("1.0.0.0/8".to_owned(), 17, 0),
                // Different ports lead to different tables.
                ("1.2.3.4/32".to_owned(), 17, NO_TABLE),
                ("2.0.0.1/32".to_owned(), 6, 0),
                // The table hashes a port.
                ("3.0.0.1/32".to_owned(), 6, NO_TABLE),
            ]
        );
    }

    proptest! {
        #[test]
        fn finds_every_bind_and_no_other(
            keys in prop::collection::hash_set((any::<[u64; 2]>(), 1u32..), 0..300),
            other in (any::<[u64; 2]>(), 1u32..),
        ) {
            let binds: Vec<BindSlot> = keys
                .iter()
                .enumerate()
                .map(|(table, (address, port_key))| BindSlot {
                    address: *address,
                    port_key: *port_key,
                    table: table as u32,
                    ..BindSlot::default()
                })
                .collect();
            let placed = Placed::new(&binds);
            for bind in &binds {
                prop_assert_eq!(placed.find(bind.address, bind.port_key), Some(bind.table));
            }
            if !keys.contains(&other) {
                prop_assert_eq!(placed.find(other.0, other.1), None);
            }
        }
    }
}
