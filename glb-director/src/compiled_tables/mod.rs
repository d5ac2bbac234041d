//! Compiles a table set into the flat arrays that the packet path reads.
//!
//! One [`CompiledTables`] fills the kernel's maps (see [`crate::generation`]) and, through
//! `glb_common::tables::Tables`, answers in plain memory what the program must answer (see
//! [`crate::oracle`]). The binds go into a perfect hash and a set of prefixes, each table's rows
//! into pairs of hops, and each backend's next hop into a ready-made outer header.

mod binds;
mod next_hops;
mod prefixes;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use glb_common::{
    abi::{
        Backend, BindSlot, Config, Ipv6Endpoints, KEEP_TAGS, NO_HOP, NO_ROWS, PrefixEntry, ROWS,
        Row, Segment, TableInfo, TableRows,
    },
    flow::{Address as _, V4},
    hash::HashFields,
    parse::MAX_TAGS,
    siphash::SipHash24,
    tables::Tables,
    wire::ethernet,
};
use glb_host::next_hop::{NextHop, Snapshot};
use glb_table::{BuiltTable, RowCache, Rows, TableSet};
use ipnet::{Ipv4Net, Ipv6Net};

use crate::counters::{BackendId, CounterSlots, SELF_TEST_BACKEND_SLOT, SELF_TEST_TABLE_SLOT};

/// The MTU of the made-up next hop of [`CompiledTables::with_test_next_hops`].
pub const TEST_MTU: u16 = 1_500;

/// The contents of all maps of one generation.
#[derive(Clone, Debug, Default)]
pub struct CompiledTables {
    /// The program's constants.
    pub config: Config,
    /// The perfect hash's displacements.
    pub displacements: Vec<u32>,
    /// The binds of one address and one port, at their places in the perfect hash.
    pub binds: Vec<BindSlot>,
    /// IPv4 prefixes, each with its run in `segments`.
    pub prefixes_v4: Vec<(Ipv4Net, PrefixEntry)>,
    /// IPv6 prefixes, each with its run in `segments`.
    pub prefixes_v6: Vec<(Ipv6Net, PrefixEntry)>,
    /// Ranges of protocol and port, with the table that each leads to.
    pub segments: Vec<Segment>,
    /// Each table's keys, hash fields and row numbers.
    pub tables: Vec<TableInfo>,
    /// The rows of all tables; an element holds two hops of each row.
    pub rows: Vec<Arc<TableRows>>,
    /// For each element of `rows`, the rows that it was compiled from and the index of their first
    /// backend. The next compilation shares the elements for which both are the same.
    row_sources: Vec<(Arc<Rows>, usize)>,
    /// The backends of all tables, with the outer header of their next hop.
    pub backends: Vec<Backend>,
    /// The outer IPv6 addresses of each backend, by the same index; empty if no backend has IPv6.
    pub ipv6_ways: Vec<Ipv6Endpoints>,
    /// The identity of each backend, by the same index.
    pub backend_ids: Vec<BackendId>,
}

/// The part of the director's configuration that the packet path reads.
#[derive(Clone, Debug)]
pub struct ForwardingOptions {
    /// Outer IPv4 source address; if unset, the kernel's preferred source of the route.
    pub outer_source: Option<Ipv4Addr>,
    /// Outer IPv6 source address; if unset, the kernel's preferred source of the route.
    pub outer_source_ipv6: Option<Ipv6Addr>,
    /// Outer TOS or traffic class; if unset, the inner packet's is copied (RFC 6040).
    pub outer_tos: Option<u8>,
    /// Whether ICMP echo requests to a VIP go to a backend; otherwise this machine's kernel gets them.
    pub forward_echo: bool,
    /// Limit of ICMP "too big" answers per second and CPU; 0 for no limit.
    pub answers_per_second: u32,
    /// Whether an IPv4 packet that is too big and has no DF bit is sent in a tunnel packet without
    /// DF, which routers may fragment; otherwise it is dropped.
    pub fragment_tunnel: bool,
    /// VLAN identifiers of sent packets, outermost first, at most [`MAX_TAGS`]; if unset, a packet
    /// keeps the tags that it arrived with.
    pub vlan: Option<Vec<u16>>,
}

