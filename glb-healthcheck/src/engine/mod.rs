//! The engine: from probe results to the health that is written, and when. Pure: no clock, no
//! sockets, no files; the caller passes the time.
//!
//! - [`Engine::next_job`] returns the probes to send, [`Engine::record_result`] takes their results.
//! - `isolation` holds back failures until it is clear that this machine has connectivity.
//! - `reload` applies a new input table.
//! - `results` turns health states into the content of the output table.

mod history;
mod isolation;
mod reload;
mod results;

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use glb_table::{TableSet, health_overlay::HealthResult};

pub use history::{History, Mark};
pub use isolation::EngineEvent;
use isolation::Isolation;

use crate::{
    Moment,
    check::{Settings, Target},
    check_config::TargetsByTable,
    connectivity::ConnectivityTracker,
    health_state::{Health, HealthRules, HealthState},
    min_healthy::MinHealthy,
    probe::Outcome,
    schedule::Schedule,
};

/// Consecutive inconclusive probes that count as one failure: a check that never works must not keep
/// a backend healthy.
const INCONCLUSIVE_LIMIT: u32 = 5;

/// Options that apply to all targets.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Hold-down after the first failure.
    pub hold_down: Duration,
    /// Upper limit of the hold-down, which doubles with each flap.
    pub hold_down_max: Duration,
    /// A target that stays healthy for this long starts with the first hold-down again.
    pub flap_reset: Duration,
    /// How long a change that is not urgent waits for further changes.
    pub debounce: Duration,
    /// Shortest time between two writes, urgent ones included.
    pub min_write_interval: Duration,
    /// Failures of more than this percentage of all targets, or of a whole table, are a mass failure.
    pub isolation_percent: u8,
    /// How many backends of each table stay healthy even if their checks fail.
    pub min_healthy: MinHealthy,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            hold_down: Duration::from_secs(5),
            hold_down_max: Duration::from_secs(300),
            flap_reset: Duration::from_secs(600),
            debounce: Duration::from_secs(1),
            min_write_interval: Duration::from_millis(250),
            isolation_percent: 50,
            min_healthy: MinHealthy::None,
        }
    }
}

/// The output of an earlier process, from which this one continues.
#[derive(Clone, Debug, Default)]
pub struct PreviousOutput {
    /// Health and state by table and backend.
    pub health: HashMap<(String, IpAddr), HealthResult>,
    /// Backends whose agents asked for draining.
    pub drains: HashSet<IpAddr>,
}

/// An input table with its checks.
#[derive(Debug)]
pub struct InputTable {
    /// The file.
    pub path: PathBuf,
    /// The file's text.
    pub text: String,
    /// The parsed tables.
    pub set: TableSet,
    /// The targets of each backend.
    pub targets: TargetsByTable,
}

impl InputTable {
    /// How many backends have no check.
    #[must_use]
    pub fn unchecked_backends(&self) -> usize {
        self.targets.iter().flatten().filter(|targets| targets.is_empty()).count()
    }
}

/// A probe to send now.
#[derive(Clone, Debug)]
pub struct ProbeJob {
    /// The id to pass to [`Engine::record_result`].
    pub id: u64,
    /// The target to probe.
    pub target: Arc<Target>,
}

/// New content for the output table.
#[derive(Clone, Debug)]
pub struct TableUpdate {
    /// The input table that the health belong to.
    pub input: Arc<InputTable>,
    /// Health and state of each backend of each table.
    pub health: Vec<Vec<HealthResult>>,
    /// Sorted addresses of the backends whose agents ask for draining.
    pub drains: Vec<IpAddr>,
    /// True if a backend stops receiving connections.
    pub urgent: bool,
}

/// A change of a target's health.
#[derive(Debug)]
pub struct Transition {
    /// The target.
    pub target: Arc<Target>,
    /// The previous health.
    pub from: Health,
    /// The new health.
    pub to: Health,
    /// How long the previous health lasted.
    pub after: Duration,
    /// The error, if a failure caused the change.
    pub reason: Option<String>,
    /// When the hold-down ends.
    pub held_until: Moment,
}

/// A target with its health state and statistics.
#[derive(Clone, Debug)]
pub struct MonitoredTarget {
    /// The target.
    pub target: Arc<Target>,
    /// Its health state.
    pub health_state: HealthState,
    /// Its last results.
    pub history: History,
    /// Error of the last probe that did not pass.
    pub last_error: Option<String>,
    /// Duration of the last probe.
    pub last_latency: Option<Duration>,
    /// True if the last conclusive probe failed.
    failing: bool,
    /// True if [`INCONCLUSIVE_LIMIT`] probes in a row were inconclusive: this machine cannot do the
    /// check.
    cannot_probe: bool,
    /// True if the backend's agent asks for draining.
    pub drain: bool,
    /// The weight in percent that the backend's agent reports.
    pub weight: Option<u16>,
    /// Results so far.
    pub results: u64,
    /// Results so far that are not passes.
    pub failures: u64,
    /// True if this process has a result that counts.
    has_result: bool,
    probes: u64,
    inconclusive: u32,
}

