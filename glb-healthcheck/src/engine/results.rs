//! From judgements to what is written of each backend, and when.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use glb_table::{State, health_overlay::HealthResult};

use super::{Decision, Engine, Layout, Said};
use crate::{Moment, health_state::Standing, min_healthy};

impl Engine {
    /// What is to be written now, if anything.
    pub fn decide(&mut self, now: Moment) -> Option<Decision> {
        if self.dirty {
            self.dirty = false;
            self.plan(now);
        }
        if self.publish_at.is_none_or(|at| now < at) {
            return None;
        }
        self.publish_at = None;
        let said = self.say()?;
        let urgent = self.is_urgent(&said);
        self.submitted = Some(said.clone());
        self.last_submit = Some(now);
        let Said { findings, drains } = said;
        Some(Decision { source: Arc::clone(&self.current.source), findings, drains, urgent })
    }

    fn plan(&mut self, now: Moment) {
        let Some(said) = self.say() else { return };
        if self.submitted.as_ref() == Some(&said) {
            self.publish_at = None;
            return;
        }
        let earliest = self.last_submit.map_or(now, |last| now.max(last + self.options.gap));
        let at = if self.submitted.is_none() || self.is_urgent(&said) {
            earliest
        } else {
            earliest.max(now + self.options.settle)
        };
        self.publish_at = Some(self.publish_at.map_or(at, |planned| planned.min(at)));
    }

    /// Whether someone who took connections no longer can: that cannot wait.
    fn is_urgent(&self, said: &Said) -> bool {
        let Some(old) = &self.submitted else { return true };
        let takes = |finding: &HealthResult| {
            finding.healthy && matches!(finding.state, State::Active | State::Filling)
        };
        let mut pairs = old.findings.iter().flatten().zip(said.findings.iter().flatten());
        pairs.any(|(old, new)| takes(old) && !takes(new))
    }

    /// What is to be said of each backend; None before the first round is over.
    fn say(&self) -> Option<Said> {
        if !self.begun {
            return None;
        }
        let table = |(table, ids): (&glb_table::Table, &Vec<Vec<u64>>)| {
            let member = |ids: &Vec<u64>| self.member(ids);
            let mut members: Vec<min_healthy::Member> = ids.iter().map(member).collect();
            let state = |of: &glb_table::Backend, ids: &[u64]| match of.state {
                State::Active | State::Filling if self.wants_drain(ids) => State::Draining,
                state => state,
            };
            // The floor is about those who could take connections.
            let could = |index: &usize| {
                let state = state(&table.backends[*index], &ids[*index]);
                matches!(state, State::Active | State::Filling)
            };
            let counted: Vec<usize> = (0..members.len()).filter(could).collect();
            let of_floor: Vec<_> = counted.iter().map(|index| members[*index]).collect();
            let kept = min_healthy::keep(&of_floor, self.options.floor);
            for (index, healthy) in counted.into_iter().zip(kept) {
                members[index].up = healthy;
            }
            let pairs = table.backends.iter().zip(ids).zip(members);
            let finding =
                |((of, ids), member): ((&glb_table::Backend, &Vec<u64>), min_healthy::Member)| {
                    HealthResult { healthy: member.up, state: state(of, ids) }
                };
            pairs.map(finding).collect()
        };
        let Layout { source, backends } = &self.current;
        let tables = source.set.tables.iter().zip(backends);
        let pairs = tables.clone().flat_map(|(table, ids)| table.backends.iter().zip(ids));
        let drains = pairs.filter(|(_, ids)| self.wants_drain(ids)).map(|(of, _)| of.address);
        let drains: BTreeSet<IpAddr> = drains.collect();
        let findings = tables.map(table).collect();
        Some(Said { findings, drains: drains.into_iter().collect() })
    }

    /// All that is listed must pass; without any check a backend is taken for healthy.
    fn member(&self, ids: &[u64]) -> min_healthy::Member {
        let watched = ids.iter().filter_map(|id| self.targets.get(id));
        let down = watched.filter(|watched| watched.judge.standing() != Standing::Up);
        let since = down.map(|watched| watched.judge.since()).min();
        min_healthy::Member { up: since.is_none(), down_since: since.unwrap_or_default() }
    }

    fn wants_drain(&self, ids: &[u64]) -> bool {
        ids.iter().any(|id| self.targets.get(id).is_some_and(|watched| watched.drain))
    }
}