impl Default for ForwardingOptions {
    fn default() -> Self {
        Self {
            outer_source: None,
            outer_source_ipv6: None,
            outer_tos: None,
            forward_echo: true,
            answers_per_second: 1_000,
            fragment_tunnel: false,
            vlan: None,
        }
    }
}

/// Why a table set cannot be compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The tables have more backends than 16-bit indices can name.
    #[error(
        "cannot compile the tables: they have {count} backends together, and rows can name at most \
         {}; remove backends, or serve some tables from other directors",
        u16::MAX
    )]
    TooManyBackends {
        /// How many there are.
        count: usize,
    },
}

impl CompiledTables {
    /// Compiles `tables`. Backends that are not in `next_hops` stay unresolved.
    ///
    /// # Errors
    /// When the tables have too many backends.
    pub fn new(
        tables: &TableSet,
        slots: &impl CounterSlots,
        next_hops: &Snapshot,
        options: &ForwardingOptions,
    ) -> Result<Self, CompileError> {
        let built = RowCache::default().build(tables);
        Self::compile(&built, tables, None, slots, next_hops, options)
    }

    /// Compiles `tables`, whose rows are `built`. Rows that are the same in `running` are shared with
    /// it.
    ///
    /// # Errors
    /// When the tables have too many backends.
    pub fn compile(
        built: &[BuiltTable],
        tables: &TableSet,
        running: Option<&Self>,
        slots: &impl CounterSlots,
        next_hops: &Snapshot,
        options: &ForwardingOptions,
    ) -> Result<Self, CompileError> {
        let mut compiled = Self::default();
        for built in built {
            compiled.add_table(built, running, slots);
        }
        if compiled.backends.len() > usize::from(u16::MAX) {
            return Err(CompileError::TooManyBackends { count: compiled.backends.len() });
        }
        if compiled.backend_ids.iter().any(|backend_id| backend_id.address.is_ipv6()) {
            compiled.ipv6_ways = vec![Ipv6Endpoints::default(); compiled.backends.len()];
        }
        compiled.resolve(next_hops, options);
        compiled.add_binds(tables, options);
        Ok(compiled)
    }

    fn add_table(&mut self, built: &BuiltTable, running: Option<&Self>, slots: &impl CounterSlots) {
        let table = &built.table;
        let base = self.backends.len();
        for backend in &table.backends {
            let backend_id = BackendId { table: table.name.clone(), address: backend.address };
            let address = match backend.address {
                IpAddr::V4(address) => u32::from_le_bytes(address.octets()),
                IpAddr::V6(_) => 0,
            };
            let counter_slot = slots.backend(&backend_id) as u16;
            self.backends.push(Backend { address, counter_slot, ..Backend::default() });
            self.backend_ids.push(backend_id);
        }
        let (rows, more_rows) = self.add_rows(&built.rows, base, running);
        let (alt_rows, alt_more_rows) = match &built.alternative {
            None => (NO_ROWS, NO_ROWS),
            // The alternative differs in the flow hash only, so both share their rows.
            Some(alternative) if Arc::ptr_eq(alternative, &built.rows) => (rows, more_rows),
            Some(alternative) => self.add_rows(alternative, base, running),
        };
        let has_alternative = alt_rows != NO_ROWS;
        self.tables.push(TableInfo {
            key: table.hash_key.words(),
            alt_key: table.alt_hash_key.unwrap_or(table.hash_key).words(),
            rows,
            more_rows,
            alt_rows,
            alt_more_rows,
            counter_slot: slots.table(&table.name),
            hash_fields: table.hash_fields.bits(),
            alt_hash_fields: if has_alternative {
                table.alt_hash_fields.unwrap_or(table.hash_fields).bits()
            } else {
                0
            },
            has_more: u8::from(has_alternative || more_rows != NO_ROWS),
            // All backends of a table are of one address family.
            is_v6: u8::from(table.backends.iter().any(|backend| backend.address.is_ipv6())),
            bank: 0,
            padding: [0; 4],
        });
    }