impl MonitoredTarget {
    /// Returns whether the last conclusive probe failed.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.failing
    }
}

/// A backend with its targets, for status and metrics.
#[derive(Debug)]
pub struct BackendView<'e> {
    /// The backend in the input table.
    pub backend: &'e glb_table::Backend,
    /// The health and state last submitted for writing.
    pub result: Option<HealthResult>,
    /// Its targets.
    pub checks: Vec<&'e MonitoredTarget>,
}

/// An input table and the ids of its targets.
#[derive(Debug)]
struct MonitoredInput {
    input: Arc<InputTable>,
    /// The target ids of each backend of each table.
    backends: Vec<Vec<Vec<u64>>>,
}

/// The content of the output table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct OutputContent {
    /// Health and state of each backend of each table.
    health: Vec<Vec<HealthResult>>,
    /// Sorted addresses of the backends whose agents ask for draining.
    drains: Vec<IpAddr>,
}

/// All targets, and the state that decides what is written when.
#[derive(Debug)]
pub struct Engine {
    options: EngineOptions,
    schedule: Schedule,
    targets: HashMap<u64, MonitoredTarget>,
    ids: HashMap<Arc<Target>, u64>,
    next_id: u64,
    /// The input in force: the output is written from it.
    current: MonitoredInput,
    /// A newer input, which comes into force when each of its targets has a result.
    pending_input: Option<MonitoredInput>,
    /// True if all targets of the first input have had a result.
    first_round_done: bool,
    /// Targets without a result.
    pending: HashSet<u64>,
    isolation: Isolation,
    /// True if something changed since the content was last computed.
    content_changed: bool,
    last_content: Option<OutputContent>,
    last_update_at: Option<Moment>,
    write_at: Option<Moment>,
}

impl Engine {
    /// Creates an engine that continues from `previous`.
    #[must_use]
    pub fn new(
        options: EngineOptions,
        input: Arc<InputTable>,
        previous: &PreviousOutput,
        connectivity: ConnectivityTracker,
        seed: u64,
        now: Moment,
    ) -> Self {
        let mut engine = Self {
            options,
            schedule: Schedule::new(seed),
            targets: HashMap::new(),
            ids: HashMap::new(),
            next_id: 0,
            current: MonitoredInput { input: Arc::clone(&input), backends: Vec::new() },
            pending_input: None,
            first_round_done: false,
            pending: HashSet::new(),
            isolation: Isolation::new(connectivity),
            content_changed: true,
            last_content: None,
            last_update_at: None,
            write_at: None,
        };
        engine.apply_input(input, previous, now);
        engine
    }

    /// Replaces the input. Unchanged targets keep their health. The new input comes into force when
    /// each new target has a result. Until then the old input stays in force with all its checks, so
    /// a new target that hangs does not delay the failure of another.
    pub fn reload(&mut self, input: Arc<InputTable>, now: Moment) {
        self.apply_input(input, &PreviousOutput::default(), now);
    }

    /// Replaces the options; they apply to the next results and writes.
    pub fn set_options(&mut self, options: EngineOptions) {
        self.options = options;
        self.content_changed = true;
    }

    /// Returns a probe that is due, and schedules the target's next one.
    pub fn next_job(&mut self, now: Moment) -> Option<ProbeJob> {
        while let Some((id, due)) = self.schedule.pop(now) {
            let Some(monitored) = self.targets.get_mut(&id) else { continue };
            let settings = &monitored.target.check.settings;
            if monitored.probes == 0 {
                self.schedule.schedule_second(id, settings, now);
            } else {
                self.schedule.schedule_next(id, settings, due, now);
                if Schedule::is_stale(settings, due, now) {
                    continue;
                }
            }
            monitored.probes += 1;
            return Some(ProbeJob { id, target: Arc::clone(&monitored.target) });
        }
        None
    }

