//! Reads all counters into a report for people and programs.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    ops::AddAssign as _,
};

use aya::maps::{MapData, PerCpuArray};
use glb_common::reason::{Action, DirectorReason};
use glb_host::bpffs::PinFolder;
use serde::{Deserialize, Serialize};

use super::{
    counter_slots::CounterSlotMap,
    layout::{CountersError, NO_BACKEND_SLOT, NO_TABLE_SLOT, ReasonValues, open_array, pins},
};

/// A number of packets and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes of the received frames, from the Ethernet header on.
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

/// All counters of a director.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Packets that belong to no table, by reason.
    pub reasons: BTreeMap<String, Count>,
    /// Packets of each table, by reason.
    pub tables: Vec<TableReport>,
    /// Packets sent, by the backend that was the first hop.
    pub backends: Vec<BackendReport>,
}

/// A table's counters.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TableReport {
    /// The table's name.
    pub name: String,
    /// Packets by reason; reasons that never occurred are left out.
    pub reasons: BTreeMap<String, Count>,
}

impl TableReport {
    /// The sum over all reasons whose verdict satisfies `is_meant`.
    #[must_use]
    pub fn sum(&self, is_meant: impl Fn(Action) -> bool) -> Count {
        let counted = self.reasons.iter().filter(|(name, _)| action(name).is_some_and(&is_meant));
        counted.fold(Count::default(), |sum, (_, count)| sum + *count)
    }
}

/// The verdict of the reason with this name.
#[must_use]
pub fn action(reason: &str) -> Option<Action> {
    DirectorReason::ALL.iter().find(|known| known.name() == reason).map(|known| known.action())
}

/// A backend's counter.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BackendReport {
    /// The table's name.
    pub table: String,
    /// The backend's address.
    pub address: IpAddr,
    /// Packets sent to it as first hop.
    #[serde(flatten)]
    pub count: Count,
}

/// Reads all counters from their pins. The daemon need not run.
///
/// # Errors
/// When no counters are pinned, or the kernel refuses to read them.
pub fn read(pins: &PinFolder) -> Result<Report, CountersError> {
    let folder = pins.path().to_owned();
    let error = |source| CountersError::Map { folder: folder.clone(), source: Box::new(source) };
    let Some(identities) = CounterSlotMap::open(pins)? else {
        return Err(CountersError::Missing { folder });
    };
    let tables: PerCpuArray<MapData, ReasonValues> =
        open_array(&pins.join(pins::TABLES)).map_err(error)?;
    let backends: PerCpuArray<MapData, [u64; 2]> =
        open_array(&pins.join(pins::BACKENDS)).map_err(error)?;
    let reasons = |slot: u32| -> Result<_, CountersError> {
        let mut counts = BTreeMap::new();
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
    // The program counts a sent packet in its backend's slot only: add it to its table here.
    let mut sent = HashMap::<&str, Count>::new();
    for BackendReport { table, count, .. } in &report.backends {
        sent.entry(table).or_default().add_assign(*count);
    }
    let add = |reasons: &mut BTreeMap<String, Count>, sum| {
        if sum != Count::default() {
            let name = DirectorReason::Encapsulated.name().to_owned();
            reasons.entry(name).or_default().add_assign(sum);
        }
    };
    for table in &mut report.tables {
        add(&mut table.reasons, sent.remove(table.name.as_str()).unwrap_or_default());
    }
    // Packets to backends without a slot, or of tables without one.
    let others = sent.into_values().fold(sent_to(NO_BACKEND_SLOT)?, |sum, count| sum + count);
    add(&mut report.reasons, others);
    report.tables.sort_by(|a, b| a.name.cmp(&b.name));
    report.backends.sort_by(|a, b| (&a.table, a.address).cmp(&(&b.table, b.address)));
    Ok(report)
}
