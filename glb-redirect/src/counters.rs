//! The program's counters, read from their pins; the daemon need not run.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    path::{Path, PathBuf},
};

use aya::maps::{HashMap as BpfHashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues};
use glb_common::{
    reason::{MAX_REDIRECT_REASONS, RedirectReason},
    second_chance::{NO_VIP, abi::REDIRECT_COUNTERS},
};
use glb_host::bpffs::PinFolder;
use serde::Serialize;

use crate::generation::{CLAMPED, COUNTERS};

/// Which VIP has which set of counters.
const VIPS: &str = "counters/vips";

/// Why counters cannot be used.
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

/// Packets by reason; those that never occurred are left out.
pub type Reasons = BTreeMap<&'static str, Count>;

/// All counters, for people and programs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// All packets by reason.
    pub reasons: Reasons,
    /// Those of each VIP by reason: of packets that it was found out for which VIP they are.
    pub vips: BTreeMap<IpAddr, Reasons>,
    /// SYN-ACKs whose MSS was lowered.
    pub clamped_syn_acks: u64,
}

impl Report {
    /// Packets of which it was not found out for which VIP they are, by reason.
    #[must_use]
    pub fn of_no_vip(&self) -> Reasons {
        let mut left = self.reasons.clone();
        for (reason, count) in self.vips.values().flatten() {
            if let Some(all) = left.get_mut(reason) {
                all.packets = all.packets.saturating_sub(count.packets);
                all.bytes = all.bytes.saturating_sub(count.bytes);
            }
        }
        left.retain(|_, count| *count != Count::default());
        left
    }
}

/// One CPU's counters, as the kernel lays them out.
type Values = [[u64; 2]; MAX_REDIRECT_REASONS];

/// Reads all counters from their pins.
///
/// # Errors
/// When there are none, or the kernel says no.
pub fn read(pins: &PinFolder) -> Result<Report, CountersError> {
    let path = pins.join(COUNTERS);
    if !path.exists() {
        return Err(CountersError::Missing { folder: pins.path().to_owned() });
    }
    let at = |path: &Path, source| CountersError::Map { path: path.to_owned(), source };
    let vips = Slots::open(&pins.join(VIPS))?.map_or_else(BTreeMap::new, |slots| slots.slots);
    let map = Map::PerCpuArray(MapData::from_pin(&path).map_err(|error| at(&path, error))?);
    let of = |slot| of_slot(&map, slot).map_err(|error| at(&path, error));
    let mut report = Report { reasons: of(NO_VIP)?, ..Report::default() };
    for (vip, slot) in vips {
        let reasons = of(slot)?;
        for (reason, count) in &reasons {
            let all = report.reasons.entry(reason).or_default();
            all.packets += count.packets;
            all.bytes += count.bytes;
        }
        report.vips.insert(vip, reasons);
    }
    let path = pins.join(CLAMPED);
    report.clamped_syn_acks = clamped(&path).map_err(|error| at(&path, error))?;
    Ok(report)
}

fn clamped(path: &Path) -> Result<u64, MapError> {
    let map = PerCpuArray::<MapData, u64>::try_from(Map::PerCpuArray(MapData::from_pin(path)?))?;
    Ok(map.get(&0, 0)?.iter().sum())
}

/// The sum over all CPUs of the counters of packets that are not counted apart by VIP.
///
/// # Errors
/// When the kernel says no.
pub fn sum(map: &Map) -> Result<Report, MapError> {
    Ok(Report { reasons: of_slot(map, NO_VIP)?, ..Report::default() })
}

/// The sum over all CPUs of one set of counters.
///
/// # Errors
/// When the kernel says no.
pub fn of_slot(map: &Map, slot: u32) -> Result<Reasons, MapError> {
    let cpus = PerCpuArray::<&MapData, Values>::try_from(map)?.get(&slot, 0)?;
    let mut reasons = Reasons::new();
    for (index, reason) in RedirectReason::ALL.iter().enumerate() {
        let mut count = Count::default();
        for cpu in cpus.iter() {
            let [packets, bytes] = cpu[index];
            count.packets += packets;
            count.bytes += bytes;
        }
        if count != Count::default() {
            reasons.insert(reason.name(), count);
        }
    }
    Ok(reasons)
}

/// A VIP as the pinned map's key; IPv4 as it is mapped into IPv6.
type Key = [u8; 16];

