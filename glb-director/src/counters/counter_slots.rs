//! The counter slot of each table and backend, in a pinned map.

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

use super::layout::{
    BackendId, CounterSlots, CountersError, NO_BACKEND_SLOT, NO_TABLE_SLOT, ReasonValues,
    SELF_TEST_BACKEND_SLOT, SELF_TEST_TABLE_SLOT, open_array, pins,
};

/// Longest table name in a key.
const MAX_NAME: usize = 63;

/// A key of the pinned map: length and bytes of the table's name, then the address family (0 for the
/// table itself) and the backend's address.
type Key = [u8; 1 + MAX_NAME + 1 + 16];

/// The pinned map from tables and backends to their counter slots.
#[derive(Debug)]
pub struct CounterSlotMap {
    map: BpfHashMap<MapData, Key, u32>,
    slots: HashMap<Key, u32>,
    /// Generations that can count packets now or after a rollback, with their tables if known.
    retained: HashMap<u64, Option<Arc<TableSet>>>,
    folder: PathBuf,
}

/// The numbers of tables and backends that found no free slot. Their packets share one slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overflow {
    /// Tables without a slot.
    pub tables: usize,
    /// Backends without a slot.
    pub backends: usize,
}

impl CounterSlotMap {
    /// Opens the map pinned below `pins`, or creates an empty one there.
    ///
    /// # Errors
    /// When the kernel refuses a map operation.
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
        // Pinning consumes the handle: open it again by its pin.
        Self::open(pins)?.ok_or(CountersError::Missing { folder })
    }

    /// Opens the map pinned below `pins`; `None` if there is none.
    ///
    /// # Errors
    /// When the kernel refuses a map operation.
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
        // An earlier release assigned this slot too.
        slots.retain(|key, slot| family(key) == 0 || *slot != NO_BACKEND_SLOT);
        Ok(Some(Self { map, slots, retained: HashMap::new(), folder }))
    }

    /// Keeps the slots of a generation that can count packets now or after a rollback. If its tables
    /// are not known, no slot at all is reassigned.
    pub fn retain(&mut self, generation: u64, tables: Option<Arc<TableSet>>) {
        self.retained.insert(generation, tables);
    }

    /// Releases the slots of all generations but these.
    pub fn retain_only(&mut self, generations: &[u64]) {
        self.retained.retain(|number, _| generations.contains(number));
    }

    /// Assigns a slot to every table and backend in `tables`. Tables and backends that have gone keep
    /// theirs until another one needs it; those of retained generations always keep theirs. Returns how
    /// many found no free slot.
    ///
    /// # Errors
    /// When `tables` has more tables or backends than there are slots, or the kernel refuses a map
    /// operation.
    pub fn assign(&mut self, tables: &TableSet) -> Result<Overflow, CountersError> {
        let [wanted_tables, wanted_backends] = keys(tables);
        Ok(Overflow {
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
        // Searched for only when no slot is free.
        let mut reclaimable: Option<std::vec::IntoIter<(Key, u32)>> = None;
        let mut overflow = 0;
        for key in keys {
            if self.slots.contains_key(key) {
                continue;
            }
            let slot = match free.next() {
                Some(slot) => slot,
                None => {
                    let reclaimable = reclaimable
                        .get_or_insert_with(|| self.reclaimable(tables, is_backend).into_iter());
                    let Some((old, slot)) = reclaimable.next() else {
                        overflow += 1;
                        continue;
                    };
                    if is_backend {
                        self.add_to_table(&old, slot)?;
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
        Ok(overflow)
    }

    /// Tables or backends that are neither in `tables` nor in a retained generation, with their slots.
    fn reclaimable(&self, tables: &TableSet, is_backend: bool) -> Vec<(Key, u32)> {
        let mut kept = HashSet::new();
        for tables in self.retained.values().map(Option::as_deref).chain([Some(tables)]) {
            let Some(tables) = tables else { return Vec::new() };
            kept.extend(keys(tables).into_iter().flatten());
        }
        let of_kind = self.slots.iter().filter(|(key, _)| (family(key) != 0) == is_backend);
        of_kind.filter(|(key, _)| !kept.contains(*key)).map(|(key, slot)| (*key, *slot)).collect()
    }

    /// Removes a key, and sets its slot's counters to 0.
    fn forget(&mut self, key: &Key, slot: u32) -> Result<(), CountersError> {
        self.map.remove(key).map_err(|source| self.error(source))?;
        self.slots.remove(key);
        self.reset(family(key) != 0, slot)
    }

    /// Removes the backends of a table that loses its slot. If the table comes back, all its counters
    /// begin at 0 together.
    fn forget_backends(&mut self, table: &Key) -> Result<(), CountersError> {
        let name = name(table);
        let of_table = self.slots.iter().filter(|(key, _)| family(key) != 0);
        let gone: Vec<(Key, u32)> = of_table
            .filter(|(key, _)| self::name(key) == name)
            .map(|(key, slot)| (*key, *slot))
            .collect();
        gone.into_iter().try_for_each(|(key, slot)| self.forget(&key, slot))
    }

    /// Adds the count of a backend that loses its slot to its table's counter, so that the table's sum
    /// stays.
    fn add_to_table(&self, backend: &Key, slot: u32) -> Result<(), CountersError> {
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

    /// Sets the counters of a slot to 0.
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

    /// All tables with their slots.
    pub fn tables(&self) -> impl Iterator<Item = (u32, String)> {
        let tables = self.slots.iter().filter(|(key, _)| family(key) == 0);
        tables.map(|(key, slot)| (*slot, name(key)))
    }

    /// All tables (without an address) and backends, with their slots.
    pub(super) fn all(&self) -> impl Iterator<Item = (String, Option<IpAddr>, u32)> {
        self.slots.iter().map(|(key, slot)| (name(key), address(key), *slot))
    }

    fn error(&self, source: MapError) -> CountersError {
        CountersError::Map { folder: self.folder.clone(), source: Box::new(source) }
    }
}

impl CounterSlots for CounterSlotMap {
    fn table(&self, name: &str) -> u32 {
        self.slots.get(&key(name, None)).copied().unwrap_or(NO_TABLE_SLOT)
    }

    fn backend(&self, backend_id: &BackendId) -> u32 {
        let key = key(&backend_id.table, Some(backend_id.address));
        self.slots.get(&key).copied().unwrap_or(NO_BACKEND_SLOT)
    }
}

/// The keys of all tables, and those of all backends.
fn keys(tables: &TableSet) -> [Vec<Key>; 2] {
    let tables = &tables.tables;
    let backends = tables.iter().flat_map(|table| {
        table.backends.iter().map(|backend| key(&table.name, Some(backend.address)))
    });
    [tables.iter().map(|table| key(&table.name, None)).collect(), backends.collect()]
}

fn key(table: &str, address: Option<IpAddr>) -> Key {
    let mut key: Key = [0; _];
    // Validation limits names to this length.
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