    /// Records a probe's result. Results of removed targets are ignored.
    pub fn record_result(
        &mut self,
        id: u64,
        outcome: Outcome,
        latency: Duration,
        now: Moment,
    ) -> Option<Transition> {
        let monitored = self.targets.get_mut(&id)?;
        let settings = &monitored.target.check.settings;
        monitored.last_latency = Some(latency);
        monitored.results += 1;
        monitored.failures += u64::from(!matches!(outcome, Outcome::Pass(_)));
        let could_not_probe = monitored.cannot_probe;
        let passed = match outcome {
            Outcome::Pass(reply) => {
                monitored.inconclusive = 0;
                monitored.cannot_probe = false;
                monitored.history.push(Mark::Pass);
                monitored.weight = reply.weight;
                if let Some(drain) = reply.drain.filter(|drain| *drain != monitored.drain) {
                    monitored.drain = drain;
                    self.content_changed = true;
                }
                true
            }
            Outcome::Fail(failure) => {
                monitored.inconclusive = 0;
                monitored.cannot_probe = false;
                monitored.history.push(Mark::Fail);
                monitored.last_error = Some(failure.to_string());
                if monitored.health_state.health() == Health::Healthy {
                    self.schedule.schedule_after_failure(id, settings, latency, now);
                }
                false
            }
            Outcome::Inconclusive(failure) => {
                monitored.inconclusive += 1;
                monitored.history.push(Mark::Inconclusive);
                monitored.last_error = Some(failure.to_string());
                if monitored.inconclusive < INCONCLUSIVE_LIMIT {
                    if !self.isolation.is_active() {
                        self.schedule.schedule_retry(id, settings, now);
                    }
                    return None;
                }
                monitored.inconclusive = 0;
                monitored.cannot_probe = true;
                false
            }
        };
        monitored.failing = !passed;
        if could_not_probe && !monitored.cannot_probe {
            self.isolation.request_check();
        }
        if passed {
            self.isolation.remove_suspect(id);
            return self.apply_result(id, true, now);
        }
        if self.isolation.is_active() {
            // An isolated checker's failures say nothing about the target.
            monitored.health_state.reset_contrary();
            return None;
        }
        let rules = rules(&self.options, settings);
        let state = &monitored.health_state;
        if state.health() == Health::Unknown || state.is_last_chance(&rules) {
            // This failure makes the target unhealthy. It waits until connectivity is confirmed.
            self.isolation.add_suspect(id, now.saturating_sub(latency), now);
            return None;
        }
        self.apply_result(id, false, now)
    }

    /// Applies a result to the target's health state.
    fn apply_result(&mut self, id: u64, passed: bool, now: Moment) -> Option<Transition> {
        let monitored = self.targets.get_mut(&id)?;
        let is_first = !std::mem::replace(&mut monitored.has_result, true);
        let rules = rules(&self.options, &monitored.target.check.settings);
        let since = monitored.health_state.since();
        let from = monitored.health_state.record(&rules, passed, now);
        let transition = from.map(|from| Transition {
            target: Arc::clone(&monitored.target),
            from,
            to: monitored.health_state.health(),
            after: now.saturating_sub(since),
            reason: monitored.last_error.clone().filter(|_| !passed),
            held_until: monitored.health_state.held_until(),
        });
        self.content_changed |= is_first || transition.is_some();
        if is_first {
            self.pending.remove(&id);
            self.activate_pending_input();
        }
        transition
    }

    /// Returns when the engine needs the next call if no result comes before.
    pub fn next_wake(&mut self) -> Option<Moment> {
        let probe = self.schedule.next_due();
        [probe, self.write_at, self.isolation.next_check()].into_iter().flatten().min()
    }

    /// Returns each table of the latest input with its backends and the health last submitted for them.
    pub fn backends(&self) -> impl Iterator<Item = (&glb_table::Table, Vec<BackendView<'_>>)> {
        let mut submitted = HashMap::new();
        let tables = self
            .current
            .input
            .set
            .tables
            .iter()
            .zip(self.last_content.iter().flat_map(|content| &content.health));
        for (table, health) in tables {
            for (backend, result) in table.backends.iter().zip(health) {
                submitted.insert((table.name.as_str(), backend.address), *result);
            }
        }
        let MonitoredInput { input, backends } = self.latest_input();
        input.set.tables.iter().zip(backends).map(move |(table, ids)| {
            let views = table.backends.iter().zip(ids).map(|(backend, ids)| BackendView {
                backend,
                result: submitted.get(&(table.name.as_str(), backend.address)).copied(),
                checks: ids.iter().filter_map(|id| self.targets.get(id)).collect(),
            });
            (table, views.collect())
        })
    }

    /// The input that was loaded last, in force or not.
    fn latest_input(&self) -> &MonitoredInput {
        self.pending_input.as_ref().unwrap_or(&self.current)
    }

    /// The target ids of all tables: those in force and those of the pending input.
    fn tables(&self) -> impl Iterator<Item = &Vec<Vec<u64>>> + Clone {
        let pending = self.pending_input.iter().flat_map(|input| &input.backends);
        self.current.backends.iter().chain(pending)
    }

    /// Returns all targets in no particular order.
    pub fn targets(&self) -> impl Iterator<Item = &MonitoredTarget> {
        self.targets.values()
    }

    /// How many targets have no result yet.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// The input table that was loaded last.
    #[must_use]
    pub fn input(&self) -> &Arc<InputTable> {
        &self.latest_input().input
    }
}

fn rules(options: &EngineOptions, settings: &Settings) -> HealthRules {
    HealthRules {
        rise: settings.rise,
        fall: settings.fall,
        hold_down: options.hold_down,
        hold_down_max: options.hold_down_max,
        flap_reset: options.flap_reset,
    }
}

#[cfg(test)]
mod tests;
