//! The program's packet counters, read from their pins. The daemon need not run.

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

/// Pin of the map from VIPs to sets of counters.
const VIPS: &str = "counters/vips";

/// Why counters cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CountersError {
    /// No counters are pinned.
    #[error(
        "cannot read counters: none are pinned in {}. `glb-redirect run` creates them when it starts; \
         check `bpffs_dir` if it runs already", folder.display()
    )]
    Missing {
        /// The pin folder.
        folder: PathBuf,
    },
    /// A map operation failed.
    #[error("cannot use the map pinned at {}: {source}", path.display())]
    Map {
        /// The pin.
        path: PathBuf,
        /// What failed.
        source: MapError,
    },
}

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes as received, Ethernet header included.
    pub bytes: u64,
}

/// Packets by reason; reasons without a packet are left out.
pub type Reasons = BTreeMap<&'static str, Count>;

/// All counters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// All packets by reason.
    pub reasons: Reasons,
    /// Packets that were matched to a VIP, by VIP and reason.
    pub vips: BTreeMap<IpAddr, Reasons>,
    /// SYN-ACKs whose MSS was lowered.
    pub clamped_syn_acks: u64,
}

impl Report {
    /// Packets that were not matched to a VIP, by reason.
    #[must_use]
    pub fn without_vip(&self) -> Reasons {
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

/// One CPU's set of counters: packets and bytes for each reason.
type Values = [[u64; 2]; MAX_REDIRECT_REASONS];

/// Reads all counters from their pins.
///
/// # Errors
/// When none are pinned, or a map cannot be read.
pub fn read(pins: &PinFolder) -> Result<Report, CountersError> {
    let path = pins.join(COUNTERS);
    if !path.exists() {
        return Err(CountersError::Missing { folder: pins.path().to_owned() });
    }
    let at = |path: &Path, source| CountersError::Map { path: path.to_owned(), source };
    let vips =
        CounterSlots::open(&pins.join(VIPS))?.map_or_else(BTreeMap::new, |slots| slots.slots);
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

/// Reads the set of counters that all VIPs without a set of their own share.
///
/// # Errors
/// When the map cannot be read.
pub fn sum(map: &Map) -> Result<Report, MapError> {
    Ok(Report { reasons: of_slot(map, NO_VIP)?, ..Report::default() })
}

/// Reads one set of counters, summed over all CPUs.
///
/// # Errors
/// When the map cannot be read.
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

/// A VIP as the pinned map's key: an IPv4 address as IPv4-mapped IPv6 address.
type Key = [u8; 16];

fn key(vip: IpAddr) -> Key {
    match vip {
        IpAddr::V4(vip) => vip.to_ipv6_mapped().octets(),
        IpAddr::V6(vip) => vip.octets(),
    }
}

/// The pinned map from VIPs to sets of counters. It outlives reloads and restarts, so that a VIP keeps
/// its counts.
#[derive(Debug)]
pub(crate) struct CounterSlots {
    path: PathBuf,
    map: BpfHashMap<MapData, Key, u32>,
    slots: BTreeMap<IpAddr, u32>,
}

impl CounterSlots {
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

    /// Opens the map in the pin folder, or creates an empty one.
    ///
    /// # Errors
    /// When the kernel refuses.
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
        // Pinning consumes the handle, so the map is opened again by its pin.
        Self::open(&path)?.ok_or_else(|| CountersError::Missing { folder: pins.path().to_owned() })
    }

    /// Gives every VIP a set of counters while there are free ones; returns the assignment. A VIP that
    /// left the configuration keeps its set until another VIP needs it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn assign<'v>(
        &mut self,
        vips: impl IntoIterator<Item = &'v IpAddr> + Clone,
    ) -> Result<&BTreeMap<IpAddr, u32>, CountersError> {
        let path = self.path.clone();
        let configured: Vec<IpAddr> = vips.into_iter().copied().collect();
        for vip in &configured {
            if self.slots.contains_key(vip) {
                continue;
            }
            let taken = |slot: &u32| self.slots.values().any(|used| used == slot);
            let free = (NO_VIP + 1..REDIRECT_COUNTERS).find(|slot| !taken(slot));
            let Some(slot) = free.or_else(|| self.reclaim(&configured)) else {
                tracing::warn!(
                    %vip,
                    "all {} sets of counters are in use: this VIP's packets are counted without a VIP",
                    REDIRECT_COUNTERS - 1
                );
                continue;
            };
            self.assign_slot(*vip, slot)
                .map_err(|source| CountersError::Map { path: path.clone(), source })?;
        }
        Ok(&self.slots)
    }

    /// Takes the set of a VIP that is not configured any more.
    fn reclaim(&mut self, configured: &[IpAddr]) -> Option<u32> {
        let gone = self.slots.keys().find(|vip| !configured.contains(vip)).copied()?;
        // An entry that is missing already is no error.
        self.map.remove(&key(gone)).ok();
        self.slots.remove(&gone)
    }

    /// Gives a set of counters, reset to zero, to a VIP.
    fn assign_slot(&mut self, vip: IpAddr, slot: u32) -> Result<(), MapError> {
        let counters = self.path.with_file_name("packets");
        if counters.exists() {
            // The counts of the VIP that had it before must not stay.
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
