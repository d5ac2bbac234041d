//! Who is counted where: the slots of tables and backends, in a pinned map.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use aya::maps::{HashMap as BpfHashMap, Map, MapData, MapError, PerCpuValues};
use glb_common::{
    abi::{BACKEND_SLOTS, TABLE_SLOTS},
    reason::DirectorReason,
};
use glb_host::bpffs::PinFolder;
use glb_table::TableSet;

use super::{
    CountersError, NO_BACKEND_SLOT, NO_TABLE_SLOT, ReasonValues, SELF_TEST_BACKEND_SLOT,
    SELF_TEST_TABLE_SLOT, open_array, pins,
};
use crate::compiled_tables::{CounterSlots, Owner};

/// Longest table name in an identity's key.
const MAX_NAME: usize = 63;

/// An identity as the map's key: length and bytes of the table's name, then family (0 for the table
/// itself) and address.
type Key = [u8; 1 + MAX_NAME + 1 + 16];

/// The pinned mapping from identities to slots.
#[derive(Debug)]
pub struct Identities {
    map: BpfHashMap<MapData, Key, u32>,
    slots: HashMap<Key, u32>,
    /// Generations that count, or may again, with their tables if those are known.
    held: HashMap<u64, Option<Arc<TableSet>>>,
    folder: PathBuf,
}

/// How many have no counter of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uncounted {
    /// Tables.
    pub tables: usize,
    /// Backends.
    pub backends: usize,
}

impl Identities {
    /// Opens the mapping below the pin folder, or makes an empty one there.
    ///
    /// # Errors
    /// When the kernel says no.
    pub fn open_or_create(pins: &PinFolder) -> Result<Self, CountersError> {
        let folder = pins.path().to_owned();
        let error =
            |source| CountersError::Map { folder: folder.clone(), source: Box::new(source) };
        let path = pins.join(pins::IDENTITIES);
        if let Some(existing) = Self::open(pins)? {
            return Ok(existing);
        }
        let map: BpfHashMap<MapData, Key, u32> =
            BpfHashMap::create(BACKEND_SLOTS + TABLE_SLOTS, 0).map_err(error)?;
        map.pin(&path).map_err(|source| error(MapError::PinError { name: None, error: source }))?;
        // Pinning consumes the handle: it is opened again by its pin.
        Self::open(pins)?.ok_or(CountersError::Missing { folder })
    }

    /// Opens the mapping below the pin folder, if there is one.
    ///
    /// # Errors
    /// When the kernel says no.
    pub fn open(pins: &PinFolder) -> Result<Option<Self>, CountersError> {
        let folder = pins.path().to_owned();
        let error =
            |source| CountersError::Map { folder: folder.clone(), source: Box::new(source) };
        let path = pins.join(pins::IDENTITIES);
        if !path.exists() {
            return Ok(None);
        }
        let data = MapData::from_pin(path).map_err(error)?;
        let map = BpfHashMap::try_from(Map::HashMap(data)).map_err(error)?;
        let mut slots: HashMap<Key, u32> = map.iter().collect::<Result<_, _>>().map_err(error)?;
        // A former release gave this slot away too.
        slots.retain(|key, slot| family(key) == 0 || *slot != NO_BACKEND_SLOT);
        Ok(Some(Self { map, slots, held: HashMap::new(), folder }))
    }

    /// A generation whose packets are counted, now or when it is brought back: its identities keep
    /// their slots. Without its tables, all that there are do.
    pub fn hold(&mut self, generation: u64, tables: Option<Arc<TableSet>>) {
        self.held.insert(generation, tables);
    }

    /// Only these generations can still count packets.
    pub fn let_go_all_but(&mut self, generations: &[u64]) {
        self.held.retain(|number, _| generations.contains(number));
    }

