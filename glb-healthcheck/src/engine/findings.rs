//! From judgements to what is written of each backend, and when.

use std::sync::Arc;

use glb_table::{State, checked::Finding};

use super::{Decision, Engine};
use crate::{Moment, floor, judge::Standing};

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
        let findings = self.findings()?;
        let urgent = self.is_urgent(&findings);
        self.submitted = Some(findings.clone());
        self.last_submit = Some(now);
        Some(Decision { source: Arc::clone(&self.source), findings, urgent })
    }

    fn plan(&mut self, now: Moment) {
        let Some(findings) = self.findings() else { return };
        if self.submitted.as_ref() == Some(&findings) {
            self.publish_at = None;
            return;
        }
        let earliest = self.last_submit.map_or(now, |last| now.max(last + self.options.gap));
        let at = if self.submitted.is_none() || self.is_urgent(&findings) {
            earliest
        } else {
            earliest.max(now + self.options.settle)
        };
        self.publish_at = Some(self.publish_at.map_or(at, |planned| planned.min(at)));
    }

    /// Whether someone who took connections no longer can: that cannot wait.
    fn is_urgent(&self, findings: &[Vec<Finding>]) -> bool {
        let Some(old) = &self.submitted else { return true };
        let takes = |finding: &Finding| {
            finding.healthy && matches!(finding.state, State::Active | State::Filling)
        };
        let pairs = old.iter().flatten().zip(findings.iter().flatten());
        pairs.into_iter().any(|(old, new)| takes(old) && !takes(new))
    }

    /// What is to be said of each backend; None while some target has no result yet.
    fn findings(&self) -> Option<Vec<Vec<Finding>>> {
        if !self.pending.is_empty() {
            return None;
        }
        let table = |(table, ids): (&glb_table::Table, &Vec<Vec<u64>>)| {
            let member = |ids: &Vec<u64>| self.member(ids);
            let mut members: Vec<floor::Member> = ids.iter().map(member).collect();
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
            let kept = floor::keep(&of_floor, self.options.floor);
            for (index, healthy) in counted.into_iter().zip(kept) {
                members[index].up = healthy;
            }
            let pairs = table.backends.iter().zip(ids).zip(members);
            let finding =
                |((of, ids), member): ((&glb_table::Backend, &Vec<u64>), floor::Member)| Finding {
                    healthy: member.up,
                    state: state(of, ids),
                };
            pairs.map(finding).collect()
        };
        Some(self.source.set.tables.iter().zip(&self.backends).map(table).collect())
    }

    /// All that is listed must pass; without any check a backend is taken for healthy.
    fn member(&self, ids: &[u64]) -> floor::Member {
        let watched = ids.iter().filter_map(|id| self.targets.get(id));
        let down = watched.filter(|watched| watched.judge.standing() != Standing::Up);
        let since = down.map(|watched| watched.judge.since()).min();
        floor::Member { up: since.is_none(), down_since: since.unwrap_or_default() }
    }

    fn wants_drain(&self, ids: &[u64]) -> bool {
        ids.iter().any(|id| self.targets.get(id).is_some_and(|watched| watched.drain))
    }
}
