//! What can be seen of a running director, from within: the one place that puts together what the
//! daemon's loop, the pinned counters, the interfaces and the kernel's neighbours say. The control
//! channel, Prometheus and statsd all read it; none of them waits for the daemon's loop.

mod interfaces;
mod tables;

use std::{
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use glb_host::{bpffs::PinFolder, next_hop};
use tokio::sync::watch;

pub(crate) use self::tables::count_rows;
pub use self::{
    interfaces::{GenerationView, InterfaceView},
    tables::{BackendView, BindView, TableView, Way},
};
use crate::{
    counters::{self, CountersError, Report},
    daemon_status::{Snapshot, State},
};

/// The newest ways to the backends.
pub type Ways = watch::Receiver<Arc<next_hop::Snapshot>>;

/// Looks at a running director. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Observer {
    state: Arc<State>,
    pins: PinFolder,
    interfaces: Arc<[String]>,
}

impl Observer {
    /// An observer of the director whose pins and interfaces these are.
    #[must_use]
    pub fn new(state: &Arc<State>, pins: &PinFolder, interfaces: &[String]) -> Self {
        Self { state: Arc::clone(state), pins: pins.clone(), interfaces: interfaces.into() }
    }

    /// What the daemon says of itself.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The same at one moment.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.state.snapshot()
    }

    /// The pinned counters.
    ///
    /// # Errors
    /// When the kernel does not give them.
    pub fn counters(&self) -> Result<Report, CountersError> {
        counters::read(&self.pins)
    }
}

/// A moment of this process's life.
#[derive(Clone, Copy, Debug)]
pub struct When {
    calendar: SystemTime,
    clock: Instant,
}

impl When {
    /// This moment.
    #[must_use]
    pub fn now() -> Self {
        Self { calendar: SystemTime::now(), clock: Instant::now() }
    }

    /// Seconds since the epoch, by the calendar as it was then.
    #[must_use]
    pub fn epoch(&self) -> f64 {
        self.calendar.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
    }

    /// Seconds that have passed since, however the calendar was set meanwhile.
    #[must_use]
    pub fn age(&self) -> f64 {
        self.clock.elapsed().as_secs_f64()
    }
}
