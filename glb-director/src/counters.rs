//! Counters belong to identities (a table's name, a backend's address in a table), not to positions
//! in a file: the slots are remembered in a pinned map beside the counters, so that neither a reload
//! nor a restart resets or mixes them.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    ops::AddAssign as _,
    path::Path,
};

use aya::maps::{HashMap as BpfHashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues};
use glb_common::{
    layout::{BACKEND_SLOTS, Counter, ReasonCounters, TABLE_SLOTS},
    reason::{Action, DirectorReason, MAX_REASONS},
};
use glb_host::{
    bpffs::PinFolder,
    counter_map::{self, Shape},
    load::LoadError,
};
use glb_table::TableSet;
use serde::{Deserialize, Serialize};

use crate::image::{CounterSlots, Owner};

/// Where packets are counted that belong to no table.
const NO_TABLE_SLOT: u32 = 0;
/// Where the self-test's packets are counted, which nobody looks at.
pub const SELF_TEST_TABLE_SLOT: u32 = 1;
/// As [`SELF_TEST_TABLE_SLOT`], for backends.
pub const SELF_TEST_BACKEND_SLOT: u32 = 0;

/// Names of the pins below the pin folder.
pub mod pins {
    /// Folder of what outlives generations.
    pub const FOLDER: &str = "counters";
    /// The tables' counters.
    pub const TABLES: &str = "counters/tables";
    /// The backends' counters.
    pub const BACKENDS: &str = "counters/backends";
    /// Which identity has which slot.
    pub const IDENTITIES: &str = "counters/identities";
}

/// Longest table name in an identity's key.
const MAX_NAME: usize = 63;

/// An identity as the map's key: length and bytes of the table's name, then family (0 for the table
/// itself) and address.
type Key = [u8; 1 + MAX_NAME + 1 + 16];

/// Packets and bytes for each CPU and reason, as the kernel lays them out.
type ReasonValues = [[u64; 2]; MAX_REASONS];

/// Why counters cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CountersError {
    /// A map operation failed.
    #[error("counters pinned below {}: {source}", folder.display())]
    Map {
        /// The pin folder.
        folder: std::path::PathBuf,
        /// The library's answer.
        source: Box<MapError>,
    },
    /// There is nothing pinned.
    #[error(
        "no counters are pinned below {}; `glb-director run` makes them when it starts", folder.display()
    )]
    Missing {
        /// The pin folder.
        folder: std::path::PathBuf,
    },
    /// More identities than slots.
    #[error("{count} {what} at once; there are counters for {room}")]
    Full {
        /// Tables or backends.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many can be counted.
        room: u32,
    },
}

/// What a former release pinned in another shape is put aside, and what it has counted goes on here as
/// far as it fits; `in_use` are the maps of the program in force. Says what was done, for people.
///
/// # Errors
/// When the kernel says no.
pub fn renew(pins: &PinFolder, in_use: &[u32]) -> Result<Vec<String>, LoadError> {
    let shapes = [
        (pins::TABLES, Shape { value: size_of::<ReasonCounters>() as u32, entries: TABLE_SLOTS }),
        (pins::BACKENDS, Shape { value: size_of::<Counter>() as u32, entries: BACKEND_SLOTS }),
    ];
    let mut said = Vec::new();
    for (name, shape) in shapes {
        let path = pins.join(name);
        counter_map::settle(&path, in_use).map_err(|error| LoadError::map("find", name, error))?;
        if let Some(found) = counter_map::renew(&path, shape)? {
            said.push(format!(
                "{name} was pinned by another release ({found}); what it has counted is taken over as \
                 far as it fits"
            ));
        }
    }
    let identities = pins.join(pins::IDENTITIES);
    if identities.exists() && Identities::open(pins).is_err() {
        // Nobody can say whose the counts are.
        for name in [pins::TABLES, pins::BACKENDS, pins::IDENTITIES] {
            let path = pins.join(name);
            counter_map::keep_new(&path)
                .and_then(|()| match std::fs::remove_file(&path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                    _ => Ok(()),
                })
                .map_err(|error| LoadError::map("remove", name, error))?;
        }
        said.push(
            "who is counted where was pinned by another release in a form that this one does not \
             know: all counters begin at 0"
                .to_owned(),
        );
    }
    Ok(said)
}

