//! The daemon's status as one snapshot, shared between threads.
//!
//! The daemon's loop writes it. The control channel, the announcer and the metrics read it at any
//! time, also while the loop is busy with a reload.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use glb_host::{next_hop, systemd};
use glb_table::{Digest, Table, TableSet};
use tokio::sync::watch;

use crate::{
    announce::AnnounceView,
    model::{Phase, ReloadOutcome, Timestamp},
    probe_results::ProbeSnapshot,
};

/// A channel with the newest next hops of the backends.
pub type NextHopWatch = watch::Receiver<Arc<next_hop::Snapshot>>;

/// The last reload.
#[derive(Clone, Debug)]
pub struct Reload {
    /// When it ended.
    pub at: Timestamp,
    /// How long it took.
    pub took: Duration,
    /// The error, if it failed.
    pub error: Option<String>,
    /// The outcome, if it succeeded.
    pub outcome: Option<ReloadOutcome>,
}

/// The tables of the active generation.
#[derive(Clone, Debug)]
pub struct ActiveTables {
    /// Number of the generation.
    pub generation: u64,
    /// The tables.
    pub tables: Arc<TableSet>,
    /// Digests of all tables together.
    pub digest: Digest,
    /// When the generation was activated.
    pub since: Timestamp,
    /// Counted at the first request.
    rows: Arc<OnceLock<RowsByHop>>,
}

/// For each table and each of its backends, the number of rows in which the backend is hop 1, 2, ….
type RowsByHop = Vec<Vec<Vec<u32>>>;

impl ActiveTables {
    /// For each table and each of its backends, in their order: the number of rows in which the
    /// backend is hop 1, 2, ….
    #[must_use]
    pub fn rows_by_hop(&self) -> &[Vec<Vec<u32>>] {
        self.rows.get_or_init(|| self.tables.tables.iter().map(count_rows).collect())
    }
}

/// For each backend of `table`, the number of rows in which it is hop 1, 2, ….
fn count_rows(table: &Table) -> Vec<Vec<u32>> {
    let rows = table.rows();
    let mut counts = vec![vec![0; rows.hops]; table.backends.len()];
    for row in rows.iter() {
        for (hop, backend) in row.iter().enumerate() {
            if let Some(count) = counts.get_mut(usize::from(*backend)) {
                count[hop] += 1;
            }
        }
    }
    counts
}

/// The daemon's status at one moment.
#[derive(Clone, Debug, Default)]
pub struct StatusSnapshot {
    /// What the daemon is doing.
    pub phase: Phase,
    /// The active tables; none before the first activation.
    pub in_force: Option<ActiveTables>,
    /// Number of successful reloads.
    pub reloads: u64,
    /// Number of failed reloads; the active generation stayed.
    pub failed_reloads: u64,
    /// The last reload.
    pub last_reload: Option<Reload>,
    /// Number of changes that could break flows and were applied.
    pub unsafe_changes: u64,
    /// Number of changes that could break flows and were refused.
    pub refused_changes: u64,
    /// Why removed pins cannot be pinned again, if that is so.
    pub pins_problem: Option<String>,
}

/// The place where the daemon's loop publishes its status.
#[derive(Debug)]
pub struct DaemonStatus {
    started: Instant,
    snapshot: watch::Sender<Arc<StatusSnapshot>>,
    next_hops: OnceLock<NextHopWatch>,
    announcements: OnceLock<watch::Receiver<Arc<AnnounceView>>>,
    probes: OnceLock<watch::Receiver<Arc<ProbeSnapshot>>>,
}

impl Default for DaemonStatus {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            snapshot: watch::Sender::default(),
            next_hops: OnceLock::new(),
            announcements: OnceLock::new(),
            probes: OnceLock::new(),
        }
    }
}

impl DaemonStatus {
    /// The present status.
    #[must_use]
    pub fn snapshot(&self) -> Arc<StatusSnapshot> {
        Arc::clone(&self.snapshot.borrow())
    }

