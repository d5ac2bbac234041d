//! The daemon's status report: what `glb-director status` shows and what counts as a problem.

use serde::{Deserialize, Serialize};

use crate::{
    announce::AnnounceView,
    model::{Phase, Problem, ReloadOutcome},
    probe_results::{ProbeResult, ProberState},
    views::{InterfaceView, Observer},
};

/// The status of a running daemon. Releases add fields and never rename them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's release.
    pub release: String,
    /// Its process id.
    pub pid: u32,
    /// How long it has run, in seconds.
    pub uptime_seconds: f64,
    /// What the daemon is doing.
    pub phase: Phase,
    /// What an operator should mend; empty if all is well.
    pub problems: Vec<Problem>,
    /// The configured interfaces.
    pub interfaces: Vec<InterfaceView>,
    /// Number of the active generation.
    pub generation: Option<u64>,
    /// When it was activated, in seconds since the epoch.
    pub generation_since: Option<f64>,
    /// How many seconds ago it was activated, by the monotonic clock.
    #[serde(default)]
    pub generation_age_seconds: Option<f64>,
    /// Digest of everything that must be equal on all directors of a fleet.
    pub membership_digest: Option<String>,
    /// Digest of the backends' states and health.
    pub order_digest: Option<String>,
    /// Number of successful reloads.
    pub reloads: u64,
    /// Number of failed reloads.
    pub failed_reloads: u64,
    /// The last reload.
    pub last_reload: Option<LastReload>,
    /// The announcements, and the progress of a drain.
    #[serde(default)]
    pub announce: AnnounceView,
    /// Whether the prober works.
    #[serde(default)]
    pub prober: ProberState,
    /// The prober's results.
    #[serde(default)]
    pub probes: Vec<ProbeResult>,
}

/// The last reload.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LastReload {
    /// When it ended, in seconds since the epoch.
    pub at: f64,
    /// How many seconds ago.
    #[serde(default)]
    pub age_seconds: f64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// The error, if it failed.
    pub error: Option<String>,
    /// The outcome, if it succeeded.
    #[serde(default)]
    pub outcome: Option<ReloadOutcome>,
}

impl Status {
    /// Takes the status of the observed daemon.
    #[must_use]
    pub fn of(observer: &Observer) -> Self {
        let snapshot = observer.snapshot();
        let mut problems = Vec::new();
        let mut problem = |name: &str, message: String| {
            problems.push(Problem::new(name, message));
        };
        if snapshot.in_force.is_none() {
            problem(
                "not_ready",
                "the daemon has not activated a generation yet; its log says what it waits for"
                    .into(),
            );
        }
        if let Some(error) = snapshot.last_reload.as_ref().and_then(|reload| reload.error.as_ref())
        {
            problem("reload_failed", format!("the last reload failed: {error}"));
        }
        if let Some(error) = &snapshot.pins_problem {
            let text = format!(
                "pins of this director were removed and cannot be made again, so that forwarding ends \
                 with this process: {error}"
            );
            problem("pins_lost", text);
        }
        let in_force = snapshot.in_force.as_ref();
        let digest = in_force.map(|in_force| in_force.digest);
        let interfaces = observer.interfaces();
        if in_force.is_some() {
            for interface in &interfaces {
                if let Some(what) = &interface.problem {
                    problem("not_attached", format!("interface {}: {what}", interface.name));
                }
            }
        }
        let next_hops = observer.status().next_hops().unwrap_or_default();
        for table in in_force.iter().flat_map(|in_force| &in_force.tables.tables) {
            let name = &table.name;
            if !table.backends.iter().any(|backend| backend.takes_new()) {
                let text = format!("table {name}: no backend is active and healthy");
                problem("no_backend", text);
            }
            for backend in table.backends.iter().filter(|backend| backend.is_usable()) {
                if let Some(Err(why)) = next_hops.get(&backend.address) {
                    let address = backend.address;
                    problem(
                        "no_next_hop",
                        format!("table {name}: no next hop to {address}: {why}"),
                    );
                }
            }
        }
        let announce = AnnounceView::clone(&observer.status().announcements());
        for one in &announce.announcements {
            if !one.error.is_empty() {
                problem("announcement_failed", format!("announcement {}: {}", one.name, one.error));
            } else if !one.reason.is_empty() && announce.drain.is_none() {
                problem("not_announced", format!("announcement {}: {}", one.name, one.reason));
            }
            if let Some(text) = one.session_problem() {
                problem("not_exported", text);
            }
        }
        let probes = observer.status().probes();
        problems.extend(probes.problems());
        Self {
            announce,
            prober: probes.state.clone(),
            probes: probes.results.clone(),
            release: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: observer.status().uptime().as_secs_f64(),
            phase: snapshot.phase,
            problems,
            interfaces,
            generation: in_force.map(|in_force| in_force.generation),
            generation_since: in_force.map(|in_force| in_force.since.epoch()),
            generation_age_seconds: in_force.map(|in_force| in_force.since.age()),
            membership_digest: digest.map(|digest| glb_table::hex(&digest.membership)),
            order_digest: digest.map(|digest| glb_table::hex(&digest.order)),
            reloads: snapshot.reloads,
            failed_reloads: snapshot.failed_reloads,
            last_reload: snapshot.last_reload.as_ref().map(|reload| LastReload {
                at: reload.at.epoch(),
                age_seconds: reload.at.age(),
                seconds: reload.took.as_secs_f64(),
                error: reload.error.clone(),
                outcome: reload.outcome.clone(),
            }),
        }
    }
}
