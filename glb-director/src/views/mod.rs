//! Views of a running director for operators: tables, backends, binds, interfaces and generations.
//!
//! An [`Observer`] joins the daemon's status, the pinned counters, the interfaces and the kernel's next
//! hops. The control socket, Prometheus and statsd all read through it, and none of them waits for the
//! daemon's loop.

mod interfaces;
mod tables;

use std::sync::Arc;

use glb_host::bpffs::PinFolder;

pub use self::{
    interfaces::{GenerationView, InterfaceView},
    tables::{BackendView, BindView, NextHopView, TableView},
};
use crate::{
    counters::{self, CountersError, Report},
    daemon_status::{DaemonStatus, StatusSnapshot},
};

/// Reads a running director. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Observer {
    status: Arc<DaemonStatus>,
    pins: PinFolder,
    interfaces: Arc<[String]>,
}

impl Observer {
    /// An observer of the director with this status, these pins and these configured interfaces.
    #[must_use]
    pub fn new(status: &Arc<DaemonStatus>, pins: &PinFolder, interfaces: &[String]) -> Self {
        Self { status: Arc::clone(status), pins: pins.clone(), interfaces: interfaces.into() }
    }

    /// The daemon's status.
    #[must_use]
    pub fn status(&self) -> &DaemonStatus {
        &self.status
    }

    /// The daemon's status at this moment.
    #[must_use]
    pub fn snapshot(&self) -> Arc<StatusSnapshot> {
        self.status.snapshot()
    }

    /// The pinned counters.
    ///
    /// # Errors
    /// When no counters are pinned, or the kernel refuses to read them.
    pub fn counters(&self) -> Result<Report, CountersError> {
        counters::read(&self.pins)
    }
}
