//! When each connection was first seen. The kernel does not record when a socket was created, so the
//! daemon does. The record is a pinned map: commands read it, and it outlives a restart of the daemon.

use std::{collections::HashMap, path::Path, time::Duration};

use aya::maps::{HashMap as BpfHashMap, MapData, MapError};
use nix::time::{ClockId, clock_gettime};

use super::sock_diag::Socket;

/// The pin's name in the pin folder.
pub(crate) const PIN: &str = "counters/connections";

/// Largest number of connections; the kernel allocates memory for those that exist.
const MAX_CONNECTIONS: u32 = 1 << 20;
const BPF_F_NO_PREALLOC: u32 = 1;

/// The time of the first sighting by socket cookie, on CLOCK_BOOTTIME.
#[derive(Debug, Default)]
pub struct ConnectionAges {
    seen: HashMap<u64, Duration>,
    pinned: Option<BpfHashMap<MapData, u64, u64>>,
}

impl ConnectionAges {
    /// Reads the daemon's record, if it is pinned. New connections are recorded in this process only.
    #[must_use]
    pub fn read(pin: &Path) -> Self {
        let mut ages = Self::default();
        if let Ok(map) = open(pin) {
            ages.seen = map.iter().flatten().map(|(k, v)| (k, Duration::from_nanos(v))).collect();
        }
        ages
    }

    /// Opens or creates the pinned record. New connections are written to it.
    ///
    /// # Errors
    /// When the pin can be neither opened nor created.
    pub fn open_or_create(pin: &Path) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let map = match open(pin) {
            Ok(map) => map,
            Err(_) => {
                match std::fs::remove_file(pin) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(error.into());
                    }
                    _ => {}
                }
                let map =
                    BpfHashMap::<MapData, u64, u64>::create(MAX_CONNECTIONS, BPF_F_NO_PREALLOC)?;
                BpfHashMap::pin(map, pin)?;
                open(pin)?
            }
        };
        Ok(Self { pinned: Some(map), ..Self::read(pin) })
    }

    /// Records new sockets and forgets those that are gone.
    pub fn observe(&mut self, sockets: &[Socket]) {
        let now = now();
        let mut before = std::mem::take(&mut self.seen);
        for socket in sockets {
            let known = before.remove(&socket.cookie);
            let since = known.unwrap_or_else(|| now.saturating_sub(socket.idle));
            if known.is_none() {
                let nanoseconds = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
                self.write(|map| map.insert(socket.cookie, nanoseconds, 0));
            }
            self.seen.insert(socket.cookie, since);
        }
        for gone in before.into_keys() {
            self.write(|map| map.remove(&gone));
        }
    }

    /// The age of a connection: since its first sighting, or since its last use, whichever is longer.
    #[must_use]
    pub fn of(&self, socket: &Socket) -> Duration {
        let seen = self.seen.get(&socket.cookie);
        seen.map_or(Duration::ZERO, |since| now().saturating_sub(*since)).max(socket.idle)
    }

    fn write(
        &mut self,
        change: impl FnOnce(&mut BpfHashMap<MapData, u64, u64>) -> Result<(), MapError>,
    ) {
        if let Some(map) = &mut self.pinned
            && let Err(error) = change(map)
        {
            // A full map costs an age, not a connection.
            tracing::debug!(%error, "cannot record a connection's age");
        }
    }
}

fn open(pin: &Path) -> Result<BpfHashMap<MapData, u64, u64>, MapError> {
    // The conversion checks key and value sizes.
    BpfHashMap::try_from(aya::maps::Map::HashMap(MapData::from_pin(pin)?))
}

fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}
