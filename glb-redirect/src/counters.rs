//! The program's counters, read from their pin; the daemon need not run.

use std::{collections::BTreeMap, path::PathBuf};

use aya::maps::{Map, MapData, MapError, PerCpuArray};
use glb_common::reason::{MAX_REDIRECT_REASONS, RedirectReason};
use glb_host::bpffs::PinFolder;
use serde::Serialize;

use crate::generation::COUNTERS;

/// Why counters cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CountersError {
    /// There is nothing pinned.
    #[error(
        "no counters are pinned below {}; `glb-redirect run` makes them when it starts", folder.display()
    )]
    Missing {
        /// The pin folder.
        folder: PathBuf,
    },
    /// A map operation failed.
    #[error("counters pinned at {}: {source}", path.display())]
    Map {
        /// The pin.
        path: PathBuf,
        /// The library's answer.
        source: MapError,
    },
}

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes, from the Ethernet header on, as received.
    pub bytes: u64,
}

/// All counters, for people and programs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Packets by reason; those that never occurred are left out.
    pub reasons: BTreeMap<&'static str, Count>,
}

/// One CPU's counters, as the kernel lays them out.
type Values = [[u64; 2]; MAX_REDIRECT_REASONS];

/// Reads all counters from their pin.
///
/// # Errors
/// When there are none, or the kernel says no.
pub fn read(pins: &PinFolder) -> Result<Report, CountersError> {
    let path = pins.join(COUNTERS);
    if !path.exists() {
        return Err(CountersError::Missing { folder: pins.path().to_owned() });
    }
    MapData::from_pin(&path)
        .and_then(|data| sum(&Map::PerCpuArray(data)))
        .map_err(|source| CountersError::Map { path, source })
}

/// The sum over all CPUs of a map of counters.
///
/// # Errors
/// When the kernel says no.
pub fn sum(map: &Map) -> Result<Report, MapError> {
    let cpus = PerCpuArray::<&MapData, Values>::try_from(map)?.get(&0, 0)?;
    let mut report = Report::default();
    for (index, reason) in RedirectReason::ALL.iter().enumerate() {
        let mut count = Count::default();
        for cpu in cpus.iter() {
            let [packets, bytes] = cpu[index];
            count.packets += packets;
            count.bytes += bytes;
        }
        if count != Count::default() {
            report.reasons.insert(reason.name(), count);
        }
    }
    Ok(report)
}