fn key(vip: IpAddr) -> Key {
    match vip {
        IpAddr::V4(vip) => vip.to_ipv6_mapped().octets(),
        IpAddr::V6(vip) => vip.octets(),
    }
}

/// The pinned mapping from VIPs to sets of counters: neither a reload nor a restart resets or mixes
/// them.
#[derive(Debug)]
pub(crate) struct Slots {
    path: PathBuf,
    map: BpfHashMap<MapData, Key, u32>,
    slots: BTreeMap<IpAddr, u32>,
}

impl Slots {
    fn open(path: &Path) -> Result<Option<Self>, CountersError> {
        if !path.exists() {
            return Ok(None);
        }
        let open = || -> Result<Self, MapError> {
            let map = BpfHashMap::try_from(Map::HashMap(MapData::from_pin(path)?))?;
            let ip = |key: Key| Ipv6Addr::from(key).to_canonical();
            let slots = map
                .iter()
                .map(|entry| entry.map(|(key, slot)| (ip(key), slot)))
                .collect::<Result<_, _>>()?;
            Ok(Self { path: path.to_owned(), map, slots })
        };
        open().map(Some).map_err(|source| CountersError::Map { path: path.to_owned(), source })
    }

    /// Opens the mapping below the pin folder, or makes an empty one there.
    ///
    /// # Errors
    /// When the kernel says no.
    pub(crate) fn open_or_create(pins: &PinFolder) -> Result<Self, CountersError> {
        let path = pins.join(VIPS);
        if let Some(slots) = Self::open(&path)? {
            return Ok(slots);
        }
        let make = || -> Result<(), MapError> {
            let map = BpfHashMap::<MapData, Key, u32>::create(REDIRECT_COUNTERS, 0)?;
            map.pin(&path).map_err(|error| MapError::PinError { name: None, error })
        };
        make().map_err(|source| CountersError::Map { path: path.clone(), source })?;
        // Pinning consumes the handle: it is opened again by its pin.
        Self::open(&path)?.ok_or_else(|| CountersError::Missing { folder: pins.path().to_owned() })
    }

    /// Gives every VIP a set of counters, as far as there are any left; the mapping. VIPs that are
    /// gone keep theirs until the room is needed.
    ///
    /// # Errors
    /// When the kernel says no.
    pub(crate) fn assign<'v>(
        &mut self,
        vips: impl IntoIterator<Item = &'v IpAddr> + Clone,
    ) -> Result<&BTreeMap<IpAddr, u32>, CountersError> {
        let path = self.path.clone();
        let wanted: Vec<IpAddr> = vips.into_iter().copied().collect();
        for vip in &wanted {
            if self.slots.contains_key(vip) {
                continue;
            }
            let taken = |slot: &u32| self.slots.values().any(|used| used == slot);
            let free = (NO_VIP + 1..REDIRECT_COUNTERS).find(|slot| !taken(slot));
            let Some(slot) = free.or_else(|| self.of_one_that_is_gone(&wanted)) else {
                tracing::warn!(
                    %vip,
                    "there are counters for {} VIPs; this one's packets are counted with those of \
                     none",
                    REDIRECT_COUNTERS - 1
                );
                continue;
            };
            self.give(*vip, slot)
                .map_err(|source| CountersError::Map { path: path.clone(), source })?;
        }
        Ok(&self.slots)
    }

    /// The set of a VIP that is not wanted any more, taken from it.
    fn of_one_that_is_gone(&mut self, wanted: &[IpAddr]) -> Option<u32> {
        let gone = self.slots.keys().find(|vip| !wanted.contains(vip)).copied()?;
        // If it is gone from the map already, so much the better.
        self.map.remove(&key(gone)).ok();
        self.slots.remove(&gone)
    }

    fn give(&mut self, vip: IpAddr, slot: u32) -> Result<(), MapError> {
        let counters = self.path.with_file_name("packets");
        if counters.exists() {
            // Another VIP may have had it.
            let data = Map::PerCpuArray(MapData::from_pin(counters)?);
            let mut array = PerCpuArray::<MapData, Values>::try_from(data)?;
            let cpus = array.get(&slot, 0)?.len();
            array.set(
                slot,
                PerCpuValues::try_from(vec![[[0; 2]; MAX_REDIRECT_REASONS]; cpus])?,
                0,
            )?;
        }
        self.map.insert(key(vip), slot, 0)?;
        self.slots.insert(vip, slot);
        Ok(())
    }
}
