//! A table set as the packet path sees it: flat arrays of the shared structs. The same image fills
//! the kernel's maps and answers, in plain memory, what the program must answer.

mod binds;
mod prefixes;

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use glb_common::{
    encap::header_sum,
    hash::Address,
    layout::{
        Backend, BindSlot, Config, NO_HOP, NO_ROWS, PrefixEntry, ROWS, Row, Segment, TableInfo,
        TableRows,
    },
    steer::View,
};
use glb_host::next_hop::{NextHop, Snapshot};
use glb_table::{Builder, Built, Rows, TableSet};
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
    /// Outer TOS or traffic class; without one, the inner packet's (RFC 6040).
    pub outer_tos: Option<u8>,
    /// Whether echo requests to a VIP go to a backend, or to this director's kernel.
    pub forward_echo: bool,
    /// At most so many answers "too big" a second from each CPU; 0 for no limit.
    pub answers_per_second: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { outer_source: None, outer_tos: None, forward_echo: true, answers_per_second: 1_000 }
    }
}

/// Why a table set cannot be carried by this director.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The packet path has no outer IPv6 yet.
    #[error(
        "table \"{table}\": backend {address} is an IPv6 address, and this director encapsulates \
         in IPv4 only.\n  Give the backend's IPv4 address."
    )]
    Ipv6Backend {
        /// The table.
        table: String,
        /// The backend.
        address: IpAddr,
    },
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
        let built = Builder::default().build(tables);
        Self::of(&built, tables, None, slots, next_hops, options)
    }

    /// As [`Self::new`], with tables that have been built; what is the same in `running` is shared.
    ///
    /// # Errors
    /// When the packet path cannot carry the tables.
    pub fn of(
        built: &[Built],
        tables: &TableSet,
        running: Option<&Self>,
        slots: &impl CounterSlots,
        next_hops: &Snapshot,
        options: &Options,
    ) -> Result<Self, ImageError> {
        let mut image = Self::default();
        for built in built {
            image.add_table(built, running, slots)?;
        }
        if image.backends.len() > usize::from(u16::MAX) {
            return Err(ImageError::TooManyBackends { count: image.backends.len() });
        }
        image.resolve(next_hops, options.outer_source);
        image.add_binds(tables, options);
        Ok(image)
    }

    fn add_table(
        &mut self,
        built: &Built,
        running: Option<&Self>,
        slots: &impl CounterSlots,
    ) -> Result<(), ImageError> {
        let table = &built.table;
        let base = self.backends.len();
        for backend in &table.backends {
            let IpAddr::V4(address) = backend.address else {
                return Err(ImageError::Ipv6Backend {
                    table: table.name.clone(),
                    address: backend.address,
                });
            };
            let owner = Owner { table: table.name.clone(), address: backend.address };
            self.backends.push(Backend {
                address: address.octets(),
                counter_slot: slots.backend(&owner) as u16,
                ..Backend::default()
            });
            self.owners.push(owner);
        }
        let (rows, more_rows) = self.add_rows(&built.rows, base, running);
        let (alt_rows, alt_more_rows) = built
            .alternative
            .as_ref()
            .map_or((NO_ROWS, NO_ROWS), |alternative| self.add_rows(alternative, base, running));
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
            padding: [0; 9],
        });
        Ok(())
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
        let exact = binds::perfect_hash(&binds.exact);
        self.displacements = exact.displacements;
        self.binds = exact.slots;
        let flat = prefixes::flatten(&binds.ranges);
        self.config = Config {
            bind_seed: exact.seed,
            displacement_mask: self.displacements.len() as u32 - 1,
            bind_mask: self.binds.len() as u32 - 1,
            has_port_ranges: u8::from(binds.has_port_ranges),
            tos_mask: if options.outer_tos.is_some() { 0 } else { 0xff },
            tos_value: options.outer_tos.unwrap_or(0),
            padding: 0,
            answers_per_second: options.answers_per_second,
        };
        self.prefixes_v4 = flat.v4;
        self.prefixes_v6 = flat.v6;
        self.segments = flat.segments;
    }

    /// Enters the ways to the backends; says which entries changed.
    pub fn resolve(&mut self, next_hops: &Snapshot, outer_source: Option<Ipv4Addr>) -> Vec<usize> {
        let mut changed = Vec::new();
        for (index, (backend, owner)) in self.backends.iter_mut().zip(&self.owners).enumerate() {
            let before = *backend;
            // Known once, a way is kept until the kernel names a better one: a neighbour that is
            // only being asked for again is still there.
            if let Some(Ok(hop)) = next_hops.get(&owner.address) {
                enter(backend, hop, outer_source);
            }
            if *backend != before {
                changed.push(index);
            }
        }
        changed
    }

    /// Takes over the ways to backends that `running` knows and this image does not: a neighbour that
    /// is only being asked for again is still there.
    pub fn inherit_ways(&mut self, running: &Self) {
        let known: HashMap<IpAddr, &Backend> = running
            .owners
            .iter()
            .zip(&running.backends)
            .filter(|(_, backend)| backend.interface != 0)
            .map(|(owner, backend)| (owner.address, backend))
            .collect();
        for (backend, owner) in self.backends.iter_mut().zip(&self.owners) {
            if backend.interface == 0
                && let Some(before) = known.get(&owner.address)
            {
                *backend = Backend { counter_slot: backend.counter_slot, ..**before };
            }
        }
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
            source: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            mtu: 1500,
        };
        for backend in &mut image.backends {
            enter(backend, &hop, None);
            backend.counter_slot = crate::counters::SELF_TEST_BACKEND_SLOT as u16;
        }
        for table in &mut image.tables {
            table.counter_slot = crate::counters::SELF_TEST_TABLE_SLOT;
        }
        image
    }
}

