//! What the daemon knows of itself, for whoever asks: its loop writes it, the control channel and
//! the metrics read it, also while the loop is busy with a reload.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use glb_host::systemd;
use glb_table::{Digest, TableSet};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{
    announce::AnnounceView,
    daemon::Done,
    views::{self, Ways, When},
};

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
    /// About to end.
    Ending,
}

/// How a reload went.
#[derive(Clone, Debug)]
pub struct Reload {
    /// When it ended.
    pub at: When,
    /// How long it took.
    pub took: Duration,
    /// Why it failed, if it did.
    pub error: Option<String>,
    /// What it did, if it did not fail.
    pub done: Option<Done>,
}

/// What is in force.
#[derive(Clone, Debug)]
pub struct InForce {
    /// Number of the generation.
    pub generation: u64,
    /// Its tables.
    pub tables: Arc<TableSet>,
    /// Their digests.
    pub digest: Digest,
    /// Since when.
    pub since: When,
    /// Counted when somebody asks for the first time.
    rows: Arc<OnceLock<RowsByHop>>,
}

/// For each table and each of its backends: in how many rows it is the first hop, the second, and so
/// on.
type RowsByHop = Vec<Vec<Vec<u32>>>;

impl InForce {
    /// For each table and each of its backends, in their order: in how many rows it is the first
    /// hop, the second, and so on.
    #[must_use]
    pub fn rows_by_hop(&self) -> &[Vec<Vec<u32>>] {
        self.rows.get_or_init(|| self.tables.tables.iter().map(views::count_rows).collect())
    }
}

/// All of it, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// What the daemon is doing.
    pub phase: Phase,
    /// What is in force, once something is.
    pub in_force: Option<InForce>,
    /// Reloads that went well.
    pub reloads: u64,
    /// Reloads that failed; the running generation stayed.
    pub failed_reloads: u64,
    /// The last of them.
    pub last_reload: Option<Reload>,
    /// Changes that could break flows, and were made.
    pub unsafe_changes: u64,
    /// Changes that could break flows, and were refused for that.
    pub refused_changes: u64,
    /// Why what somebody has removed cannot be pinned again, if that is so.
    pub pins_problem: Option<String>,
}

/// The place where the snapshot is kept.
#[derive(Debug)]
pub struct State {
    started: Instant,
    snapshot: watch::Sender<Arc<Snapshot>>,
    ways: OnceLock<Ways>,
    announcements: OnceLock<watch::Receiver<Arc<AnnounceView>>>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            snapshot: watch::Sender::default(),
            ways: OnceLock::new(),
            announcements: OnceLock::new(),
        }
    }
}

impl State {
    /// What is known now.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.borrow())
    }

    /// A channel that always holds what is known.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshot.subscribe()
    }

    /// From now on what is announced is seen here.
    pub fn follow_announcements(&self, view: watch::Receiver<Arc<AnnounceView>>) {
        // There is one daemon in a process, and it says so once.
        drop(self.announcements.set(view));
    }

    /// What is announced; nothing before it is followed.
    #[must_use]
    pub fn announcements(&self) -> Arc<AnnounceView> {
        self.announcements.get().map(|view| Arc::clone(&view.borrow())).unwrap_or_default()
    }

    /// What is announced has changed.
    pub fn announced(&self) {
        if self.snapshot().phase == Phase::Running {
            systemd::status(&self.in_words(""));
        }
    }

    /// How long the process has run.
    #[must_use]
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// From now on the ways to the backends are seen here.
    pub fn follow(&self, ways: Ways) {
        // There is one daemon in a process, and it says so once.
        drop(self.ways.set(ways));
    }

    /// The newest ways to the backends, once they are followed.
    #[must_use]
    pub fn ways(&self) -> Option<Arc<glb_host::next_hop::Snapshot>> {
        self.ways.get().map(|ways| Arc::clone(&ways.borrow()))
    }

    /// A generation has just been swapped in, after its self-test. The first one makes the daemon
    /// ready.
    pub fn in_force(&self, generation: u64, tables: Arc<TableSet>) {
        self.change(|snapshot| {
            snapshot.phase = Phase::Running;
            let (since, digest, rows) = (When::now(), tables.digest(), Arc::default());
            snapshot.in_force = Some(InForce { generation, tables, digest, since, rows });
        });
        self.say("");
    }

    /// A reload begins.
    pub fn reloading(&self) {
        self.change(|snapshot| snapshot.phase = Phase::Reloading);
        systemd::reloading("a table is loaded anew");
    }

    /// A reload has ended, well or not. If a generation came into force by it, that has been said
    /// before.
    pub fn reloaded(&self, took: Duration, result: Result<Done, String>) {
        let failed = result.is_err();
        self.change(|snapshot| {
            snapshot.phase = Phase::Running;
            match &result {
                Ok(done) => {
                    snapshot.reloads += 1;
                    snapshot.unsafe_changes += u64::from(!done.warning.is_empty());
                }
                Err(_) => snapshot.failed_reloads += 1,
            }
            let (error, done) = (result.as_ref().err().cloned(), result.ok());
            snapshot.last_reload = Some(Reload { at: When::now(), took, error, done });
        });
        self.say(if failed { "; the last reload failed" } else { "" });
    }

    fn say(&self, after: &str) {
        systemd::ready(&self.in_words(after));
    }

    fn in_words(&self, after: &str) -> String {
        let snapshot = self.snapshot();
        let number = snapshot.in_force.as_ref().map_or(0, |running| running.generation);
        let announced = self.announcements().summary();
        let separator = if announced.is_empty() { "" } else { "; " };
        format!("generation {number} is in force{after}{separator}{announced}")
    }

    /// The table file was not taken at the start: what a predecessor left running stays.
    pub fn not_taken(&self, error: String) {
        self.change(|snapshot| {
            snapshot.failed_reloads += 1;
            let (at, took) = (When::now(), Duration::ZERO);
            snapshot.last_reload = Some(Reload { at, took, error: Some(error), done: None });
        });
    }

    /// A change that can break flows was made.
    pub fn took_a_risk(&self) {
        self.change(|snapshot| snapshot.unsafe_changes += 1);
    }

    /// There was nothing to reload.
    pub fn nothing_to_do(&self) {
        self.change(|snapshot| snapshot.phase = Phase::Running);
        self.say("");
    }

    /// A change was refused because it could break flows; that it failed is said beside.
    pub fn refused(&self) {
        self.change(|snapshot| snapshot.refused_changes += 1);
    }

    /// Somebody has removed pins, and they cannot be made again for this reason; or all is pinned.
    pub fn pins(&self, problem: Option<String>) {
        self.change(|snapshot| snapshot.pins_problem = problem);
    }

    /// The daemon ends.
    pub fn ending(&self) {
        self.change(|snapshot| snapshot.phase = Phase::Ending);
        systemd::stopping();
    }

    fn change(&self, change: impl FnOnce(&mut Snapshot)) {
        self.snapshot.send_modify(|snapshot| change(Arc::make_mut(snapshot)));
    }
}
