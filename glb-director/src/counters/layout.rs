//! What all parts of the counters share: slots, pins, identities and errors.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use aya::maps::{Map, MapData, MapError, PerCpuArray};
use glb_common::{abi::BACKEND_SLOTS, reason::MAX_REASONS};

/// The slot of packets that belong to no table.
pub(super) const NO_TABLE_SLOT: u32 = 0;
/// The slot of the self-test's packets, which no report shows.
pub const SELF_TEST_TABLE_SLOT: u32 = 1;
/// The slot of backends in the self-test, which no report shows.
pub const SELF_TEST_BACKEND_SLOT: u32 = 0;
/// The slot of packets that are sent to backends without a counter of their own. Reports add them to
/// those of no table.
pub(super) const NO_BACKEND_SLOT: u32 = BACKEND_SLOTS - 1;

/// Names of the pins below the pin folder.
pub mod pins {
    /// Folder of the counters, which outlive generations.
    pub const FOLDER: &str = "counters";
    /// The tables' counters.
    pub const TABLES: &str = "counters/tables";
    /// The backends' counters.
    pub const BACKENDS: &str = "counters/backends";
    /// The slot of each table and backend.
    pub const IDENTITIES: &str = "counters/identities";
}

/// A backend of a table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BackendId {
    /// Name of the table.
    pub table: String,
    /// The backend's address.
    pub address: IpAddr,
}

/// Tells the counter slots of tables and backends.
pub trait CounterSlots {
    /// The slot of a table's counters.
    fn table(&self, name: &str) -> u32;
    /// The slot of a backend's counter.
    fn backend(&self, backend_id: &BackendId) -> u32;
}

/// Packets and bytes for each reason, on one CPU, as the kernel lays them out.
pub(super) type ReasonValues = [[u64; 2]; MAX_REASONS];

/// Why counters cannot be read or assigned.
#[derive(Debug, thiserror::Error)]
pub enum CountersError {
    /// A map operation failed.
    #[error("cannot use the counters pinned below {}: {source}", folder.display())]
    Map {
        /// The pin folder.
        folder: PathBuf,
        /// The kernel's answer.
        source: Box<MapError>,
    },
    /// No counters are pinned.
    #[error(
        "no counters are pinned below {}; start the daemon (`glb-director run`), which makes them",
        folder.display()
    )]
    Missing {
        /// The pin folder.
        folder: PathBuf,
    },
    /// The tables have more tables or backends than there are slots.
    #[error(
        "cannot count {count} {what}: there are counters for {room}; serve some tables from other \
         directors"
    )]
    Full {
        /// Tables or backends.
        what: &'static str,
        /// How many the tables have.
        count: usize,
        /// How many have room.
        room: u32,
    },
}

/// Opens a pinned array of per-CPU counters.
pub(super) fn open_array<V: aya::Pod>(path: &Path) -> Result<PerCpuArray<MapData, V>, MapError> {
    PerCpuArray::try_from(Map::PerCpuArray(MapData::from_pin(path)?))
}