    /// Adds the elements of `rows` and returns their indices: hops 1 and 2, and the further hops.
    fn add_rows(&mut self, rows: &Arc<Rows>, base: usize, running: Option<&Self>) -> (u32, u32) {
        let is_long = rows.hops > 2;
        let first = self.rows.len();
        let shared = running.and_then(|running| {
            let same = |(of, at): &(Arc<Rows>, usize)| Arc::ptr_eq(of, rows) && *at == base;
            let at = running.row_sources.iter().position(same)?;
            running.rows.get(at..at + 1 + usize::from(is_long))
        });
        match shared {
            Some(shared) => self.rows.extend_from_slice(shared),
            None => {
                self.rows.push(hop_pairs(rows, base, 0));
                if is_long {
                    self.rows.push(hop_pairs(rows, base, 2));
                }
            }
        }
        self.row_sources.resize_with(self.rows.len(), || (Arc::clone(rows), base));
        (first as u32, if is_long { first as u32 + 1 } else { NO_ROWS })
    }

    fn add_binds(&mut self, tables: &TableSet, options: &ForwardingOptions) {
        let binds = binds::collect(tables, options.forward_echo);
        let exact = binds::place(&binds.exact);
        self.binds = exact.arrange(binds.exact.iter().copied());
        self.displacements = exact.displacements;
        let flat = prefixes::flatten(&binds.ranges);
        self.config = Config {
            bind_seed: exact.seed,
            displacement_mask: self.displacements.len() as u32 - 1,
            bind_mask: self.binds.len() as u32 - 1,
            has_port_ranges: u8::from(binds.has_port_ranges),
            tos_mask: if options.outer_tos.is_some() { 0 } else { 0xff },
            tos_value: options.outer_tos.unwrap_or(0),
            may_fragment: u8::from(options.fragment_tunnel),
            answers_per_second: options.answers_per_second,
            ..vlan_constants(options.vlan.as_deref())
        };
        // The fast path cannot write VLAN tags.
        if matches!(self.config.tags, KEEP_TAGS | 0) {
            for slot in self.binds.iter_mut().filter(|slot| slot.port_key != 0) {
                enable_fast_path(slot, &self.tables[slot.table as usize]);
            }
        }
        self.prefixes_v4 = flat.v4;
        self.prefixes_v6 = flat.v6;
        self.segments = flat.segments;
    }

    /// A copy for the self-test: every backend has the same made-up next hop, and packets are counted
    /// in the self-test's slots.
    #[must_use]
    pub fn with_test_next_hops(&self, interface: u32) -> Self {
        let mut compiled = self.clone();
        let hop = NextHop {
            interface,
            own_mac: [2, 0, 0, 0, 0, 1],
            mac: [2, 0, 0, 0, 0, 2],
            source: None,
            mtu: u32::from(TEST_MTU),
            link_mtu: u32::from(TEST_MTU),
        };
        let options = ForwardingOptions {
            outer_source: Some(Ipv4Addr::LOCALHOST),
            outer_source_ipv6: Some(Ipv6Addr::LOCALHOST),
            ..ForwardingOptions::default()
        };
        for index in 0..compiled.backends.len() {
            compiled.backends[index].counter_slot = SELF_TEST_BACKEND_SLOT as u16;
            compiled.set_next_hop(index, &hop, &options);
        }
        for table in &mut compiled.tables {
            table.counter_slot = SELF_TEST_TABLE_SLOT;
        }
        compiled
    }
}

/// The program's constants about VLAN tags.
fn vlan_constants(vlan: Option<&[u16]>) -> Config {
    let Some(identifiers) = vlan else { return Config { tags: KEEP_TAGS, ..Config::default() } };
    let mut words = [0; MAX_TAGS];
    let count = identifiers.len().min(MAX_TAGS);
    for (index, (word, identifier)) in words.iter_mut().zip(identifiers).enumerate() {
        // All tags but the innermost are service tags (802.1ad).
        let kind = if index + 1 < count { ethernet::SERVICE_VLAN } else { ethernet::VLAN };
        let [high, low] = (identifier & 0x0fff).to_be_bytes();
        *word = u32::from_le_bytes([kind[0], kind[1], high, low]);
    }
    Config { tags: count as u32, tag_words: words, ..Config::default() }
}

