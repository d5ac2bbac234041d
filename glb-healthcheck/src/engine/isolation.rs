//! Isolation of the checker itself: failures that make a target unhealthy wait here until it is
//! clear that this machine has connectivity.

use std::collections::HashMap;

use super::{Engine, Health, MonitoredTarget, Transition};
use crate::{
    Moment,
    connectivity::{ConnectivityTracker, ConnectivityVerdict},
};

/// A failure that waits for a connectivity verdict.
#[derive(Clone, Copy, Debug)]
struct Suspect {
    /// When its probe started; only connectivity probes that started later count.
    began: Moment,
    /// When it failed.
    failed: Moment,
}

/// The isolation state and the failures that wait.
#[derive(Debug)]
pub(super) struct Isolation {
    connectivity: ConnectivityTracker,
    suspects: HashMap<u64, Suspect>,
    /// When this checker became isolated; `None` if it is connected.
    since: Option<Moment>,
    /// How often it has been isolated.
    count: u64,
    /// True if something changed since the suspects were last checked.
    needs_check: bool,
    check_at: Option<Moment>,
}

impl Isolation {
    pub(super) fn new(connectivity: ConnectivityTracker) -> Self {
        Self {
            connectivity,
            suspects: HashMap::new(),
            since: None,
            count: 0,
            needs_check: false,
            check_at: None,
        }
    }

    pub(super) fn is_active(&self) -> bool {
        self.since.is_some()
    }

    pub(super) fn add_suspect(&mut self, id: u64, began: Moment, failed: Moment) {
        self.suspects.entry(id).or_insert(Suspect { began, failed });
        self.needs_check = true;
    }

    pub(super) fn remove_suspect(&mut self, id: u64) {
        self.suspects.remove(&id);
    }

    pub(super) fn request_check(&mut self) {
        self.needs_check = true;
    }

    pub(super) fn next_check(&self) -> Option<Moment> {
        self.check_at
    }
}

/// A result of [`Engine::check_suspects`].
#[derive(Debug)]
pub enum EngineEvent {
    /// A waiting failure was applied and changed a target's health.
    Transition(Transition),
    /// This checker became isolated: all health states stay as they are.
    Isolated {
        /// Targets that fail.
        failing: usize,
        /// All targets.
        targets: usize,
        /// True if the reason is that this machine cannot do the checks of most backends.
        cannot_probe: bool,
    },
    /// This checker is connected again.
    Connected {
        /// When it became isolated.
        since: Moment,
    },
}

impl Engine {
    /// Records the result of a connectivity target's probe.
    pub fn record_connectivity(&mut self, index: usize, passed: bool, started: Moment) {
        self.isolation.connectivity.record(index, passed, started);
        self.isolation.needs_check = true;
    }

    /// Returns how often this checker has been isolated, and whether it is now.
    #[must_use]
    pub fn isolation(&self) -> (u64, bool) {
        (self.isolation.count, self.isolation.is_active())
    }

    /// Returns whether each connectivity target replied to its last probe.
    pub fn connectivity(&self) -> impl Iterator<Item = bool> {
        self.isolation.connectivity.passing()
    }

