//! The content of the output table, and when it is written.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use glb_table::{State, health_overlay::HealthResult};

use super::{Engine, MonitoredInput, OutputContent, TableUpdate};
use crate::{
    Moment,
    health_state::Health,
    min_healthy::{self, BackendHealth},
};

impl Engine {
    /// Returns the content to write now, if a write is due.
    pub fn next_update(&mut self, now: Moment) -> Option<TableUpdate> {
        if self.content_changed {
            self.content_changed = false;
            self.schedule_write(now);
        }
        if self.write_at.is_none_or(|at| now < at) {
            return None;
        }
        self.write_at = None;
        let content = self.output_content()?;
        let urgent = self.is_urgent(&content);
        self.last_content = Some(content.clone());
        self.last_update_at = Some(now);
        let OutputContent { health, drains } = content;
        Some(TableUpdate { input: Arc::clone(&self.current.input), health, drains, urgent })
    }

    fn schedule_write(&mut self, now: Moment) {
        let Some(content) = self.output_content() else { return };
        if self.last_content.as_ref() == Some(&content) {
            self.write_at = None;
            return;
        }
        let earliest = match self.last_update_at {
            Some(last) => now.max(last + self.options.min_write_interval),
            None => now,
        };
        let at = if self.last_content.is_none() || self.is_urgent(&content) {
            earliest
        } else {
            earliest.max(now + self.options.debounce)
        };
        self.write_at = Some(self.write_at.map_or(at, |scheduled| scheduled.min(at)));
    }

    /// Returns whether a backend stops receiving new connections. Such a change is not debounced.
    fn is_urgent(&self, content: &OutputContent) -> bool {
        let Some(old) = &self.last_content else { return true };
        let receives = |result: &HealthResult| {
            result.healthy && matches!(result.state, State::Active | State::Filling)
        };
        let mut pairs = old.health.iter().flatten().zip(content.health.iter().flatten());
        pairs.any(|(old, new)| receives(old) && !receives(new))
    }

    /// Computes the output's content; `None` before the first round is complete.
    fn output_content(&self) -> Option<OutputContent> {
        if !self.first_round_done {
            return None;
        }
        let MonitoredInput { input, backends } = &self.current;
        let tables = input.set.tables.iter().zip(backends);
        let pairs = tables.clone().flat_map(|(table, ids)| table.backends.iter().zip(ids));
        let drains = pairs.filter(|(_, ids)| self.agent_wants_drain(ids));
        let drains: BTreeSet<IpAddr> = drains.map(|(backend, _)| backend.address).collect();
        let health = tables.map(|(table, ids)| self.table_health(table, ids)).collect();
        Some(OutputContent { health, drains: drains.into_iter().collect() })
    }

    fn table_health(&self, table: &glb_table::Table, ids: &[Vec<u64>]) -> Vec<HealthResult> {
        let results = table.backends.iter().zip(ids).map(|(backend, ids)| HealthResult {
            healthy: self.backend_health(ids).healthy,
            state: match backend.state {
                State::Active | State::Filling if self.agent_wants_drain(ids) => State::Draining,
                state => state,
            },
        });
        let mut results: Vec<HealthResult> = results.collect();
        // `min_healthy` counts only backends that may receive new connections.
        let counted: Vec<usize> = (0..results.len())
            .filter(|index| matches!(results[*index].state, State::Active | State::Filling))
            .collect();
        let health: Vec<_> =
            counted.iter().map(|index| self.backend_health(&ids[*index])).collect();
        let healthy = min_healthy::select_healthy(&health, self.options.min_healthy);
        for (index, healthy) in counted.into_iter().zip(healthy) {
            results[index].healthy = healthy;
        }
        results
    }

    /// A backend is healthy if all its targets are; without targets it is healthy.
    fn backend_health(&self, ids: &[u64]) -> BackendHealth {
        let targets = ids.iter().filter_map(|id| self.targets.get(id));
        let failing = targets.filter(|of| of.health_state.health() != Health::Healthy);
        let since = failing.map(|of| of.health_state.since()).min();
        BackendHealth { healthy: since.is_none(), unhealthy_since: since.unwrap_or_default() }
    }

    fn agent_wants_drain(&self, ids: &[u64]) -> bool {
        ids.iter().any(|id| self.targets.get(id).is_some_and(|of| of.drain))
    }
}
