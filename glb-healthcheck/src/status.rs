//! The status that the control socket and the HTTP server report.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    Moment,
    engine::{BackendView, Engine, MonitoredTarget},
    health_state::Health,
    publish::PublishRecord,
};

/// The state of the checker at one moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Snapshot {
    /// Seconds since the start.
    pub uptime_s: f64,
    /// Targets without a result.
    pub pending: usize,
    /// True if this checker is isolated now.
    pub isolated: bool,
    /// How often it has been isolated.
    pub isolations: u64,
    /// Connectivity targets, and whether each replied to its last probe.
    pub connectivity: Vec<(String, bool)>,
    /// Successful writes of the output.
    pub writes: u64,
    /// Failed writes of the output.
    pub write_failures: u64,
    /// Changes of the output by other programs, which were overwritten.
    pub foreign_changes: u64,
    /// Saved versions of the output that other programs wrote.
    pub foreign_versions: Vec<PathBuf>,
    /// The input table.
    pub input: PathBuf,
    /// Successful reload requests to the director.
    pub reloads: u64,
    /// Failed reload requests to the director.
    pub reload_failures: u64,
    /// Time of the last write, in seconds since 1970.
    pub last_write: Option<f64>,
    /// The error that prevents publishing now.
    pub problem: Option<String>,
    /// The tables.
    pub tables: Vec<TableStatus>,
}

/// The status of a table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TableStatus {
    /// The table's name.
    pub name: String,
    /// Its backends.
    pub backends: Vec<BackendStatus>,
}

/// The status of a backend.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BackendStatus {
    /// The backend's address.
    pub address: String,
    /// The state in the output.
    pub state: String,
    /// The health in the output; `None` before the first write.
    pub healthy: Option<bool>,
    /// True if it is written as healthy although a check fails: because of `min_healthy`, or because
    /// this checker is isolated.
    pub fail_open: bool,
    /// Its checks.
    pub checks: Vec<CheckStatus>,
}

/// The status of a backend's check.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CheckStatus {
    /// The check's kind and parameters.
    pub check: String,
    /// The check's health.
    pub health: Health,
    /// Seconds since the health changed.
    pub since_s: f64,
    /// Seconds until the hold-down ends.
    pub held_s: f64,
    /// Duration of the last probe.
    pub latency_ms: Option<f64>,
    /// Results so far.
    pub probes: u64,
    /// Results so far that are not passes.
    pub failures: u64,
    /// The last results, the newest at the right: `.` passed, `X` failed, `?` inconclusive.
    pub history: String,
    /// Error of the last probe that did not pass.
    pub last_error: Option<String>,
    /// Changes between healthy and unhealthy.
    pub transitions: u64,
    /// Failures soon after a return to healthy.
    pub flaps: u64,
    /// True if the backend's agent asks for draining.
    pub drain: bool,
    /// The weight in percent that the agent reports.
    pub weight: Option<u16>,
}

impl Snapshot {
    /// Takes a snapshot.
    #[must_use]
    pub fn take(
        engine: &Engine,
        record: &PublishRecord,
        connectivity: &[String],
        foreign_versions: Vec<PathBuf>,
        now: Moment,
    ) -> Self {
        let (isolations, isolated) = engine.isolation();
        let tables = engine.backends().map(|(table, backends)| TableStatus {
            name: table.name.clone(),
            backends: backends.iter().map(|view| backend(view, isolated, now)).collect(),
        });
        let since_1970 = |time: std::time::SystemTime| {
            time.duration_since(std::time::UNIX_EPOCH).map(seconds).unwrap_or_default()
        };
        Self {
            uptime_s: seconds(now),
            pending: engine.pending(),
            isolated,
            isolations,
            connectivity: connectivity.iter().cloned().zip(engine.connectivity()).collect(),
            writes: record.writes,
            write_failures: record.write_failures,
            foreign_changes: record.foreign_changes,
            foreign_versions,
            input: engine.input().path.clone(),
            reloads: record.reloads,
            reload_failures: record.reload_failures,
            last_write: record.last_write.map(since_1970),
            problem: record.problem().map(str::to_owned),
            tables: tables.collect(),
        }
    }

    /// Returns whether nothing needs the operator's attention.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        !self.isolated && self.problem.is_none() && self.foreign_versions.is_empty()
    }
}

fn backend(view: &BackendView<'_>, isolated: bool, now: Moment) -> BackendStatus {
    let fails = |of: &&MonitoredTarget| {
        of.health_state.health() == Health::Unhealthy || (isolated && of.is_failing())
    };
    let state = view.result.map_or(view.backend.state, |result| result.state);
    BackendStatus {
        address: view.backend.address.to_string(),
        state: state.to_string(),
        healthy: view.result.map(|result| result.healthy),
        fail_open: view.result.is_some_and(|result| result.healthy)
            && view.checks.iter().any(fails),
        checks: view.checks.iter().map(|monitored| check(monitored, now)).collect(),
    }
}

fn check(monitored: &MonitoredTarget, now: Moment) -> CheckStatus {
    let state = &monitored.health_state;
    CheckStatus {
        check: monitored.target.check.kind.to_string(),
        health: state.health(),
        since_s: seconds(now.saturating_sub(state.since())),
        held_s: seconds(state.held_until().saturating_sub(now)),
        latency_ms: monitored.last_latency.map(|time| (time.as_secs_f64() * 1e5).round() / 100.0),
        probes: monitored.results,
        failures: monitored.failures,
        history: monitored.history.to_string(),
        last_error: monitored.last_error.clone(),
        transitions: state.transitions(),
        flaps: state.flaps(),
        drain: monitored.drain,
        weight: monitored.weight,
    }
}

/// Seconds with three decimals.
fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}
