//! Tracing an attached program's decisions, on the daemon's side and on the reader's.
//!
//! A client sends a [`Request`]. The daemon swaps in the trace build of its program and answers
//! with its pins ([`TraceSource`]), from which the client reads ([`EventReader`]). When the
//! connection closes or the time is up, the daemon swaps the plain program back in.

use std::{
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{Array, Map, MapData, MapError, PerCpuArray, RingBuf},
};
use glb_common::{
    abi::{IntoBytes as _, MapValue as _},
    trace::{MAX_SNAP, TraceEvent, TraceSettings, TraceTotals},
};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::filter::{ReasonName, TraceFilter};
use crate::{
    bpf_loader::LoadError,
    control::{Call, Refusal, RefusalKind, Responder},
};

/// Name of the ring buffer in a trace program.
pub const EVENTS: &str = "TRACE_EVENTS";
/// The ring buffer's size: some thousand decisions with their headers.
pub const EVENTS_BYTES: u32 = 4 << 20;
const SETTINGS: &str = "TRACE_SETTINGS";
const TALLY: &str = "TRACE_TALLY";

/// The maps that readers open by their pins.
pub const PINNED: [&str; 2] = [EVENTS, TALLY];

/// The longest trace.
pub const MAX_DURATION: Duration = Duration::from_secs(24 * 60 * 60);

/// A request to trace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Which decisions.
    #[serde(default)]
    pub filter: TraceFilter,
    /// Sample one in this many; 0 and 1 mean all.
    #[serde(default)]
    pub sample: u32,
    /// The limit per second and CPU; 0 means none.
    pub per_second: u32,
    /// The maximum number of bytes of a frame.
    pub snap: u32,
    /// The duration in seconds.
    pub seconds: u64,
}

impl Request {
    /// Compiles the settings for the program. `slot` is the table's counter slot, if a table is
    /// selected.
    ///
    /// # Errors
    /// When the filter is not valid.
    pub fn settings(
        &self,
        reasons: &[ReasonName],
        slot: Option<u32>,
    ) -> Result<TraceSettings, Refusal> {
        let filter = self.filter.compile(reasons, slot).map_err(Refusal::failed)?;
        let Self { sample, per_second, snap, .. } = *self;
        Ok(TraceSettings {
            filter,
            sample,
            per_second,
            snap: snap.min(MAX_SNAP as u32),
            padding: 0,
        })
    }
}

/// The trace program's location.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceSource {
    /// The traced generation.
    pub generation: u64,
    /// The folder with its pins.
    pub folder: PathBuf,
}

impl TraceSource {
    /// Returns whether the daemon has removed this trace: its pins are gone, and the daemon's
    /// others are not.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        let is_there = |path: &Path| path.try_exists().ok();
        let pins = self.folder.ancestors().nth(2);
        is_there(&self.folder) == Some(false) && pins.and_then(is_there) == Some(true)
    }
}

/// Why a trace ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TraceEnd {
    /// The client disconnected.
    Disconnected,
    /// The time is up.
    Expired,
    /// The daemon stops.
    Stopping,
}

/// A running trace on the daemon's side.
#[derive(Debug)]
pub struct Session {
    /// The request.
    pub request: Request,
    /// The client's process id.
    pid: Option<i32>,
    until: Instant,
    answer: Responder,
}

impl Session {
    /// Starts a session. If another one runs, or the request is not valid, the client gets a
    /// refusal.
    pub fn open<C>(call: Call<C>, request: Request, running: Option<&Self>) -> Option<Self> {
        let refusal = if let Some(running) = running {
            let who = running.pid.map_or("somebody".into(), |pid| format!("process {pid}"));
            let left = running.until.saturating_duration_since(Instant::now()).as_secs();
            let text = format!(
                "{who} already traces or captures, for at most {left} s more; only one can at a time"
            );
            Refusal::new(RefusalKind::Busy, text)
        } else if request.seconds == 0 || request.seconds > MAX_DURATION.as_secs() {
            let text = format!(
                "a trace of {} s is not between 1 s and {} s",
                request.seconds,
                MAX_DURATION.as_secs()
            );
            Refusal::failed(text)
        } else {
            let until = Instant::now() + Duration::from_secs(request.seconds);
            return Some(Self { request, pid: call.peer.pid, until, answer: call.answer });
        };
        call.answer.done(Err::<(), _>(refusal));
        None
    }

    /// Sends the trace program's location; returns whether the client is still connected.
    pub fn show(&self, showing: &TraceSource) -> bool {
        self.answer.try_item(showing)
    }

    /// Ends the session.
    pub fn end(self, result: Result<TraceEnd, Refusal>) {
        self.answer.done(result);
    }

    /// Returns whether the client has disconnected.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.answer.is_gone()
    }

    /// Returns the client's process id for the log.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid.unwrap_or_default()
    }
}

/// Waits until `session` is over; without a session, for ever.
pub async fn session_end(session: Option<&Session>) -> TraceEnd {
    let Some(session) = session else { return std::future::pending().await };
    tokio::select! {
        () = session.answer.gone() => TraceEnd::Disconnected,
        () = tokio::time::sleep_until(session.until) => TraceEnd::Expired,
    }
}

