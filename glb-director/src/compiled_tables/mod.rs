//! A table set as the packet path sees it: flat arrays of the shared structs. The same image fills
//! the kernel's maps and answers, in plain memory, what the program must answer.

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

/// Everything that a generation's maps hold.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// The program's constants.
    pub config: Config,
    /// The perfect hash's displacements.
    pub displacements: Vec<u32>,
    /// The exact binds.
    pub binds: Vec<BindSlot>,
    /// Prefixes with the run of their segments.
    pub prefixes_v4: Vec<(Ipv4Net, PrefixEntry)>,
    /// As `prefixes_v4`.
    pub prefixes_v6: Vec<(Ipv6Net, PrefixEntry)>,
    /// Ranges of ports, for the prefixes.
    pub segments: Vec<Segment>,
    /// The tables.
    pub tables: Vec<TableInfo>,
    /// The rows, two hops to an element.
    pub rows: Vec<Arc<TableRows>>,
    /// What the elements of `rows` were made from, and the first of their backends; images share
    /// those that are the same.
    made_from: Vec<(Arc<Rows>, usize)>,
    /// The backends of all tables.
    pub backends: Vec<Backend>,
    /// What IPv6 backends have beside, by the same index; empty if there are none.
    pub ipv6_ways: Vec<Ipv6Endpoints>,
    /// Who the backends are.
    pub owners: Vec<Owner>,
}

/// Whose entry a backend's is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// Name of the table.
    pub table: String,
    /// The backend's address.
    pub address: IpAddr,
}

/// Where the counters of a table set's identities stand.
pub trait CounterSlots {
    /// The slot of a table's counters.
    fn table(&self, name: &str) -> u32;
    /// The slot of a backend's counter.
    fn backend(&self, owner: &Owner) -> u32;
}

/// What the director's configuration says of the packet path.
#[derive(Clone, Debug)]
pub struct Options {
    /// Outer source address; without one, the kernel's preferred source on the way.
    pub outer_source: Option<Ipv4Addr>,
    /// The same for IPv6 backends.
    pub outer_source_ipv6: Option<Ipv6Addr>,
    /// Outer TOS or traffic class; without one, the inner packet's (RFC 6040).
    pub outer_tos: Option<u8>,
    /// Whether echo requests to a VIP go to a backend, or to this director's kernel.
    pub forward_echo: bool,
    /// At most so many answers "too big" a second from each CPU; 0 for no limit.
    pub answers_per_second: u32,
    /// Whether an IPv4 packet that is too big and may be fragmented travels in a tunnel packet that
    /// may be fragmented; else it is dropped.
    pub fragment_tunnel: bool,
    /// 802.1Q identifiers of what is sent, outermost first, at most [`MAX_TAGS`]; without this, it
    /// carries the tags that it came with.
    pub vlan: Option<Vec<u16>>,
}

impl Default for Options {
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

/// Why a table set cannot be carried by this director.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Too many backends for 16-bit indices.
    #[error("{count} backends in all tables; a row can name {} at most", u16::MAX)]
    TooManyBackends {
        /// How many there are.
        count: usize,
    },
}

impl Image {
    /// The image of `tables`. Backends whose way is not in `next_hops` are left unresolved.
    ///
    /// # Errors
    /// When the packet path cannot carry the tables.
    pub fn new(
        tables: &TableSet,
        slots: &impl CounterSlots,
        next_hops: &Snapshot,
        options: &Options,
    ) -> Result<Self, ImageError> {
        let built = RowCache::default().build(tables);
        Self::of(&built, tables, None, slots, next_hops, options)
    }

    /// As [`Self::new`], with tables that have been built; what is the same in `running` is shared.
    ///
    /// # Errors
    /// When the packet path cannot carry the tables.
    pub fn of(
        built: &[BuiltTable],
        tables: &TableSet,
        running: Option<&Self>,
        slots: &impl CounterSlots,
        next_hops: &Snapshot,
        options: &Options,
    ) -> Result<Self, ImageError> {
        let mut image = Self::default();
        for built in built {
            image.add_table(built, running, slots);
        }
        if image.backends.len() > usize::from(u16::MAX) {
            return Err(ImageError::TooManyBackends { count: image.backends.len() });
        }
        if image.owners.iter().any(|owner| owner.address.is_ipv6()) {
            image.ipv6_ways = vec![Ipv6Endpoints::default(); image.backends.len()];
        }
        image.resolve(next_hops, options);
        image.add_binds(tables, options);
        Ok(image)
    }