    /// Gives every identity in `tables` a slot. Identities that are gone keep theirs until the room
    /// is needed, and those of generations that are held keep them in any case. Says how many find no
    /// room for that, and are counted with the packets of no table.
    ///
    /// # Errors
    /// When there are more than there would ever be room for, or the kernel says no.
    pub fn assign(&mut self, tables: &TableSet) -> Result<Uncounted, CountersError> {
        let [wanted_tables, wanted_backends] = keys(tables);
        Ok(Uncounted {
            tables: self.assign_kind(
                "tables",
                tables,
                &wanted_tables,
                SELF_TEST_TABLE_SLOT + 1..TABLE_SLOTS,
            )?,
            backends: self.assign_kind(
                "backends",
                tables,
                &wanted_backends,
                SELF_TEST_BACKEND_SLOT + 1..NO_BACKEND_SLOT,
            )?,
        })
    }

    fn assign_kind(
        &mut self,
        what: &'static str,
        tables: &TableSet,
        keys: &[Key],
        range: Range<u32>,
    ) -> Result<usize, CountersError> {
        let room = range.len() as u32;
        if keys.len() > range.len() {
            return Err(CountersError::Full { what, count: keys.len(), room });
        }
        let is_backend = what == "backends";
        let of_kind = |key: &Key| (family(key) != 0) == is_backend;
        let used: HashSet<u32> =
            self.slots.iter().filter(|(key, _)| of_kind(key)).map(|(_, slot)| *slot).collect();
        let mut free = range.filter(|slot| !used.contains(slot));
        // Looked for only when they are needed.
        let mut gone: Option<std::vec::IntoIter<(Key, u32)>> = None;
        let mut uncounted = 0;
        for key in keys {
            if self.slots.contains_key(key) {
                continue;
            }
            let slot = match free.next() {
                Some(slot) => slot,
                None => {
                    let gone =
                        gone.get_or_insert_with(|| self.gone(tables, is_backend).into_iter());
                    let Some((old, slot)) = gone.next() else {
                        uncounted += 1;
                        continue;
                    };
                    if is_backend {
                        self.keep_sum(&old, slot)?;
                    } else {
                        self.forget_backends(&old)?;
                    }
                    self.forget(&old, slot)?;
                    slot
                }
            };
            self.map.insert(key, slot, 0).map_err(|source| self.error(source))?;
            self.slots.insert(*key, slot);
        }
        Ok(uncounted)
    }

    /// Identities whose slots are free to be taken, if these tables are wanted.
    fn gone(&self, tables: &TableSet, is_backend: bool) -> Vec<(Key, u32)> {
        let mut kept = HashSet::new();
        for tables in self.held.values().map(Option::as_deref).chain([Some(tables)]) {
            let Some(tables) = tables else { return Vec::new() };
            kept.extend(keys(tables).into_iter().flatten());
        }
        let of_kind = self.slots.iter().filter(|(key, _)| (family(key) != 0) == is_backend);
        of_kind.filter(|(key, _)| !kept.contains(*key)).map(|(key, slot)| (*key, *slot)).collect()
    }

    /// Takes an identity's slot away.
    fn forget(&mut self, key: &Key, slot: u32) -> Result<(), CountersError> {
        self.map.remove(key).map_err(|source| self.error(source))?;
        self.slots.remove(key);
        self.reset(family(key) != 0, slot)
    }

    /// Takes the slots of a table's backends away with its own: should the table come back, its sums
    /// begin together.
    fn forget_backends(&mut self, table: &Key) -> Result<(), CountersError> {
        let name = name(table);
        let of_table = self.slots.iter().filter(|(key, _)| family(key) != 0);
        let gone: Vec<(Key, u32)> = of_table
            .filter(|(key, _)| self::name(key) == name)
            .map(|(key, slot)| (*key, *slot))
            .collect();
        gone.into_iter().try_for_each(|(key, slot)| self.forget(&key, slot))
    }

