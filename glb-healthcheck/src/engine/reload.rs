//! Taking a source: what did not change keeps its judgement, what is new is watched from now on.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use glb_table::State;

use super::{Engine, History, Known, Layout, Source, Watched};
use crate::{
    Moment,
    check::{Kind, Target},
    health_state::{Judge, Standing},
};

impl Engine {
    pub(super) fn load(&mut self, source: Arc<Source>, known: &Known, now: Moment) {
        // Who is asked the same at another pace is who he was.
        let same = |target: &Target| (target.address, target.check.kind.clone());
        let asked: HashMap<_, _> =
            self.ids.iter().map(|(target, id)| (same(target), *id)).collect();
        let mut kept = HashSet::new();
        let mut started = Vec::new();
        let mut followed = HashMap::new();
        let mut backends = Vec::with_capacity(source.wanted.len());
        for (table, wanted) in source.set.tables.iter().zip(&source.wanted) {
            let mut of_table = Vec::with_capacity(wanted.len());
            for (backend, wanted) in table.backends.iter().zip(wanted) {
                let before = known.findings.get(&(table.name.clone(), backend.address)).copied();
                let mut of_backend = Vec::with_capacity(wanted.len());
                for target in wanted {
                    let id = match self.ids.get(target) {
                        Some(id) => *id,
                        None => {
                            let of = asked.get(&same(target)).copied();
                            let id = self.watch(target.clone(), of, now);
                            followed.extend(of.map(|of| (of, id)));
                            started.push(id);
                            id
                        }
                    };
                    // Two tables may have said different things: the better one stands, and
                    // falls after `fall` results if it is wrong.
                    if let (Some(before), Some(watched)) = (before, self.targets.get_mut(&id))
                        && !watched.checked
                    {
                        if before.healthy || watched.judge.standing() == Standing::Unknown {
                            watched.judge = Judge::resumed(before.healthy, now);
                        }
                        // An agent's wish stands until it says that it is ready; the operator's
                        // ends when the source no longer has it.
                        let agent = matches!(watched.target.check.kind, Kind::Agent { .. });
                        let drained = before.state == State::Draining
                            && matches!(backend.state, State::Active | State::Filling);
                        watched.drain |=
                            agent && drained && known.drains.contains(&backend.address);
                    }
                    kept.insert(id);
                    of_backend.push(id);
                }
                of_table.push(of_backend);
            }
            backends.push(of_table);
        }
        let layout = Layout { source, backends };
        if self.begun {
            for id in self.current.backends.iter_mut().flatten().flatten() {
                if let Some(follower) = followed.get(id).filter(|_| !kept.contains(id)) {
                    *id = *follower;
                }
            }
            self.next = Some(layout);
        } else {
            // Nothing was written yet that could go on.
            self.current = layout;
        }
        self.forget_others();
        self.schedule.start(started, now);
        self.dirty = true;
        self.adopt();
    }

    /// The newest source comes into force if all that it asks for has a result.
    pub(super) fn adopt(&mut self) {
        if !self.pending.is_empty() {
            return;
        }
        self.begun = true;
        if let Some(next) = self.next.take() {
            self.current = next;
            // Whatever differs from what was written is what the operator asked for.
            self.submitted = None;
            self.forget_others();
        }
    }

    /// Ends the watch on whom no source asks for.
    fn forget_others(&mut self) {
        let kept: HashSet<u64> = self.tables().flatten().flatten().copied().collect();
        let gone: Vec<u64> = self.targets.keys().filter(|id| !kept.contains(id)).copied().collect();
        for id in gone {
            if let Some(watched) = self.targets.remove(&id) {
                self.ids.remove(&watched.target);
            }
            self.schedule.remove(id);
            self.pending.remove(&id);
            self.cut_off.remove(id);
        }
    }

    /// Begins to watch a target; `of` is the one that it goes on from.
    fn watch(&mut self, target: Target, of: Option<u64>, now: Moment) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let target = Arc::new(target);
        self.ids.insert(Arc::clone(&target), id);
        let mut watched = Watched {
            target,
            judge: Judge::new(now),
            history: History::default(),
            last_error: None,
            last_latency: None,
            failing: false,
            mute: false,
            drain: false,
            weight: None,
            results: 0,
            failures: 0,
            checked: false,
            probes: 0,
            unsure: 0,
        };
        if let Some(old) = of.and_then(|id| self.targets.get(&id)) {
            watched = Watched { target: watched.target, probes: 0, unsure: 0, ..old.clone() };
            watched.judge.forget_streak();
        }
        if !watched.checked {
            self.pending.insert(id);
        }
        self.targets.insert(id, watched);
        id
    }
}