/// Enters the table's rows and hash key into a bind's slot, if the fast path can serve the table.
fn enable_fast_path(slot: &mut BindSlot, table: &TableInfo) {
    let is_plain =
        table.has_more == 0 && table.is_v6 == 0 && table.hash_fields == HashFields::SRC_ADDR.bits();
    slot.plain_rows = if is_plain { table.rows } else { NO_ROWS };
    slot.first_round = SipHash24::first_round(table.key);
}

/// Two hops of every row, from hop `first` on. `base` is the index of the table's first backend.
fn hop_pairs(rows: &Rows, base: usize, first: usize) -> Arc<TableRows> {
    let hop = |row: &[u16], hop: usize| {
        row.get(hop).map_or(NO_HOP, |index| (base + usize::from(*index)) as u16)
    };
    let pairs = rows.iter().map(|row| Row { first: hop(row, first), second: hop(row, first + 1) });
    let pairs: Arc<[Row]> = pairs.collect();
    // A table always has as many rows as an element holds.
    pairs.try_into().unwrap_or_else(|_| Arc::new([Row { first: NO_HOP, second: NO_HOP }; ROWS]))
}

impl Tables for CompiledTables {
    fn config<T: Copy>(&self, field: impl Fn(&Config) -> &T) -> T {
        *field(&self.config)
    }

    fn displacement(&self, index: u32) -> Option<u32> {
        self.displacements.get(index as usize).copied()
    }

    fn bind(&self, index: u32) -> Option<&BindSlot> {
        self.binds.get(index as usize)
    }

    fn prefix(&self, family: u8, [high, low]: [u64; 2]) -> Option<PrefixEntry> {
        if family == V4::FAMILY {
            let address = Ipv4Addr::from((low as u32).to_le_bytes());
            longest(self.prefixes_v4.iter().filter(|(net, _)| net.contains(&address)), |net| {
                net.prefix_len()
            })
        } else {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&high.to_le_bytes());
            bytes[8..].copy_from_slice(&low.to_le_bytes());
            let address = Ipv6Addr::from(bytes);
            longest(self.prefixes_v6.iter().filter(|(net, _)| net.contains(&address)), |net| {
                net.prefix_len()
            })
        }
    }

    fn segment(&self, index: u32) -> Option<&Segment> {
        self.segments.get(index as usize)
    }

    fn table(&self, index: u32) -> Option<&TableInfo> {
        self.tables.get(index as usize)
    }

    fn rows(&self, index: u32) -> Option<&TableRows> {
        self.rows.get(index as usize).map(|rows| &**rows)
    }

    fn backend(&self, index: u16, _bank: u32) -> Option<&Backend> {
        self.backends.get(usize::from(index))
    }

    fn ipv6_endpoints(&self, index: u16, _bank: u32) -> Option<&Ipv6Endpoints> {
        self.ipv6_ways.get(usize::from(index))
    }
}

fn longest<'a, N: 'a>(
    covering: impl Iterator<Item = &'a (N, PrefixEntry)>,
    length: impl Fn(&N) -> u8,
) -> Option<PrefixEntry> {
    covering.max_by_key(|(net, _)| length(net)).map(|(_, entry)| *entry)
}

#[cfg(test)]
mod tests {
    use glb_table::{Format, Table};

    use super::*;

    struct NoSlots;

    impl CounterSlots for NoSlots {
        fn table(&self, _: &str) -> u32 {
            0
        }

        fn backend(&self, _: &BackendId) -> u32 {
            0
        }
    }

    #[test]
    fn compiled_rows_take_as_many_bytes_as_the_tables_limit_counts() {
        let text = include_str!("../../tests/data/varied.toml");
        let mut set =
            glb_table::parse_bytes("t.toml".as_ref(), Format::Toml, text.as_bytes()).unwrap();
        set.tables.truncate(4);
        set.tables[2].alt_seed = Some(set.tables[0].seed);
        for count in 1..=set.tables.len() {
            let tables = TableSet { tables: set.tables[..count].to_vec(), ..set.clone() };
            let compiled = CompiledTables::new(
                &tables,
                &NoSlots,
                &Snapshot::default(),
                &ForwardingOptions::default(),
            )
            .unwrap();
            let bytes: usize = tables.tables.iter().map(Table::rows_bytes).sum();
            assert_eq!(size_of::<TableRows>() * compiled.rows.len(), bytes, "{count} tables");
        }
    }
}
