//! Decisions of an attached program, as they are taken.
//!
//! Somebody asks the daemon ([`Request`]); the daemon swaps in the build of its program that shows
//! its decisions, and says where ([`TraceSource`]); they are read from there ([`EventReader`]). The connection
//! is what keeps it so: when it is closed, or the time is up, the plain program comes back.

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

/// Name of the ring buffer in a program that shows its decisions.
pub const EVENTS: &str = "TRACE_EVENTS";
/// Its size: some thousand decisions with their headers.
pub const EVENTS_BYTES: u32 = 4 << 20;
const SETTINGS: &str = "TRACE_SETTINGS";
const TALLY: &str = "TRACE_TALLY";

/// The maps that those who watch open by their pins.
pub const PINNED: [&str; 2] = [EVENTS, TALLY];

/// Nobody watches longer than this without asking again.
pub const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// What is asked of the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Which decisions.
    #[serde(default)]
    pub filter: TraceFilter,
    /// One in so many of them; 0 and 1 show all.
    #[serde(default)]
    pub sample: u32,
    /// At most so many each second from each CPU; 0 for no limit.
    pub per_second: u32,
    /// At most so many bytes of a frame.
    pub snap: u32,
    /// How long, in seconds.
    pub seconds: u64,
}

impl Request {
    /// What the program is told. `slot` is that of the table, if one is asked for.
    ///
    /// # Errors
    /// When something is asked for that cannot be.
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

/// Where the decisions are shown from now on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceSource {
    /// The generation that shows them.
    pub generation: u64,
    /// Folder with its pins.
    pub folder: PathBuf,
}

impl TraceSource {
    /// Whether the daemon has turned away from it, as far as its pins print_note: they are gone, and the
    /// daemon's others are not.
    #[must_use]
    pub fn is_over(&self) -> bool {
        let is_there = |path: &Path| path.try_exists().ok();
        let pins = self.folder.ancestors().nth(2);
        is_there(&self.folder) == Some(false) && pins.and_then(is_there) == Some(true)
    }
}

/// Why nothing is shown any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TraceEnd {
    /// The watcher has gone.
    Gone,
    /// The time is up.
    TimeIsUp,
    /// The daemon ends.
    Ending,
}

/// Somebody who watches, as the daemon knows him.
#[derive(Debug)]
pub struct Session {
    /// What was asked for.
    pub request: Request,
    /// By whom.
    pid: Option<i32>,
    until: Instant,
    answer: Responder,
}

impl Session {
    /// Takes up a request, unless somebody watches already or it asks for too much; then he who
    /// asks is told.
    pub fn open<C>(call: Call<C>, request: Request, running: Option<&Self>) -> Option<Self> {
        let refusal = if let Some(running) = running {
            let who = running.pid.map_or("somebody".into(), |pid| format!("process {pid}"));
            let left = running.until.saturating_duration_since(Instant::now()).as_secs();
            let text = format!(
                "{who} traces or captures already, for another {left} s at most; one can at a time"
            );
            Refusal::new(RefusalKind::Busy, text)
        } else if request.seconds == 0 || request.seconds > LONGEST.as_secs() {
            let text = format!("{} s is not from 1 s to {} s", request.seconds, LONGEST.as_secs());
            Refusal::failed(text)
        } else {
            let until = Instant::now() + Duration::from_secs(request.seconds);
            return Some(Self { request, pid: call.peer.pid, until, answer: call.answer });
        };
        call.answer.done(Err::<(), _>(refusal));
        None
    }

    /// Tells where the decisions are shown from now on. Says whether anybody hears it.
    pub fn show(&self, showing: &TraceSource) -> bool {
        self.answer.try_item(showing)
    }

    /// Ends it.
    pub fn end(self, result: Result<TraceEnd, Refusal>) {
        self.answer.done(result);
    }

    /// Whether the watcher has gone, though nobody has noticed yet.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.answer.is_gone()
    }

    /// For the log.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid.unwrap_or_default()
    }
}

/// Waits until `session` is over; for ever if there is none.
pub async fn over(session: Option<&Session>) -> TraceEnd {
    let Some(session) = session else { return std::future::pending().await };
    tokio::select! {
        () = session.answer.gone() => TraceEnd::Gone,
        () = tokio::time::sleep_until(session.until) => TraceEnd::TimeIsUp,
    }
}

/// Tells a loaded program that shows its decisions what is wanted.
///
/// # Errors
/// When it is not such a program.
pub fn configure(ebpf: &mut Ebpf, settings: &TraceSettings) -> Result<(), LoadError> {
    let map = ebpf.map_mut(SETTINGS).ok_or_else(|| LoadError::missing(SETTINGS))?;
    let mut value = [0u8; size_of::<TraceSettings>()];
    value.copy_from_slice(settings.as_bytes());
    Array::<_, [u8; size_of::<TraceSettings>()]>::try_from(map)
        .and_then(|mut array| array.set(0, value, 0))
        .map_err(|error| LoadError::map("fill", SETTINGS, error))
}

/// A decision as the program showed it.
#[derive(Clone, Debug)]
pub struct TraceRecord {
    /// What was decided.
    pub event: TraceEvent,
    /// When, since 1970.
    pub time: Duration,
    /// The frame as it came, or its beginning.
    pub before: Vec<u8>,
    /// The frame as it left, or its beginning; nothing if it was dropped or left alone.
    pub after: Option<Vec<u8>>,
}

impl TraceRecord {
    /// Reads a record.
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

/// The decisions that a generation shows.
pub struct EventReader {
    ring: RingBuf<MapData>,
    tally: PerCpuArray<MapData, [u64; 5]>,
}

impl EventReader {
    /// Opens what a generation shows, by the pins in its folder.
    ///
    /// # Errors
    /// When they cannot be opened: without root, or from where that file system is not seen.
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

    /// The next decision, if there is one.
    pub fn next_shown(&mut self) -> Option<TraceRecord> {
        let since_1970 = boot_time();
        loop {
            let record = self.ring.next()?;
            if let Some(shown) = TraceRecord::parse(&record, since_1970) {
                return Some(shown);
            }
        }
    }

    /// Waits until there is one, but no longer than `patience`.
    pub fn wait(&self, patience: Duration) {
        let mut asked =
            libc::pollfd { fd: self.ring.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let milliseconds = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one descriptor, described by a struct that outlives the call.
        unsafe { libc::poll(&raw mut asked, 1, milliseconds) };
    }

    /// What became of the decisions so far, over all CPUs.
    ///
    /// # Errors
    /// When the kernel says no.
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

/// When the monotonic clock was 0, since 1970.
fn boot_time() -> Duration {
    let now = |clock| clock_gettime(clock).map(Duration::from).unwrap_or_default();
    now(ClockId::CLOCK_REALTIME).saturating_sub(now(ClockId::CLOCK_MONOTONIC))
}

/// A pinned array.
///
/// # Errors
/// When the kernel says no.
pub fn open_array<T: aya::Pod>(path: &Path) -> Result<Array<MapData, T>, MapError> {
    Array::try_from(Map::Array(MapData::from_pin(path)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_and_lies_are_not() {
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