    fn add_table(&mut self, built: &BuiltTable, running: Option<&Self>, slots: &impl CounterSlots) {
        let table = &built.table;
        let base = self.backends.len();
        for backend in &table.backends {
            let owner = Owner { table: table.name.clone(), address: backend.address };
            let address = match backend.address {
                IpAddr::V4(address) => u32::from_le_bytes(address.octets()),
                IpAddr::V6(_) => 0,
            };
            let counter_slot = slots.backend(&owner) as u16;
            self.backends.push(Backend { address, counter_slot, ..Backend::default() });
            self.owners.push(owner);
        }
        let (rows, more_rows) = self.add_rows(&built.rows, base, running);
        let (alt_rows, alt_more_rows) = match &built.alternative {
            None => (NO_ROWS, NO_ROWS),
            // Another hash of a flow leads to the same rows.
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
            // A table's backends are all of one family.
            is_v6: u8::from(table.backends.iter().any(|backend| backend.address.is_ipv6())),
            bank: 0,
            padding: [0; 4],
        });
    }

    /// Adds the elements for these rows; their indices.
    fn add_rows(&mut self, rows: &Arc<Rows>, base: usize, running: Option<&Self>) -> (u32, u32) {
        let is_long = rows.hops > 2;
        let first = self.rows.len();
        let shared = running.and_then(|running| {
            let same = |(of, at): &(Arc<Rows>, usize)| Arc::ptr_eq(of, rows) && *at == base;
            let at = running.made_from.iter().position(same)?;
            running.rows.get(at..at + 1 + usize::from(is_long))
        });
        match shared {
            Some(shared) => self.rows.extend_from_slice(shared),
            None => {
                self.rows.push(element(rows, base, 0));
                if is_long {
                    self.rows.push(element(rows, base, 2));
                }
            }
        }
        self.made_from.resize_with(self.rows.len(), || (Arc::clone(rows), base));
        (first as u32, if is_long { first as u32 + 1 } else { NO_ROWS })
    }

    fn add_binds(&mut self, tables: &TableSet, options: &Options) {
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
            ..tags(options.vlan.as_deref())
        };
        // With tags to write, no packet is a plain one.
        if matches!(self.config.tags, KEEP_TAGS | 0) {
            for slot in self.binds.iter_mut().filter(|slot| slot.port_key != 0) {
                make_plain(slot, &self.tables[slot.table as usize]);
            }
        }
        self.prefixes_v4 = flat.v4;
        self.prefixes_v6 = flat.v6;
        self.segments = flat.segments;
    }

    /// The same image with every backend resolved to one made-up next hop and counted in the
    /// self-test's slots.
    #[must_use]
    pub fn for_self_test(&self, interface: u32) -> Self {
        let mut image = self.clone();
        let hop = NextHop {
            interface,
            own_mac: [2, 0, 0, 0, 0, 1],
            mac: [2, 0, 0, 0, 0, 2],
            source: None,
            mtu: u32::from(crate::generation::self_test::TEST_MTU),
            link_mtu: u32::from(crate::generation::self_test::TEST_MTU),
        };
        let options = Options {
            outer_source: Some(Ipv4Addr::LOCALHOST),
            outer_source_ipv6: Some(Ipv6Addr::LOCALHOST),
            ..Options::default()
        };
        for index in 0..image.backends.len() {
            image.backends[index].counter_slot = crate::counters::SELF_TEST_BACKEND_SLOT as u16;
            image.enter(index, &hop, &options);
        }
        for table in &mut image.tables {
            table.counter_slot = crate::counters::SELF_TEST_TABLE_SLOT;
        }
        image
    }
}

/// The program's constants about tags.
fn tags(vlan: Option<&[u16]>) -> Config {
    let Some(identifiers) = vlan else { return Config { tags: KEEP_TAGS, ..Config::default() } };
    let mut words = [0; MAX_TAGS];
    let count = identifiers.len().min(MAX_TAGS);
    for (index, (word, identifier)) in words.iter_mut().zip(identifiers).enumerate() {
        // The outer one of two is a service tag (802.1ad).
        let kind = if index + 1 < count { ethernet::SERVICE_VLAN } else { ethernet::VLAN };
        let [high, low] = (identifier & 0x0fff).to_be_bytes();
        *word = u32::from_le_bytes([kind[0], kind[1], high, low]);
    }
    Config { tags: count as u32, tag_words: words, ..Config::default() }
}

/// Enters into a bind's slot what the fast path needs to know of its table, if it can serve it.
fn make_plain(slot: &mut BindSlot, table: &TableInfo) {
    let is_plain =
        table.has_more == 0 && table.is_v6 == 0 && table.hash_fields == HashFields::SRC_ADDR.bits();
    slot.plain_rows = if is_plain { table.rows } else { NO_ROWS };
    slot.first_round = SipHash24::first_round(table.key);
}

/// Two hops of every row, from hop `first` on.
fn element(rows: &Rows, base: usize, first: usize) -> Arc<TableRows> {
    let hop = |row: &[u16], hop: usize| {
        row.get(hop).map_or(NO_HOP, |index| (base + usize::from(*index)) as u16)
    };
    let pairs = rows.iter().map(|row| Row { first: hop(row, first), second: hop(row, first + 1) });
    let pairs: Arc<[Row]> = pairs.collect();
    // There are always as many rows as an element holds.
    pairs.try_into().unwrap_or_else(|_| Arc::new([Row { first: NO_HOP, second: NO_HOP }; ROWS]))
}

impl Tables for Image {
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

        fn backend(&self, _: &Owner) -> u32 {
            0
        }
    }

    /// What the table file's limit counts is what the program's array has.
    #[test]
    fn rows_take_the_memory_that_is_said_of_their_tables() {
        let text = include_str!("../../tests/data/varied.toml");
        let mut set =
            glb_table::parse_bytes("t.toml".as_ref(), Format::Toml, text.as_bytes()).unwrap();
        set.tables.truncate(4);
        set.tables[2].alt_seed = Some(set.tables[0].seed);
        for count in 1..=set.tables.len() {
            let tables = TableSet { tables: set.tables[..count].to_vec(), ..set.clone() };
            let image =
                Image::new(&tables, &NoSlots, &Snapshot::default(), &Options::default()).unwrap();
            let bytes: usize = tables.tables.iter().map(Table::rows_bytes).sum();
            assert_eq!(size_of::<TableRows>() * image.rows.len(), bytes, "{count} tables");
        }
    }
}
