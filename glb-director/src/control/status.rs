//! The answer to `status`.

use serde::{Deserialize, Serialize};

use crate::{
    announce::AnnounceView,
    daemon::Done,
    daemon_status::Phase,
    views::{InterfaceView, Observer},
};

/// How the daemon is. Fields are added, never renamed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's release.
    pub release: String,
    /// Its process.
    pub pid: u32,
    /// How long it has run, in seconds.
    pub uptime_seconds: f64,
    /// What it is doing.
    pub phase: Phase,
    /// What is not as it should be; empty if all is well.
    pub problems: Vec<Problem>,
    /// The interfaces that it is to be attached to.
    pub interfaces: Vec<InterfaceView>,
    /// Number of the generation in force.
    pub generation: Option<u64>,
    /// Since when, in seconds since the epoch.
    pub generation_since: Option<f64>,
    /// For how many seconds, however the calendar was set meanwhile.
    #[serde(default)]
    pub generation_age_seconds: Option<f64>,
    /// Digest of what must be equal on all directors of a fleet.
    pub membership_digest: Option<String>,
    /// Digest of states and health.
    pub order_digest: Option<String>,
    /// Reloads that went well.
    pub reloads: u64,
    /// Reloads that failed.
    pub failed_reloads: u64,
    /// The last reload.
    pub last_reload: Option<LastReload>,
    /// What is announced, and how far a drain is.
    #[serde(default)]
    pub announce: AnnounceView,
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
    /// Why it failed, if it did.
    pub error: Option<String>,
    /// What it did, if it did not.
    #[serde(default)]
    pub done: Option<Done>,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// For programs; never renamed.
    pub name: String,
    /// For people.
    pub message: String,
}

impl Status {
    /// What `observer` sees now.
    #[must_use]
    pub fn of(observer: &Observer) -> Self {
        let snapshot = observer.snapshot();
        let mut problems = Vec::new();
        let mut problem = |name: &str, message: String| {
            problems.push(Problem { name: name.to_owned(), message });
        };
        if snapshot.in_force.is_none() {
            problem("not_ready", "no generation of this process is in force yet".into());
        }
        if let Some(error) = snapshot.last_reload.as_ref().and_then(|reload| reload.error.as_ref())
        {
            problem("reload_failed", format!("the last reload failed: {error}"));
        }
        if let Some(error) = &snapshot.pins_problem {
            let text = format!(
                "somebody has removed pins, and they cannot be made again; what runs ends with this \
                 process: {error}"
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
        let ways = observer.state().ways().unwrap_or_default();
        for table in in_force.iter().flat_map(|in_force| &in_force.tables.tables) {
            let name = &table.name;
            if !table.backends.iter().any(|backend| backend.takes_new()) {
                problem("no_backend", format!("table {name}: no backend takes new connections"));
            }
            for backend in table.backends.iter().filter(|backend| backend.is_usable()) {
                if let Some(Err(why)) = ways.get(&backend.address) {
                    let address = backend.address;
                    problem("no_way", format!("table {name}: no way to {address}: {why}"));
                }
            }
        }
        let announce = AnnounceView::clone(&observer.state().announcements());
        for one in &announce.announcements {
            if !one.error.is_empty() {
                problem("announcement_failed", format!("announcement {}: {}", one.name, one.error));
            } else if !one.reason.is_empty() && announce.drain.is_none() {
                problem("not_announced", format!("announcement {}: {}", one.name, one.reason));
            }
        }
        Self {
            announce,
            release: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: observer.state().uptime().as_secs_f64(),
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
                done: reload.done.clone(),
            }),
        }
    }
}