    /// Adds the count of a backend that loses its slot to its table's own, which otherwise has only
    /// what the table's backends do not count.
    fn keep_sum(&self, backend: &Key, slot: u32) -> Result<(), CountersError> {
        let Some(table) = self.slots.get(&key(&name(backend), None)) else { return Ok(()) };
        let add = || -> Result<(), MapError> {
            let (tables, backends) =
                (self.folder.join(pins::TABLES), self.folder.join(pins::BACKENDS));
            if !tables.exists() || !backends.exists() {
                return Ok(());
            }
            let mut tables = open_array::<ReasonValues>(&tables)?;
            let counted = open_array::<[u64; 2]>(&backends)?.get(&slot, 0)?;
            let before = tables.get(table, 0)?;
            let sums = before.iter().zip(counted.iter()).map(|(sums, count)| {
                let mut sums = *sums;
                let sum = &mut sums[DirectorReason::Encapsulated as usize];
                *sum = [sum[0] + count[0], sum[1] + count[1]];
                sums
            });
            tables.set(*table, PerCpuValues::try_from(sums.collect::<Vec<_>>())?, 0)
        };
        add().map_err(|source| self.error(source))
    }

    /// Lets a slot that changes hands begin at 0.
    fn reset(&self, is_backend: bool, slot: u32) -> Result<(), CountersError> {
        fn zero<V: aya::Pod>(path: &Path, slot: u32, value: V) -> Result<(), MapError> {
            if !path.exists() {
                return Ok(());
            }
            let mut array = open_array::<V>(path)?;
            let cpus = array.get(&slot, 0)?.len();
            array.set(slot, PerCpuValues::try_from(vec![value; cpus])?, 0)
        }
        let result = if is_backend {
            zero(&self.folder.join(pins::BACKENDS), slot, [0u64; 2])
        } else {
            zero(&self.folder.join(pins::TABLES), slot, ReasonValues::default())
        };
        result.map_err(|source| self.error(source))
    }

    /// Every table with its slot.
    pub fn tables(&self) -> impl Iterator<Item = (u32, String)> {
        let tables = self.slots.iter().filter(|(key, _)| family(key) == 0);
        tables.map(|(key, slot)| (*slot, name(key)))
    }

    /// Every table (without an address) and backend, with its slot.
    pub(super) fn all(&self) -> impl Iterator<Item = (String, Option<IpAddr>, u32)> {
        self.slots.iter().map(|(key, slot)| (name(key), address(key), *slot))
    }

    fn error(&self, source: MapError) -> CountersError {
        CountersError::Map { folder: self.folder.clone(), source: Box::new(source) }
    }
}

impl CounterSlots for Identities {
    fn table(&self, name: &str) -> u32 {
        self.slots.get(&key(name, None)).copied().unwrap_or(NO_TABLE_SLOT)
    }

    fn backend(&self, owner: &Owner) -> u32 {
        let key = key(&owner.table, Some(owner.address));
        self.slots.get(&key).copied().unwrap_or(NO_BACKEND_SLOT)
    }
}

/// The keys of the tables, and those of their backends.
fn keys(tables: &TableSet) -> [Vec<Key>; 2] {
    let tables = &tables.tables;
    let backends = tables.iter().flat_map(|table| {
        table.backends.iter().map(|backend| key(&table.name, Some(backend.address)))
    });
    [tables.iter().map(|table| key(&table.name, None)).collect(), backends.collect()]
}

fn key(table: &str, address: Option<IpAddr>) -> Key {
    let mut key: Key = [0; _];
    // Names are at most this long: the table's checks see to it.
    let name = &table.as_bytes()[..table.len().min(MAX_NAME)];
    key[0] = name.len() as u8;
    key[1..][..name.len()].copy_from_slice(name);
    match address {
        None => {}
        Some(IpAddr::V4(address)) => {
            key[MAX_NAME + 1] = 4;
            key[MAX_NAME + 2..][..4].copy_from_slice(&address.octets());
        }
        Some(IpAddr::V6(address)) => {
            key[MAX_NAME + 1] = 6;
            key[MAX_NAME + 2..].copy_from_slice(&address.octets());
        }
    }
    key
}

fn family(key: &Key) -> u8 {
    key[MAX_NAME + 1]
}

fn name(key: &Key) -> String {
    String::from_utf8_lossy(&key[1..][..usize::from(key[0]).min(MAX_NAME)]).into_owned()
}

fn address(key: &Key) -> Option<IpAddr> {
    let bytes: [u8; 16] = key[MAX_NAME + 2..].try_into().ok()?;
    match family(key) {
        4 => Some(IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]])),
        6 => Some(IpAddr::from(bytes)),
        _ => None,
    }
}
