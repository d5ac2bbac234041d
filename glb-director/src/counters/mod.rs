//! Counters belong to identities (a table's name, a backend's address in a table), not to positions
//! in a file: the slots are remembered in a pinned map beside the counters, so that neither a reload
//! nor a restart resets or mixes them.

mod counter_slots;

use std::{collections::HashMap, net::IpAddr, ops::AddAssign as _, path::Path};

use aya::maps::{Map, MapData, MapError, PerCpuArray};
pub use counter_slots::{Identities, Uncounted};
use glb_common::{
    abi::{BACKEND_SLOTS, Counter, ReasonCounters, TABLE_SLOTS},
    reason::{Action, DirectorReason, MAX_REASONS},
};
use glb_host::{
    bpf_loader::LoadError,
    bpffs::PinFolder,
    counter_map::{self, CounterLayout},
};
use serde::{Deserialize, Serialize};

/// Where packets are counted that belong to no table.
const NO_TABLE_SLOT: u32 = 0;
/// Where the self-test's packets are counted, which nobody looks at.
pub const SELF_TEST_TABLE_SLOT: u32 = 1;
/// As [`SELF_TEST_TABLE_SLOT`], for backends.
pub const SELF_TEST_BACKEND_SLOT: u32 = 0;
/// Where packets are counted that are sent to a backend without a counter of its own: with those of no
/// table.
const NO_BACKEND_SLOT: u32 = BACKEND_SLOTS - 1;

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
        (
            pins::TABLES,
            CounterLayout { value: size_of::<ReasonCounters>() as u32, entries: TABLE_SLOTS },
        ),
        (
            pins::BACKENDS,
            CounterLayout { value: size_of::<Counter>() as u32, entries: BACKEND_SLOTS },
        ),
    ];
    let mut said = Vec::new();
    for (name, shape) in shapes {
        let path = pins.join(name);
        counter_map::recover(&path, in_use).map_err(|error| LoadError::map("find", name, error))?;
        if let Some(found) = counter_map::migrate(&path, shape)? {
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
            counter_map::commit(&path)
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
    [pins::TABLES, pins::BACKENDS].iter().try_for_each(|name| counter_map::commit(&pins.join(name)))
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
    let sent_to = |slot: u32| -> Result<_, CountersError> {
        let mut count = Count::default();
        let cpus = backends.get(&slot, 0).map_err(error)?;
        cpus.iter().for_each(|cpu| count.count(*cpu));
        Ok(count)
    };
    for (table, address, slot) in identities.all() {
        match address {
            None => report.tables.push(TableReport { name: table, reasons: reasons(slot)? }),
            Some(address) => {
                report.backends.push(BackendReport { table, address, count: sent_to(slot)? });
            }
        }
    }
    // The program counts a packet that it sends for its backend alone.
    let mut sent = HashMap::<&str, Count>::new();
    for BackendReport { table, count, .. } in &report.backends {
        sent.entry(table).or_default().add_assign(*count);
    }
    let add = |reasons: &mut std::collections::BTreeMap<String, Count>, sum| {
        if sum != Count::default() {
            let name = DirectorReason::Encapsulated.name().to_owned();
            reasons.entry(name).or_default().add_assign(sum);
        }
    };
    for table in &mut report.tables {
        add(&mut table.reasons, sent.remove(table.name.as_str()).unwrap_or_default());
    }
    // Of backends, or of tables, that have no counters of their own.
    let others = sent.into_values().fold(sent_to(NO_BACKEND_SLOT)?, |sum, count| sum + count);
    add(&mut report.reasons, others);
    report.tables.sort_by(|a, b| a.name.cmp(&b.name));
    report.backends.sort_by(|a, b| (&a.table, a.address).cmp(&(&b.table, b.address)));
    Ok(report)
}

fn open_array<V: aya::Pod>(path: &Path) -> Result<PerCpuArray<MapData, V>, MapError> {
    PerCpuArray::try_from(Map::PerCpuArray(MapData::from_pin(path)?))
}