/// The program that counts in the new maps is in force: the old ones go.
///
/// # Errors
/// When a pin cannot be removed.
pub fn renewed(pins: &PinFolder) -> std::io::Result<()> {
    [pins::TABLES, pins::BACKENDS]
        .iter()
        .try_for_each(|name| counter_map::keep_new(&pins.join(name)))
}

/// The pinned mapping from identities to slots.
#[derive(Debug)]
pub struct Identities {
    map: BpfHashMap<MapData, Key, u32>,
    slots: HashMap<Key, u32>,
    folder: std::path::PathBuf,
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
        let slots = map.iter().collect::<Result<_, _>>().map_err(error)?;
        Ok(Some(Self { map, slots, folder }))
    }

    /// Gives every identity in `tables` a slot. Identities that are gone keep theirs until the room
    /// is needed.
    ///
    /// # Errors
    /// When there is no room, or the kernel says no.
    pub fn assign(&mut self, tables: &TableSet) -> Result<(), CountersError> {
        let mut wanted_tables = Vec::new();
        let mut wanted_backends = Vec::new();
        for table in &tables.tables {
            wanted_tables.push(key(&table.name, None));
            wanted_backends
                .extend(table.backends.iter().map(|b| key(&table.name, Some(b.address))));
        }
        let wanted: HashSet<Key> = wanted_tables.iter().chain(&wanted_backends).copied().collect();
        self.assign_kind("tables", &wanted_tables, &wanted, SELF_TEST_TABLE_SLOT + 1..TABLE_SLOTS)?;
        self.assign_kind(
            "backends",
            &wanted_backends,
            &wanted,
            SELF_TEST_BACKEND_SLOT + 1..BACKEND_SLOTS,
        )
    }

    fn assign_kind(
        &mut self,
        what: &'static str,
        keys: &[Key],
        wanted: &HashSet<Key>,
        range: std::ops::Range<u32>,
    ) -> Result<(), CountersError> {
        let is_backend = what == "backends";
        let of_kind = |key: &Key| (family(key) != 0) == is_backend;
        let mut used: HashSet<u32> =
            self.slots.iter().filter(|(key, _)| of_kind(key)).map(|(_, slot)| *slot).collect();
        let room = range.len() as u32;
        let mut free = range.filter(|slot| !used.contains(slot)).collect::<Vec<_>>().into_iter();
        for key in keys {
            if self.slots.contains_key(key) {
                continue;
            }
            let slot = match free.next() {
                Some(slot) => slot,
                None => {
                    let gone = self
                        .slots
                        .iter()
                        .find(|(key, _)| of_kind(key) && !wanted.contains(*key))
                        .map(|(key, slot)| (*key, *slot))
                        .ok_or(CountersError::Full { what, count: keys.len(), room })?;
                    if is_backend {
                        self.keep_sum(&gone.0, gone.1)?;
                    } else {
                        self.forget_backends(&gone.0)?;
                    }
                    self.forget(&gone.0, gone.1)?;
                    gone.1
                }
            };
            used.insert(slot);
            self.map.insert(key, slot, 0).map_err(|source| self.error(source))?;
            self.slots.insert(*key, slot);
        }
        Ok(())
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
        self.slots.get(&key).copied().unwrap_or(SELF_TEST_BACKEND_SLOT)
    }
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

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes, from the Ethernet header on, as received.
    pub bytes: u64,
}

impl Count {
    fn count(&mut self, [packets, bytes]: [u64; 2]) {
        self.packets += packets;
        self.bytes += bytes;
    }
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl std::ops::Add for Count {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { packets: self.packets + other.packets, bytes: self.bytes + other.bytes }
    }
}

