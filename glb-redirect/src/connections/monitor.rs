//! The daemon's monitor of connections: it records when each was first seen, and keeps the newest
//! report. It has a thread of its own, since listing a million sockets takes a while.

use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use super::{ConnectionAges, ConnectionReport, report};

/// Time between two listings.
const INTERVAL: Duration = Duration::from_secs(2);
/// The thread sleeps at least this many times as long as a listing takes: 2 % of one core.
const SLEEP_FACTOR: u32 = 50;

/// What the thread and the daemon share.
#[derive(Debug, Default)]
struct Shared {
    vips: BTreeSet<IpAddr>,
    newest: Option<ConnectionReport>,
}

/// A running monitor; it ends with the process.
#[derive(Clone, Debug)]
pub struct ConnectionMonitor(Arc<Mutex<Shared>>);

impl ConnectionMonitor {
    /// Starts the thread in the network namespace of the calling thread. Ages are pinned at `pin`.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(vips: BTreeSet<IpAddr>, pin: PathBuf) -> io::Result<Self> {
        let monitor = Self(Arc::new(Mutex::new(Shared { vips, newest: None })));
        let of_thread = monitor.clone();
        let mut ages = ConnectionAges::open_or_create(&pin).unwrap_or_else(|error| {
            tracing::warn!(
                %error, pin = %pin.display(),
                "cannot pin the ages of connections: they start anew with the next daemon"
            );
            ConnectionAges::default()
        });
        let run = move || {
            loop {
                let start = Instant::now();
                of_thread.update(&mut ages);
                thread::sleep(INTERVAL.max(start.elapsed() * SLEEP_FACTOR));
            }
        };
        thread::Builder::new().name("connections".into()).spawn(run)?;
        Ok(monitor)
    }

    /// Changes the VIPs whose connections are reported.
    pub fn set_vips(&self, vips: BTreeSet<IpAddr>) {
        self.shared(|shared| shared.vips = vips);
    }

    /// The newest report; nothing if the last listing failed.
    #[must_use]
    pub fn newest(&self) -> Option<ConnectionReport> {
        self.shared(|shared| shared.newest.clone())
    }

    fn update(&self, ages: &mut ConnectionAges) {
        let vips = self.shared(|shared| shared.vips.clone());
        let report = report(&vips, ages);
        if let Err(error) = &report {
            tracing::warn!(%error, "cannot list connections");
        }
        self.shared(|shared| shared.newest = report.ok());
    }

    fn shared<T>(&self, work: impl FnOnce(&mut Shared) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