    /// Applies or discards waiting failures as far as connectivity allows a decision.
    pub fn check_suspects(&mut self, now: Moment) -> Vec<EngineEvent> {
        let mut events = Vec::new();
        let due = self.isolation.check_at.is_some_and(|at| at <= now);
        if !self.isolation.needs_check && !due {
            return events;
        }
        self.isolation.needs_check = false;
        self.isolation.check_at = None;
        if let Some(since) = self.isolation.since {
            let verdict = self.isolation.connectivity.verdict(since);
            let connected =
                matches!(verdict, ConnectivityVerdict::Connected | ConnectivityVerdict::NoTargets);
            if !self.most_cannot_be_probed() && (connected || !self.is_mass_failure(None)) {
                self.isolation.since = None;
                self.reset_failure_counts();
                events.push(EngineEvent::Connected { since });
            }
            return events;
        }
        let mut confirmed = Vec::new();
        let suspects: Vec<_> = self.isolation.suspects.iter().map(|(id, of)| (*id, *of)).collect();
        for (id, suspect) in suspects {
            let verdict = self.isolation.connectivity.verdict(suspect.began);
            // A check that this machine cannot do says nothing about the backend, even with connectivity.
            let cannot_probe = self.targets.get(&id).is_some_and(|of: &MonitoredTarget| {
                of.cannot_probe && of.health_state.health() == Health::Healthy
            });
            let is_isolated = (cannot_probe && self.most_cannot_be_probed())
                || (verdict == ConnectivityVerdict::Isolated && self.is_mass_failure(Some(id)));
            match if cannot_probe { ConnectivityVerdict::Isolated } else { verdict } {
                ConnectivityVerdict::Connected | ConnectivityVerdict::NoTargets => {
                    confirmed.push(id);
                }
                ConnectivityVerdict::Undecided => {}
                ConnectivityVerdict::Isolated if is_isolated => {
                    self.enter_isolation(now, &mut events);
                    return events;
                }
                ConnectivityVerdict::Isolated => {
                    // Within one interval all other targets are probed again. That shows whether this
                    // is a mass failure or one of this target alone.
                    let settings = self.targets.get(&id).map(|of| &of.target.check.settings);
                    let wait = settings.map(|of| of.interval + of.timeout).unwrap_or_default();
                    let until = suspect.failed + wait;
                    if now >= until {
                        confirmed.push(id);
                    } else {
                        let at = self.isolation.check_at.map_or(until, |at| at.min(until));
                        self.isolation.check_at = Some(at);
                    }
                }
            }
        }
        // Sorted for a stable order of log lines.
        confirmed.sort_unstable();
        for id in confirmed {
            self.isolation.suspects.remove(&id);
            events.extend(self.apply_result(id, false, now).map(EngineEvent::Transition));
        }
        events
    }

    fn enter_isolation(&mut self, now: Moment, events: &mut Vec<EngineEvent>) {
        events.push(EngineEvent::Isolated {
            failing: self.targets.values().filter(|of| of.failing).count(),
            targets: self.targets.len(),
            cannot_probe: self.most_cannot_be_probed(),
        });
        self.isolation.since = Some(now);
        self.isolation.count += 1;
        self.isolation.suspects.clear();
        self.reset_failure_counts();
    }

    /// Discards failures that were counted before the isolation was recognized.
    fn reset_failure_counts(&mut self) {
        for monitored in self.targets.values_mut() {
            if monitored.health_state.health() == Health::Healthy {
                monitored.health_state.reset_contrary();
            }
        }
    }

    /// Returns whether this machine cannot do some check of more than `isolation_percent` of all backends.
    fn most_cannot_be_probed(&self) -> bool {
        let cannot_probe = |id: &u64| self.targets.get(id).is_some_and(|of| of.cannot_probe);
        let backends = self.tables().flatten();
        let count = backends.clone().filter(|ids| ids.iter().any(cannot_probe)).count();
        self.exceeds_isolation_percent(count, backends.count())
    }

    fn exceeds_isolation_percent(&self, part: usize, all: usize) -> bool {
        part * 100 > all * usize::from(self.options.isolation_percent)
    }

    /// Returns whether more than `isolation_percent` of all targets fail, or all targets of one table. With
    /// `id`, only tables with this target count.
    fn is_mass_failure(&self, id: Option<u64>) -> bool {
        let failing = self.targets.values().filter(|of| of.failing).count();
        if self.exceeds_isolation_percent(failing, self.targets.len()) {
            return true;
        }
        self.tables().any(|table| {
            let ids = || table.iter().flatten();
            id.is_none_or(|id| ids().any(|other| *other == id))
                && ids().next().is_some()
                && ids().all(|id| self.targets.get(id).is_some_and(|of| of.failing))
        })
    }
}