/// All counters, for people and programs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Packets that belong to no table, by reason.
    pub reasons: std::collections::BTreeMap<String, Count>,
    /// Packets of each table, by reason.
    pub tables: Vec<TableReport>,
    /// Packets by first hop.
    pub backends: Vec<BackendReport>,
}

/// A table's counters.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TableReport {
    /// The table's name.
    pub name: String,
    /// By reason; those that never occurred are left out.
    pub reasons: std::collections::BTreeMap<String, Count>,
}

impl TableReport {
    /// What was counted under reasons with such a verdict.
    #[must_use]
    pub fn sum(&self, is_meant: impl Fn(Action) -> bool) -> Count {
        let counted = self.reasons.iter().filter(|(name, _)| action(name).is_some_and(&is_meant));
        counted.fold(Count::default(), |sum, (_, count)| sum + *count)
    }
}

/// The verdict that a reason's name stands for.
#[must_use]
pub fn action(reason: &str) -> Option<Action> {
    DirectorReason::ALL.iter().find(|known| known.name() == reason).map(|known| known.action())
}

/// A backend's counter.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BackendReport {
    /// The table's name.
    pub table: String,
    /// The backend.
    pub address: IpAddr,
    /// What was sent to it as first hop.
    #[serde(flatten)]
    pub count: Count,
}

/// Reads all counters from their pins; the daemon need not run.
///
/// # Errors
/// When there are none, or the kernel says no.
pub fn read(pins: &PinFolder) -> Result<Report, CountersError> {
    let folder = pins.path().to_owned();
    let error = |source| CountersError::Map { folder: folder.clone(), source: Box::new(source) };
    let Some(identities) = Identities::open(pins)? else {
        return Err(CountersError::Missing { folder });
    };
    let tables: PerCpuArray<MapData, ReasonValues> =
        open_array(&pins.join(pins::TABLES)).map_err(error)?;
    let backends: PerCpuArray<MapData, [u64; 2]> =
        open_array(&pins.join(pins::BACKENDS)).map_err(error)?;
    let reasons = |slot: u32| -> Result<_, CountersError> {
        let mut counts = std::collections::BTreeMap::new();
        let cpus = tables.get(&slot, 0).map_err(error)?;
        for (index, reason) in DirectorReason::ALL.iter().enumerate() {
            let mut count = Count::default();
            cpus.iter().for_each(|cpu| count.count(cpu[index]));
            if count != Count::default() {
                counts.insert(reason.name().to_owned(), count);
            }
        }
        Ok(counts)
    };
    let mut report =
        Report { reasons: reasons(NO_TABLE_SLOT)?, tables: Vec::new(), backends: Vec::new() };
    for (key, slot) in &identities.slots {
        match address(key) {
            None => {
                report.tables.push(TableReport { name: name(key), reasons: reasons(*slot)? });
            }
            Some(address) => {
                let mut count = Count::default();
                let cpus = backends.get(slot, 0).map_err(error)?;
                cpus.iter().for_each(|cpu| count.count(*cpu));
                report.backends.push(BackendReport { table: name(key), address, count });
            }
        }
    }
    // The program counts a packet that it sends for its backend alone.
    let mut sent = HashMap::<&str, Count>::new();
    for BackendReport { table, count, .. } in &report.backends {
        sent.entry(table).or_default().add_assign(*count);
    }
    for table in &mut report.tables {
        let sum = sent.get(table.name.as_str()).copied().unwrap_or_default();
        if sum != Count::default() {
            let name = DirectorReason::Encapsulated.name().to_owned();
            table.reasons.entry(name).or_default().add_assign(sum);
        }
    }
    report.tables.sort_by(|a, b| a.name.cmp(&b.name));
    report.backends.sort_by(|a, b| (&a.table, a.address).cmp(&(&b.table, b.address)));
    Ok(report)
}

fn open_array<V: aya::Pod>(path: &Path) -> Result<PerCpuArray<MapData, V>, MapError> {
    PerCpuArray::try_from(Map::PerCpuArray(MapData::from_pin(path)?))
}
