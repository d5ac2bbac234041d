//! The daemon's watch over connections: writes down when each was first seen, and keeps the newest
//! survey for the metrics. On a thread of its own: a million sockets take a while to list.

use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use super::{Ages, Survey, survey};

/// Time between two looks.
const EVERY: Duration = Duration::from_secs(2);
/// At most this part of one core's time is spent on looking.
const PART: u32 = 50;

/// What the thread and the daemon share.
#[derive(Debug, Default)]
struct Shared {
    vips: BTreeSet<IpAddr>,
    newest: Option<Survey>,
}

/// A running watch; it ends with the process.
#[derive(Clone, Debug)]
pub struct Watch(Arc<Mutex<Shared>>);

impl Watch {
    /// Starts looking, in the network namespace of the calling thread. Ages are pinned at `pin`.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(vips: BTreeSet<IpAddr>, pin: PathBuf) -> io::Result<Self> {
        let watch = Self(Arc::new(Mutex::new(Shared { vips, newest: None })));
        let of_thread = watch.clone();
        let mut ages = Ages::own(&pin).unwrap_or_else(|error| {
            tracing::warn!(%error, "ages of connections are not kept at {}", pin.display());
            Ages::default()
        });
        let run = move || {
            loop {
                let start = Instant::now();
                of_thread.look(&mut ages);
                thread::sleep(EVERY.max(start.elapsed() * PART));
            }
        };
        thread::Builder::new().name("connections".into()).spawn(run)?;
        Ok(watch)
    }

    /// Watches other VIPs from now on.
    pub fn set_vips(&self, vips: BTreeSet<IpAddr>) {
        self.shared(|shared| shared.vips = vips);
    }

    /// What was seen last; nothing if it could not be seen.
    #[must_use]
    pub fn newest(&self) -> Option<Survey> {
        self.shared(|shared| shared.newest.clone())
    }

    fn look(&self, ages: &mut Ages) {
        let vips = self.shared(|shared| shared.vips.clone());
        let seen = survey(&vips, ages);
        if let Err(error) = &seen {
            tracing::warn!(%error, "connections cannot be listed");
        }
        self.shared(|shared| shared.newest = seen.ok());
    }

    fn shared<T>(&self, work: impl FnOnce(&mut Shared) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
