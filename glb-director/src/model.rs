//! Types that the daemon, its control channel, its metrics and the command line share.
//!
//! This module imports nothing else of the crate, so that those parts need not import each other.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// What the daemon is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The daemon has activated no generation yet.
    #[default]
    Starting,
    /// A generation is active.
    Running,
    /// A generation is active, and the next one is being built.
    Reloading,
    /// The daemon is stopping.
    Ending,
}

/// The result of a reload or a rollback.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReloadOutcome {
    /// The active generation.
    pub generation: u64,
    /// Whether another generation was active before.
    pub changed: bool,
    /// The largest share of a table's established flows that the change can break, from 0 to 1.
    pub at_risk: f64,
    /// The flows that the change can break, for people; empty if none.
    pub warning: String,
    /// Time from the request to the activation, in milliseconds.
    pub milliseconds: f64,
    /// The steps of that time, each with its milliseconds.
    pub steps: Vec<(String, f64)>,
}

/// Something that an operator should mend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The stable name, for programs.
    pub name: String,
    /// The description, for people.
    pub message: String,
}

impl Problem {
    /// A problem with this stable name and description.
    #[must_use]
    pub fn new(name: &str, message: impl Into<String>) -> Self {
        Self { name: name.to_owned(), message: message.into() }
    }
}

/// A moment of this process's life, by the calendar and by the monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct Timestamp {
    calendar: SystemTime,
    monotonic: Instant,
}

impl Timestamp {
    /// The present moment.
    #[must_use]
    pub fn now() -> Self {
        Self { calendar: SystemTime::now(), monotonic: Instant::now() }
    }

    /// Seconds since the epoch, by the calendar as it was set at that moment.
    #[must_use]
    pub fn epoch(&self) -> f64 {
        self.calendar.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
    }

    /// Seconds that have passed since, even if the calendar was set meanwhile.
    #[must_use]
    pub fn age(&self) -> f64 {
        self.monotonic.elapsed().as_secs_f64()
    }
}
