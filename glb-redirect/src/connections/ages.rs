//! Since when each connection has been known. The kernel does not keep a socket's time of birth,
//! so whoever looks writes down what is new; a pinned map lets the commands see what the daemon
//! saw, and the daemon what the one before it saw.

use std::{collections::HashMap, path::Path, time::Duration};

use aya::maps::{HashMap as BpfHashMap, MapData, MapError};
use nix::time::{ClockId, clock_gettime};

use super::sock_diag::Socket;

/// The pin's name in the pin folder.
pub(crate) const PIN: &str = "counters/connections";

/// Room for connections; the kernel allocates only what is used.
const ROOM: u32 = 1 << 20;
const BPF_F_NO_PREALLOC: u32 = 1;

/// First sightings by the socket's number, on the clock that counts suspended time too.
#[derive(Debug, Default)]
pub struct Ages {
    seen: HashMap<u64, Duration>,
    pinned: Option<BpfHashMap<MapData, u64, u64>>,
}

impl Ages {
    /// Ages known from the daemon's pin, if there is one; what is new is only remembered here.
    #[must_use]
    pub fn read(pin: &Path) -> Self {
        let mut ages = Self::default();
        if let Ok(map) = open(pin) {
            ages.seen = map.iter().flatten().map(|(k, v)| (k, Duration::from_nanos(v))).collect();
        }
        ages
    }

    /// The daemon's own: what is new is written down.
    ///
    /// # Errors
    /// When the pin can be neither opened nor made.
    pub fn own(pin: &Path) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let map = match open(pin) {
            Ok(map) => map,
            Err(_) => {
                match std::fs::remove_file(pin) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(error.into());
                    }
                    _ => {}
                }
                let map = BpfHashMap::<MapData, u64, u64>::create(ROOM, BPF_F_NO_PREALLOC)?;
                BpfHashMap::pin(map, pin)?;
                open(pin)?
            }
        };
        Ok(Self { pinned: Some(map), ..Self::read(pin) })
    }

    /// Notes which sockets there are now and forgets those that are gone.
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

    /// How long this socket has been known.
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
            tracing::debug!(%error, "a connection's age was not written down");
        }
    }
}

fn open(pin: &Path) -> Result<BpfHashMap<MapData, u64, u64>, MapError> {
    // Checks sizes too.
    BpfHashMap::try_from(aya::maps::Map::HashMap(MapData::from_pin(pin)?))
}

fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}
