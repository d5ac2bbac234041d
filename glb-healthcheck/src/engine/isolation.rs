//! Failures that would take someone out wait here until it is clear whose fault they are.

use std::collections::HashMap;

use super::{Engine, Standing, Transition, Watched};
use crate::{
    Moment,
    connectivity::{Controls, Word},
};

/// A failure that waits.
#[derive(Clone, Copy, Debug)]
struct Suspect {
    /// When its probe began: controls must have been asked since.
    began: Moment,
    /// When it failed.
    failed: Moment,
}

#[derive(Debug)]
pub(super) struct CutOff {
    controls: Controls,
    suspects: HashMap<u64, Suspect>,
    /// Since when this checker is taken for cut off.
    on: Option<Moment>,
    times: u64,
    /// Something was learnt since the suspects were last looked at.
    news: bool,
    look_at: Option<Moment>,
}

impl CutOff {
    pub(super) fn new(controls: Controls) -> Self {
        Self { controls, suspects: HashMap::new(), on: None, times: 0, news: false, look_at: None }
    }

    pub(super) fn is_on(&self) -> bool {
        self.on.is_some()
    }

    pub(super) fn suspect(&mut self, id: u64, began: Moment, failed: Moment) {
        self.suspects.entry(id).or_insert(Suspect { began, failed });
        self.news = true;
    }

    pub(super) fn remove(&mut self, id: u64) {
        self.suspects.remove(&id);
    }

    /// Something may have changed: it is looked at once more.
    pub(super) fn look_again(&mut self) {
        self.news = true;
    }

    pub(super) fn wake(&self) -> Option<Moment> {
        self.look_at
    }
}

/// What `Engine::look` finds.
#[derive(Debug)]
pub enum Event {
    /// A target's failure counts.
    Transition(Transition),
    /// This checker is cut off: the last judgement stands.
    CutOff {
        /// Targets that fail.
        failing: usize,
        /// Of how many.
        targets: usize,
        /// Whether it cannot even do its checks.
        mute: bool,
    },
    /// It is connected again.
    Connected {
        /// When it was cut off.
        since: Moment,
    },
}

impl Engine {
    /// Takes the result of a control target's probe.
    pub fn control(&mut self, index: usize, passed: bool, started: Moment) {
        self.cut_off.controls.take(index, passed, started);
        self.cut_off.news = true;
    }

    /// How often this checker found itself cut off, and whether it is now.
    #[must_use]
    pub fn cut_off(&self) -> (u64, bool) {
        (self.cut_off.times, self.cut_off.is_on())
    }

    /// Whether each control target answered its last probe.
    pub fn controls(&self) -> impl Iterator<Item = bool> {
        self.cut_off.controls.passing()
    }

    /// Decides about failures that wait.
    pub fn look(&mut self, now: Moment) -> Vec<Event> {
        let mut events = Vec::new();
        let due = self.cut_off.look_at.is_some_and(|at| at <= now);
        if !self.cut_off.news && !due {
            return events;
        }
        self.cut_off.news = false;
        self.cut_off.look_at = None;
        if let Some(since) = self.cut_off.on {
            // Since the mass failure was seen, not before.
            let word = self.cut_off.controls.word(since);
            let connected = matches!(word, Word::Connected | Word::Nobody);
            if !self.is_mute() && (connected || !self.is_mass(None)) {
                self.cut_off.on = None;
                self.forgive();
                events.push(Event::Connected { since });
            }
            return events;
        }
        let mut guilty = Vec::new();
        let suspects: Vec<_> = self.cut_off.suspects.iter().map(|(id, of)| (*id, *of)).collect();
        for (id, suspect) in suspects {
            let word = self.cut_off.controls.word(suspect.began);
            // Whatever the controls say: who cannot even ask knows nothing.
            let own = |of: &Watched| of.mute && of.judge.standing() == Standing::Up;
            let own = self.targets.get(&id).is_some_and(own);
            let is_mass =
                (own && self.is_mute()) || (word == Word::CutOff && self.is_mass(Some(id)));
            match if own { Word::CutOff } else { word } {
                Word::Connected | Word::Nobody => guilty.push(id),
                Word::Open => {}
                Word::CutOff if is_mass => {
                    let failing = self.targets.values().filter(|of| of.failing).count();
                    let targets = self.targets.len();
                    let mute = self.is_mute();
                    events.push(Event::CutOff { failing, targets, mute });
                    self.cut_off.on = Some(now);
                    self.cut_off.times += 1;
                    self.cut_off.suspects.clear();
                    self.forgive();
                    return events;
                }
                Word::CutOff => {
                    // Within an interval all others are asked once more: then it is a mass failure
                    // or this one's own.
                    let pace = self.targets.get(&id).map(|of| &of.target.check.pace);
                    let wait = pace.map(|pace| pace.interval + pace.timeout).unwrap_or_default();
                    let until = suspect.failed + wait;
                    if now >= until {
                        guilty.push(id);
                    } else {
                        let at = self.cut_off.look_at.map_or(until, |at| at.min(until));
                        self.cut_off.look_at = Some(at);
                    }
                }
            }
        }
        // The order of a map is chance; logs should not be.
        guilty.sort_unstable();
        for id in guilty {
            self.cut_off.suspects.remove(&id);
            events.extend(self.settle(id, false, now).map(Event::Transition));
        }
        events
    }

    /// Failures that were counted before it was seen whose fault they are count no more.
    fn forgive(&mut self) {
        for watched in self.targets.values_mut() {
            if watched.judge.standing() == Standing::Up {
                watched.judge.forget_streak();
            }
        }
    }

    /// Whether this machine cannot do some check of too many backends at all.
    fn is_mute(&self) -> bool {
        let is_mute = |id: &u64| self.targets.get(id).is_some_and(|watched| watched.mute);
        let backends = self.tables().flatten();
        let mute = backends.clone().filter(|ids| ids.iter().any(is_mute)).count();
        self.is_mass_of(mute, backends.count())
    }

    fn is_mass_of(&self, some: usize, all: usize) -> bool {
        some * 100 > all * usize::from(self.options.mass_percent)
    }

    /// Whether too many fail for it to be their own fault: more than the configured share of all
    /// targets, or all of a table that `of` belongs to (of any table, without `of`).
    fn is_mass(&self, of: Option<u64>) -> bool {
        let failing = self.targets.values().filter(|watched| watched.failing).count();
        if self.is_mass_of(failing, self.targets.len()) {
            return true;
        }
        self.tables().any(|table| {
            let ids = || table.iter().flatten();
            of.is_none_or(|id| ids().any(|other| *other == id))
                && ids().next().is_some()
                && ids().all(|id| self.targets.get(id).is_some_and(|watched| watched.failing))
        })
    }
}
