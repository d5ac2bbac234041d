//! What the daemon knows about itself. Its event loop writes it; the control socket and the metrics
//! read it, also while the loop is busy with a reload.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Mutex, OnceLock, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use glb_host::systemd;
use serde::{Deserialize, Serialize};

use crate::{config::Config, connections::ConnectionMonitor};

/// What the daemon is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// No generation of this process is in force yet.
    #[default]
    Starting,
    /// A generation is in force.
    Running,
    /// A generation is in force, and the next one is being built.
    Reloading,
    /// The daemon is about to exit.
    Stopping,
}

impl Phase {
    /// The name in `status`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Reloading => "reloading",
            Self::Stopping => "stopping",
        }
    }
}

/// A moment, on the clock for people and on the one that only goes forward.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Time of day.
    pub time: SystemTime,
    /// The same moment, to compute ages that no change of the time of day falsifies.
    pub instant: Instant,
}

impl Moment {
    /// This moment.
    fn now() -> Self {
        Self { time: SystemTime::now(), instant: Instant::now() }
    }

    /// Seconds since the epoch.
    #[must_use]
    pub fn epoch_seconds(self) -> f64 {
        self.time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
    }

    /// Seconds since this moment.
    #[must_use]
    pub fn age_seconds(self) -> f64 {
        self.instant.elapsed().as_secs_f64()
    }
}

/// The last reload, successful or not.
#[derive(Clone, Debug)]
pub struct Reload {
    /// When it ended.
    pub at: Moment,
    /// How long it took.
    pub took: Duration,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

/// The part of the state that changes while the daemon runs.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// What the daemon is doing.
    pub phase: Phase,
    /// The generation in force and since when; nothing before the first one.
    pub generation: Option<(u64, Moment)>,
    /// The interfaces that the program is meant to be attached to.
    pub interfaces: Vec<String>,
    /// The VIPs in force.
    pub vips: BTreeSet<IpAddr>,
    /// Successful reloads.
    pub reloads: u64,
    /// Failed reloads; each left the running generation in force.
    pub failed_reloads: u64,
    /// The last reload.
    pub last_reload: Option<Reload>,
    /// Number of fellow backends.
    pub peers: usize,
    /// Fellow backends without a usable next hop, each with the reason.
    pub unresolved_peers: Vec<(IpAddr, String)>,
    /// Why removed pins cannot be restored.
    pub pins_problem: Option<String>,
    /// Why a change of this host's addresses or interfaces could not be followed.
    pub host_problem: Option<String>,
}

/// The daemon's state, shared by its threads.
#[derive(Debug)]
pub struct DaemonState {
    started: Instant,
    bpffs_dir: PathBuf,
    snapshot: Mutex<Snapshot>,
    connections: OnceLock<ConnectionMonitor>,
}

impl DaemonState {
    /// The state of a daemon that starts with this configuration.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self {
            started: Instant::now(),
            bpffs_dir: config.bpffs_dir.clone(),
            snapshot: Mutex::default(),
            connections: OnceLock::new(),
        }
    }

    /// A copy of the changing part.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.change(|snapshot| snapshot.clone())
    }

    /// How long the process has run.
    #[must_use]
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// The folder with the pins.
    #[must_use]
    pub fn bpffs_dir(&self) -> &Path {
        &self.bpffs_dir
    }

    /// The monitor of client connections, once it runs.
    #[must_use]
    pub fn connections(&self) -> Option<&ConnectionMonitor> {
        self.connections.get()
    }

    /// One sentence for the service manager.
    #[must_use]
    pub fn summary(&self) -> String {
        let snapshot = self.snapshot();
        let failed = snapshot.last_reload.is_some_and(|reload| reload.error.is_some());
        let after = if failed { "; the last reload failed" } else { "" };
        match snapshot.generation {
            Some((number, _)) => format!("generation {number} is in force{after}"),
            None => "starting".to_owned(),
        }
    }

    pub(crate) fn set_connections(&self, connections: ConnectionMonitor) {
        // A process has one daemon, which sets it once.
        drop(self.connections.set(connections));
    }

    pub(crate) fn generation_activated(&self, number: u64, config: &Config) {
        self.change(|snapshot| {
            snapshot.phase = Phase::Running;
            if snapshot.generation.is_none_or(|(running, _)| running != number) {
                snapshot.generation = Some((number, Moment::now()));
            }
            snapshot.interfaces.clone_from(&config.interfaces);
            snapshot.vips.clone_from(&config.vips);
        });
    }

    pub(crate) fn reloading(&self, what: &str) {
        self.change(|snapshot| snapshot.phase = Phase::Reloading);
        systemd::reloading(what);
    }

    pub(crate) fn reload_finished(&self, error: Option<String>, took: Duration) {
        self.change(|snapshot| {
            snapshot.phase = Phase::Running;
            match error {
                None => snapshot.reloads += 1,
                Some(_) => snapshot.failed_reloads += 1,
            }
            snapshot.last_reload = Some(Reload { at: Moment::now(), took, error });
        });
    }

    pub(crate) fn stopping(&self) {
        self.change(|snapshot| snapshot.phase = Phase::Stopping);
    }

    pub(crate) fn set_peers(&self, count: usize, unresolved: Vec<(IpAddr, String)>) {
        self.change(|snapshot| {
            snapshot.peers = count;
            snapshot.unresolved_peers = unresolved;
        });
    }

    pub(crate) fn set_pins_problem(&self, problem: Option<String>) {
        self.change(|snapshot| snapshot.pins_problem = problem);
    }

    pub(crate) fn set_host_problem(&self, problem: Option<String>) {
        self.change(|snapshot| snapshot.host_problem = problem);
    }

    fn change<T>(&self, change: impl FnOnce(&mut Snapshot) -> T) -> T {
        change(&mut self.snapshot.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
