//! What the checker knows, as it is told to people and programs.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    Moment,
    engine::{Engine, Watched},
    health_state::Standing,
    publish::Record,
};

/// All that is known.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Snapshot {
    /// Seconds since the start.
    pub uptime_s: f64,
    /// Targets without a result.
    pub pending: usize,
    /// Whether this checker is cut off.
    pub cut_off: bool,
    /// How often it was.
    pub cut_offs: u64,
    /// Control targets, and whether each answered last.
    pub controls: Vec<(String, bool)>,
    /// Times that the checked table was written.
    pub writes: u64,
    /// Times that it could not be.
    pub write_failures: u64,
    /// Times that the reload command did its work.
    pub reloads: u64,
    /// Times that it did not.
    pub reload_failures: u64,
    /// Seconds since 1970 of the last write.
    pub last_write: Option<f64>,
    /// What stands in the way of publishing.
    pub trouble: Option<String>,
    /// The tables.
    pub tables: Vec<TableView>,
}

/// A table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TableView {
    /// Its name.
    pub name: String,
    /// Its backends.
    pub backends: Vec<BackendView>,
}

/// A backend.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BackendView {
    /// Its address.
    pub address: String,
    /// Its state as written.
    pub state: String,
    /// What was last written of it.
    pub healthy: Option<bool>,
    /// Whether that is so although a check fails: because of `min_healthy`, or because this checker
    /// is cut off.
    pub fail_open: bool,
    /// Its checks.
    pub checks: Vec<CheckView>,
}

/// A check of a backend.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CheckView {
    /// What is asked.
    pub check: String,
    /// `up`, `down` or `unknown`.
    pub standing: String,
    /// For how long, in seconds.
    pub since_s: f64,
    /// How much longer it is held down, in seconds.
    pub held_s: f64,
    /// The last probe's time.
    pub latency_ms: Option<f64>,
    /// Probes that have come to a result since it is watched.
    pub probes: u64,
    /// How many of them did not pass.
    pub failures: u64,
    /// The last results: `.` passed, `X` failed, `?` said nothing; the last one at the right.
    pub history: String,
    /// Why it last did not pass.
    pub last_error: Option<String>,
    /// Changes between up and down.
    pub transitions: u64,
    /// Failures soon after a return.
    pub flaps: u64,
    /// Whether its agent wants no new connections.
    pub drain: bool,
    /// Percent of its weight, as its agent says.
    pub weight: Option<u16>,
}

impl Snapshot {
    /// What is known now.
    #[must_use]
    pub fn take(engine: &Engine, record: &Record, controls: &[String], now: Moment) -> Self {
        let (cut_offs, cut_off) = engine.cut_off();
        let check = |watched: &Watched| CheckView {
            check: watched.target.check.kind.to_string(),
            standing: format!("{:?}", watched.judge.standing()).to_lowercase(),
            since_s: rounded(now.saturating_sub(watched.judge.since())),
            held_s: rounded(watched.judge.held_until().saturating_sub(now)),
            latency_ms: watched.last_latency.map(|time| (time.as_secs_f64() * 1e5).round() / 100.0),
            probes: watched.results,
            failures: watched.failures,
            history: watched.history.to_string(),
            last_error: watched.last_error.clone(),
            transitions: watched.judge.transitions(),
            flaps: watched.judge.flaps(),
            drain: watched.drain,
            weight: watched.weight,
        };
        let fails = |watched: &Watched| {
            watched.judge.standing() == Standing::Down || (cut_off && watched.is_failing())
        };
        let tables = engine.backends().map(|(table, backends)| TableView {
            name: table.name.clone(),
            backends: backends
                .into_iter()
                .map(|seen| BackendView {
                    address: seen.backend.address.to_string(),
                    state: seen
                        .finding
                        .map_or(seen.backend.state, |finding| finding.state)
                        .to_string(),
                    healthy: seen.finding.map(|finding| finding.healthy),
                    fail_open: seen.finding.is_some_and(|finding| finding.healthy)
                        && seen.checks.iter().any(|watched| fails(watched)),
                    checks: seen.checks.into_iter().map(check).collect(),
                })
                .collect(),
        });
        let since_1970 = |time: std::time::SystemTime| {
            time.duration_since(std::time::UNIX_EPOCH).map(rounded).unwrap_or_default()
        };
        Self {
            uptime_s: rounded(now),
            pending: engine.pending(),
            cut_off,
            cut_offs,
            controls: controls.iter().cloned().zip(engine.controls()).collect(),
            writes: record.writes,
            write_failures: record.write_failures,
            reloads: record.reloads,
            reload_failures: record.reload_failures,
            last_write: record.last_write.map(since_1970),
            trouble: record.trouble().map(str::to_owned),
            tables: tables.collect(),
        }
    }
}

fn rounded(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}