/// Writes the settings into a loaded trace program.
///
/// # Errors
/// When it is not a trace program.
pub fn configure(ebpf: &mut Ebpf, settings: &TraceSettings) -> Result<(), LoadError> {
    let map = ebpf.map_mut(SETTINGS).ok_or_else(|| LoadError::missing(SETTINGS))?;
    let mut value = [0u8; size_of::<TraceSettings>()];
    value.copy_from_slice(settings.as_bytes());
    Array::<_, [u8; size_of::<TraceSettings>()]>::try_from(map)
        .and_then(|mut array| array.set(0, value, 0))
        .map_err(|error| LoadError::map("fill", SETTINGS, error))
}

/// One decision as the trace program recorded it.
#[derive(Clone, Debug)]
pub struct TraceRecord {
    /// The decision.
    pub event: TraceEvent,
    /// Time since 1970.
    pub time: Duration,
    /// The received frame, or its beginning.
    pub before: Vec<u8>,
    /// The frame after the program, or its beginning; `None` if it was dropped or unchanged.
    pub after: Option<Vec<u8>>,
}

impl TraceRecord {
    /// Parses a record.
    fn parse(record: &[u8], since_1970: Duration) -> Option<Self> {
        let (head, rest) = record.split_at_checked(size_of::<TraceEvent>())?;
        let event = TraceEvent::from_bytes(head)?;
        let (before, rest) = rest.split_at_checked(event.before as usize)?;
        let after = rest.get(..event.after as usize)?;
        Some(Self {
            event,
            time: since_1970 + Duration::from_nanos(event.time),
            before: before.to_vec(),
            after: (!after.is_empty()).then(|| after.to_vec()),
        })
    }
}

/// Reads a trace program's records.
pub struct EventReader {
    ring: RingBuf<MapData>,
    tally: PerCpuArray<MapData, [u64; 5]>,
}

impl EventReader {
    /// Opens the maps that are pinned in `folder`.
    ///
    /// # Errors
    /// When they cannot be opened: without root, or in another mount namespace.
    pub fn open(folder: &Path) -> Result<Self, LoadError> {
        let open = |name: &str| {
            MapData::from_pin(folder.join(name.to_lowercase()))
                .map_err(|error| LoadError::map("open", name, error))
        };
        let wrong = |name: &str, error: MapError| LoadError::map("open", name, error);
        let ring = RingBuf::try_from(Map::RingBuf(open(EVENTS)?)).map_err(|e| wrong(EVENTS, e))?;
        let tally = PerCpuArray::try_from(Map::PerCpuArray(open(TALLY)?));
        Ok(Self { ring, tally: tally.map_err(|e| wrong(TALLY, e))? })
    }

    /// Returns the next record, if there is one.
    pub fn next_record(&mut self) -> Option<TraceRecord> {
        let since_1970 = boot_time();
        loop {
            let record = self.ring.next()?;
            if let Some(shown) = TraceRecord::parse(&record, since_1970) {
                return Some(shown);
            }
        }
    }

    /// Waits until there is a record, at most `patience`.
    pub fn wait(&self, patience: Duration) {
        let mut asked =
            libc::pollfd { fd: self.ring.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let milliseconds = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one descriptor, described by a struct that outlives the call.
        unsafe { libc::poll(&raw mut asked, 1, milliseconds) };
    }

    /// Returns the number of recorded and omitted decisions, over all CPUs.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn tally(&self) -> Result<TraceTotals, MapError> {
        let mut sum = TraceTotals::default();
        for [wanted, shown, not_in_sample, over_rate, buffer_full] in self.tally.get(&0, 0)?.iter()
        {
            sum.wanted += wanted;
            sum.shown += shown;
            sum.not_in_sample += not_in_sample;
            sum.over_rate += over_rate;
            sum.buffer_full += buffer_full;
        }
        Ok(sum)
    }
}

/// Returns the time since 1970 at which the monotonic clock was 0.
fn boot_time() -> Duration {
    let now = |clock| clock_gettime(clock).map(Duration::from).unwrap_or_default();
    now(ClockId::CLOCK_REALTIME).saturating_sub(now(ClockId::CLOCK_MONOTONIC))
}

/// Opens a pinned array.
///
/// # Errors
/// When the kernel refuses.
pub fn open_array<T: aya::Pod>(path: &Path) -> Result<Array<MapData, T>, MapError> {
    Array::try_from(Map::Array(MapData::from_pin(path)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_with_wrong_lengths_are_ignored() {
        let event = TraceEvent { time: 5, before: 3, after: 2, ..TraceEvent::default() };
        let mut record = event.as_bytes().to_vec();
        record.extend([1, 2, 3, 4, 5]);
        let shown = TraceRecord::parse(&record, Duration::from_secs(1)).unwrap();
        assert_eq!((shown.before, shown.after), (vec![1, 2, 3], Some(vec![4, 5])));
        assert_eq!((shown.event, shown.time), (event, Duration::new(1, 5)));
        for length in 0..record.len() {
            assert!(TraceRecord::parse(&record[..length], Duration::ZERO).is_none());
        }
    }
}