fn enter(backend: &mut Backend, hop: &NextHop, outer_source: Option<Ipv4Addr>) {
    let source = match (outer_source, hop.source) {
        (Some(configured), _) => configured,
        (None, Some(IpAddr::V4(preferred))) => preferred,
        // Without a source no packet can be sent: the entry stays unresolved.
        (None, _) => return,
    };
    backend.next_hop_mac = hop.mac;
    backend.own_mac = hop.own_mac;
    backend.interface = hop.interface;
    backend.mtu = hop.mtu.try_into().unwrap_or(u16::MAX);
    backend.source = source.octets();
    backend.header_sum = header_sum(backend.source, backend.address);
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

impl View for Image {
    fn config(&self) -> Config {
        self.config
    }

    fn displacement(&self, index: u32) -> Option<u32> {
        self.displacements.get(index as usize).copied()
    }

    fn bind(&self, index: u32) -> Option<&BindSlot> {
        self.binds.get(index as usize)
    }

    fn prefix<A: Address>(&self, address: &A) -> Option<PrefixEntry> {
        let [high, low] = address.words();
        if A::FAMILY == 4 {
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

    fn row(&self, rows: u32, row: u16) -> Option<Row> {
        self.rows.get(rows as usize).map(|rows| rows[usize::from(row)])
    }

    fn backend(&self, index: u16) -> Option<&Backend> {
        self.backends.get(usize::from(index))
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
    use glb_host::next_hop::Unresolved;

    use super::*;

    struct Slots(u32);

    impl CounterSlots for Slots {
        fn table(&self, _name: &str) -> u32 {
            self.0
        }

        fn backend(&self, _owner: &Owner) -> u32 {
            self.0
        }
    }

    #[test]
    fn a_way_once_known_outlives_a_reload_and_a_lost_answer() {
        let text = "[[tables]]\nname = \"t\"\nhash_key = \"00112233445566778899aabbccddeeff\"\n\
                    seed = \"00112233445566778899aabbccddeeff\"\n\
                    binds = [{ ip = \"1.1.1.1\", proto = \"tcp\", port = 80 }]\n\
                    backends = [{ ip = \"10.0.0.1\", state = \"active\", healthy = true }]\n";
        let path = std::path::Path::new("test");
        let tables = glb_table::parse_bytes(path, glb_table::Form::Toml, text.as_bytes()).unwrap();
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        let hop = NextHop {
            interface: 7,
            own_mac: [1; 6],
            mac: [2; 6],
            source: Some("10.0.0.9".parse().unwrap()),
            mtu: 1500,
        };
        let lost = Unresolved::NoAnswer { interface: 7, address };
        let options = Options::default();
        let known = Snapshot::from([(address, Ok(hop))]);
        let unknown = Snapshot::from([(address, Err(lost))]);
        let mut running = Image::new(&tables, &Slots(5), &known, &options).unwrap();
        assert!(running.resolve(&unknown, None).is_empty());
        assert_eq!(running.backends[0].next_hop_mac, [2; 6]);
        let mut next = Image::new(&tables, &Slots(6), &unknown, &options).unwrap();
        assert_eq!(next.backends[0].interface, 0);
        next.inherit_ways(&running);
        assert_eq!(next.backends[0], Backend { counter_slot: 6, ..running.backends[0] });
    }
}