    /// A channel with the newest status.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<StatusSnapshot>> {
        self.snapshot.subscribe()
    }

    /// Follows the announcements through `view` from now on.
    pub fn follow_announcements(&self, view: watch::Receiver<Arc<AnnounceView>>) {
        // A process has one daemon, which calls this once.
        drop(self.announcements.set(view));
    }

    /// The announcements; none before they are followed.
    #[must_use]
    pub fn announcements(&self) -> Arc<AnnounceView> {
        self.announcements.get().map(|view| Arc::clone(&view.borrow())).unwrap_or_default()
    }

    /// Follows the prober's results from now on.
    pub fn follow_probes(&self, results: watch::Receiver<Arc<ProbeSnapshot>>) {
        // A process has one daemon, which calls this once.
        drop(self.probes.set(results));
    }

    /// The prober's results; none before they are followed.
    #[must_use]
    pub fn probes(&self) -> Arc<ProbeSnapshot> {
        self.probes.get().map(|results| Arc::clone(&results.borrow())).unwrap_or_default()
    }

    /// Tells systemd that the announcements have changed.
    pub fn announced(&self) {
        if self.snapshot().phase == Phase::Running {
            systemd::status(&self.summary(""));
        }
    }

    /// How long the process has run.
    #[must_use]
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Follows the next hops through `watch` from now on.
    pub fn follow_next_hops(&self, watch: NextHopWatch) {
        // A process has one daemon, which calls this once.
        drop(self.next_hops.set(watch));
    }

    /// The newest next hops; none before they are followed.
    #[must_use]
    pub fn next_hops(&self) -> Option<Arc<next_hop::Snapshot>> {
        self.next_hops.get().map(|watch| Arc::clone(&watch.borrow()))
    }

    /// Records that a generation was activated. The first one makes the daemon ready.
    pub fn activated(&self, generation: u64, tables: Arc<TableSet>) {
        self.change(|snapshot| {
            snapshot.phase = Phase::Running;
            let (since, digest, rows) = (Timestamp::now(), tables.digest(), Arc::default());
            snapshot.in_force = Some(ActiveTables { generation, tables, digest, since, rows });
        });
        self.notify_ready("");
    }

    /// Records that a reload has begun.
    pub fn reload_started(&self) {
        self.change(|snapshot| snapshot.phase = Phase::Reloading);
        systemd::reloading("the table is being reloaded");
    }

    /// Records the end of a reload. A new generation is recorded before, by [`Self::activated`].
    pub fn reload_finished(&self, took: Duration, result: Result<ReloadOutcome, String>) {
        let failed = result.is_err();
        self.change(|snapshot| {
            snapshot.phase = Phase::Running;
            match &result {
                Ok(outcome) => {
                    snapshot.reloads += 1;
                    snapshot.unsafe_changes += u64::from(!outcome.warning.is_empty());
                }
                Err(_) => snapshot.failed_reloads += 1,
            }
            let (error, outcome) = (result.as_ref().err().cloned(), result.ok());
            snapshot.last_reload = Some(Reload { at: Timestamp::now(), took, error, outcome });
        });
        self.notify_ready(if failed { "; the last reload failed" } else { "" });
    }

    /// Records that a reload found nothing to change.
    pub fn reload_skipped(&self) {
        self.change(|snapshot| snapshot.phase = Phase::Running);
        self.notify_ready("");
    }

    /// Records that the table was not loaded at the start, and an adopted generation stays active.
    pub fn start_without_table(&self, error: String) {
        self.change(|snapshot| {
            snapshot.failed_reloads += 1;
            let (at, took) = (Timestamp::now(), Duration::ZERO);
            snapshot.last_reload = Some(Reload { at, took, error: Some(error), outcome: None });
        });
    }

    /// Counts a change at the start that could break flows and was applied.
    pub fn count_unsafe_change(&self) {
        self.change(|snapshot| snapshot.unsafe_changes += 1);
    }

    /// Counts a change that could break flows and was refused. Its failed reload is recorded separately.
    pub fn count_refused_change(&self) {
        self.change(|snapshot| snapshot.refused_changes += 1);
    }

    /// Records why removed pins cannot be pinned again, or that everything is pinned.
    pub fn set_pins_problem(&self, problem: Option<String>) {
        self.change(|snapshot| snapshot.pins_problem = problem);
    }

    /// Records that the daemon is stopping.
    pub fn stopping(&self) {
        self.change(|snapshot| snapshot.phase = Phase::Ending);
        systemd::stopping();
    }

    fn notify_ready(&self, remark: &str) {
        systemd::ready(&self.summary(remark));
    }

    /// One line for systemd's status.
    fn summary(&self, remark: &str) -> String {
        let snapshot = self.snapshot();
        let number = snapshot.in_force.as_ref().map_or(0, |active| active.generation);
        let announced = self.announcements().summary();
        let separator = if announced.is_empty() { "" } else { "; " };
        format!("generation {number} is in force{remark}{separator}{announced}")
    }

    fn change(&self, change: impl FnOnce(&mut StatusSnapshot)) {
        self.snapshot.send_modify(|snapshot| change(Arc::make_mut(snapshot)));
    }
}
