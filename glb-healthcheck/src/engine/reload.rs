//! Applying an input table: unchanged targets keep their health, new ones are probed from now on.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use glb_table::{State, health_overlay::HealthResult};

use super::{Engine, History, InputTable, MonitoredInput, MonitoredTarget, PreviousOutput};
use crate::{
    Moment,
    check::{CheckKind, Target},
    health_state::{Health, HealthState},
};

impl Engine {
    pub(super) fn apply_input(
        &mut self,
        input: Arc<InputTable>,
        previous: &PreviousOutput,
        now: Moment,
    ) {
        // A target whose settings alone changed continues under a new id.
        let identity = |target: &Target| (target.address, target.check.kind.clone());
        let old_ids: HashMap<_, _> =
            self.ids.iter().map(|(target, id)| (identity(target), *id)).collect();
        let mut kept = HashSet::new();
        let mut started = Vec::new();
        let mut successors = HashMap::new();
        let mut ids_by_table = Vec::with_capacity(input.targets.len());
        for (table, targets) in input.set.tables.iter().zip(&input.targets) {
            let mut ids_by_backend = Vec::with_capacity(targets.len());
            for (backend, targets) in table.backends.iter().zip(targets) {
                let result = previous.health.get(&(table.name.clone(), backend.address));
                let mut ids = Vec::with_capacity(targets.len());
                for target in targets {
                    let id = match self.ids.get(target) {
                        Some(id) => *id,
                        None => {
                            let old = old_ids.get(&identity(target)).copied();
                            let id = self.add_target(target.clone(), old, now);
                            successors.extend(old.map(|old| (old, id)));
                            started.push(id);
                            id
                        }
                    };
                    if let (Some(result), Some(monitored)) = (result, self.targets.get_mut(&id)) {
                        let drained = previous.drains.contains(&backend.address);
                        resume(monitored, backend, *result, drained, now);
                    }
                    kept.insert(id);
                    ids.push(id);
                }
                ids_by_backend.push(ids);
            }
            ids_by_table.push(ids_by_backend);
        }
        let loaded = MonitoredInput { input, backends: ids_by_table };
        if self.first_round_done {
            for id in self.current.backends.iter_mut().flatten().flatten() {
                if let Some(successor) = successors.get(id).filter(|_| !kept.contains(id)) {
                    *id = *successor;
                }
            }
            self.pending_input = Some(loaded);
        } else {
            // Nothing has been written that could stay in force.
            self.current = loaded;
        }
        self.remove_unused_targets();
        self.schedule.start(started, now);
        self.content_changed = true;
        self.activate_pending_input();
    }

    /// Brings the pending input into force if each of its targets has a result.
    pub(super) fn activate_pending_input(&mut self) {
        if !self.pending.is_empty() {
            return;
        }
        self.first_round_done = true;
        if let Some(input) = self.pending_input.take() {
            self.current = input;
            // Writes at once: the operator's change is not debounced.
            self.last_content = None;
            self.remove_unused_targets();
        }
    }

    /// Removes targets that no input refers to.
    fn remove_unused_targets(&mut self) {
        let used: HashSet<u64> = self.tables().flatten().flatten().copied().collect();
        let unused: Vec<u64> =
            self.targets.keys().filter(|id| !used.contains(id)).copied().collect();
        for id in unused {
            if let Some(monitored) = self.targets.remove(&id) {
                self.ids.remove(&monitored.target);
            }
            self.schedule.remove(id);
            self.pending.remove(&id);
            self.isolation.remove_suspect(id);
        }
    }

    /// Adds a target. With `old`, it takes over that target's health and statistics.
    fn add_target(&mut self, target: Target, old: Option<u64>, now: Moment) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let target = Arc::new(target);
        self.ids.insert(Arc::clone(&target), id);
        let mut monitored = MonitoredTarget {
            target,
            health_state: HealthState::new(now),
            history: History::default(),
            last_error: None,
            last_latency: None,
            failing: false,
            cannot_probe: false,
            drain: false,
            weight: None,
            results: 0,
            failures: 0,
            has_result: false,
            probes: 0,
            inconclusive: 0,
        };
        if let Some(old) = old.and_then(|id| self.targets.get(&id)) {
            let target = monitored.target;
            monitored = MonitoredTarget { target, probes: 0, inconclusive: 0, ..old.clone() };
            monitored.health_state.reset_contrary();
        }
        if !monitored.has_result {
            self.pending.insert(id);
        }
        self.targets.insert(id, monitored);
        id
    }
}

/// Continues a target from the earlier output's result, unless it has a result already.
fn resume(
    monitored: &mut MonitoredTarget,
    backend: &glb_table::Backend,
    result: HealthResult,
    drained_by_agent: bool,
    now: Moment,
) {
    if monitored.has_result {
        return;
    }
    // Two tables may have different health. The better one is kept: if it is wrong, `fall` results
    // correct it.
    if result.healthy || monitored.health_state.health() == Health::Unknown {
        monitored.health_state = HealthState::resume(result.healthy, now);
    }
    // An agent's drain lasts until its `ready`; an operator's lasts as long as the input has it.
    let is_agent = matches!(monitored.target.check.kind, CheckKind::Agent { .. });
    let was_drained =
        result.state == State::Draining && matches!(backend.state, State::Active | State::Filling);
    monitored.drain |= is_agent && was_drained && drained_by_agent;
}
