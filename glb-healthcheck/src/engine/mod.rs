//! From results to the findings that are written, and when. Pure: no clock, no socket, no file.

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
use isolation::CutOff;
pub use isolation::Event;

use crate::{
    Moment,
    check::{Pace, Target},
    check_config::Wanted,
    connectivity::Controls,
    health_state::{Judge, Rules, Standing},
    min_healthy::Floor,
    probe::Outcome,
    schedule::Schedule,
};

/// So many probes in a row that said nothing count as a failure: a check that can never be done
/// proves nothing good.
const UNSURE_LIMIT: u32 = 5;

/// What holds for all targets.
#[derive(Clone, Debug)]
pub struct Options {
    /// First hold of a target that fails.
    pub hold: Duration,
    /// Longest hold.
    pub hold_max: Duration,
    /// Who is up for so long begins with the first hold again.
    pub forgive: Duration,
    /// Changes that are no hurry wait so long for others.
    pub settle: Duration,
    /// Two writes are at least this far apart, also in a hurry.
    pub gap: Duration,
    /// A mass failure is one of more than this share of all targets, or of a whole table.
    pub mass_percent: u8,
    /// How many backends of each table are never taken out.
    pub floor: Floor,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            hold: Duration::from_secs(5),
            hold_max: Duration::from_secs(300),
            forgive: Duration::from_secs(600),
            settle: Duration::from_secs(1),
            gap: Duration::from_millis(250),
            mass_percent: 50,
            floor: Floor::None,
        }
    }
}

/// What a former checker has left.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// What it has written, by table and backend.
    pub findings: HashMap<(String, IpAddr), HealthResult>,
    /// Whose agents wanted no new connections.
    pub drains: HashSet<IpAddr>,
}

/// A source table with the checks it asks for.
#[derive(Debug)]
pub struct Source {
    /// The file.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
    /// Its meaning.
    pub set: TableSet,
    /// Its checks.
    pub wanted: Wanted,
}

/// A probe to be sent.
#[derive(Clone, Debug)]
pub struct Job {
    /// Whose result it will be.
    pub id: u64,
    /// What to ask.
    pub target: Arc<Target>,
}

/// What is to be written.
#[derive(Clone, Debug)]
pub struct Decision {
    /// The source that it is about.
    pub source: Arc<Source>,
    /// For each table and backend.
    pub findings: Vec<Vec<HealthResult>>,
    /// The backends whose agents want no new connections, in order.
    pub drains: Vec<IpAddr>,
    /// Whether someone who took connections no longer can.
    pub urgent: bool,
}

/// A target that changed its standing.
#[derive(Debug)]
pub struct Transition {
    /// Which.
    pub target: Arc<Target>,
    /// From.
    pub from: Standing,
    /// To.
    pub to: Standing,
    /// For how long it was what it was.
    pub after: Duration,
    /// Why, if it failed.
    pub reason: Option<String>,
    /// Until when it is held down.
    pub held_until: Moment,
}

/// What is known of one target.
#[derive(Clone, Debug)]
pub struct Watched {
    /// The target.
    pub target: Arc<Target>,
    /// Its judgement.
    pub judge: Judge,
    /// Its last results.
    pub history: History,
    /// Why it last did not pass.
    pub last_error: Option<String>,
    /// How long the last probe took.
    pub last_latency: Option<Duration>,
    /// Whether the last probe that said anything failed.
    failing: bool,
    /// Whether the last probes said nothing, for so long that it counts as failing.
    mute: bool,
    /// Whether the backend's agent wants no new connections.
    pub drain: bool,
    /// Percent of its weight, as its agent says.
    pub weight: Option<u16>,
    /// Results so far.
    pub results: u64,
    /// How many of them were no pass.
    pub failures: u64,
    /// Whether it has been judged since it is watched here.
    checked: bool,
    probes: u64,
    unsure: u32,
}

impl Watched {
    /// Whether the last probe that said anything failed.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.failing
    }
}

/// What is known of a backend.
#[derive(Debug)]
pub struct Seen<'e> {
    /// As the source has it.
    pub backend: &'e glb_table::Backend,
    /// What was last said of it.
    pub finding: Option<HealthResult>,
    /// Its checks.
    pub checks: Vec<&'e Watched>,
}

/// A source, and who is asked about it.
#[derive(Debug)]
struct Layout {
    source: Arc<Source>,
    /// The ids of each backend of each table.
    backends: Vec<Vec<Vec<u64>>>,
}

/// What is said of the backends.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Said {
    /// For each table and backend.
    findings: Vec<Vec<HealthResult>>,
    /// Whose agents want no new connections, in order.
    drains: Vec<IpAddr>,
}

/// All targets and what follows from them.
#[derive(Debug)]
pub struct Engine {
    options: Options,
    schedule: Schedule,
    targets: HashMap<u64, Watched>,
    ids: HashMap<Arc<Target>, u64>,
    next_id: u64,
    /// What is written about.
    current: Layout,
    /// What will be, once each of its targets has a result.
    next: Option<Layout>,
    /// Whether the first round is over.
    begun: bool,
    /// Targets without a first result.
    pending: HashSet<u64>,
    cut_off: CutOff,
    /// Something changed since the findings were last looked at.
    dirty: bool,
    submitted: Option<Said>,
    last_submit: Option<Moment>,
    publish_at: Option<Moment>,
}

impl Engine {
    /// Begins to watch. `known` is what a former checker has written.
    #[must_use]
    pub fn new(
        options: Options,
        source: Arc<Source>,
        known: &Known,
        controls: Controls,
        seed: u64,
        now: Moment,
    ) -> Self {
        let mut engine = Self {
            options,
            schedule: Schedule::new(seed),
            targets: HashMap::new(),
            ids: HashMap::new(),
            next_id: 0,
            current: Layout { source: Arc::clone(&source), backends: Vec::new() },
            next: None,
            begun: false,
            pending: HashSet::new(),
            cut_off: CutOff::new(controls),
            dirty: true,
            submitted: None,
            last_submit: None,
            publish_at: None,
        };
        engine.load(source, known, now);
        engine
    }

    /// Takes another source: what did not change keeps its judgement. What is new is checked before
    /// anything is written about the new source; until then the old one stays in force as a whole,
    /// checks and all, so that whoever hangs holds up nobody's death.
    pub fn reload(&mut self, source: Arc<Source>, now: Moment) {
        self.load(source, &Known::default(), now);
    }

    /// A probe that is due. Its next one is planned already.
    pub fn next_job(&mut self, now: Moment) -> Option<Job> {
        while let Some((id, due)) = self.schedule.pop(now) {
            let Some(watched) = self.targets.get_mut(&id) else { continue };
            let pace = &watched.target.check.pace;
            if watched.probes == 0 {
                self.schedule.spread(id, pace, now);
            } else {
                self.schedule.next(id, pace, due, now);
                if Schedule::is_stale(pace, due, now) {
                    continue;
                }
            }
            watched.probes += 1;
            return Some(Job { id, target: Arc::clone(&watched.target) });
        }
        None
    }

    /// Takes a probe's result; it may be of a target that is gone.
    pub fn take(
        &mut self,
        id: u64,
        outcome: Outcome,
        latency: Duration,
        now: Moment,
    ) -> Option<Transition> {
        let watched = self.targets.get_mut(&id)?;
        let pace = &watched.target.check.pace;
        watched.last_latency = Some(latency);
        watched.results += 1;
        watched.failures += u64::from(!matches!(outcome, Outcome::Pass(_)));
        let was_mute = watched.mute;
        let passed = match outcome {
            Outcome::Pass(said) => {
                watched.unsure = 0;
                watched.mute = false;
                watched.history.push(Mark::Pass);
                watched.weight = said.weight;
                if let Some(drain) = said.drain.filter(|drain| *drain != watched.drain) {
                    watched.drain = drain;
                    self.dirty = true;
                }
                true
            }
            Outcome::Fail(failure) => {
                watched.unsure = 0;
                watched.mute = false;
                watched.history.push(Mark::Fail);
                watched.last_error = Some(failure.to_string());
                if watched.judge.standing() == Standing::Up {
                    self.schedule.after_failure(id, pace, latency, now);
                }
                false
            }
            Outcome::Unsure(failure) => {
                watched.unsure += 1;
                watched.history.push(Mark::Unsure);
                watched.last_error = Some(failure.to_string());
                if watched.unsure < UNSURE_LIMIT {
                    if !self.cut_off.is_on() {
                        self.schedule.again(id, pace, now);
                    }
                    return None;
                }
                watched.unsure = 0;
                watched.mute = true;
                false
            }
        };
        watched.failing = !passed;
        if was_mute && !watched.mute {
            self.cut_off.look_again();
        }
        if passed {
            self.cut_off.remove(id);
            return self.settle(id, true, now);
        }
        if self.cut_off.is_on() {
            // It says nothing about the target.
            watched.judge.forget_streak();
            return None;
        }
        let rules = rules(&self.options, pace);
        if watched.judge.standing() == Standing::Unknown || watched.judge.is_last_chance(&rules) {
            // This one would take it out: first it must be clear that the checker is not cut off.
            self.cut_off.suspect(id, now.saturating_sub(latency), now);
            return None;
        }
        self.settle(id, false, now)
    }

    /// Gives a result to the judge.
    fn settle(&mut self, id: u64, passed: bool, now: Moment) -> Option<Transition> {
        let watched = self.targets.get_mut(&id)?;
        let is_first = !std::mem::replace(&mut watched.checked, true);
        let rules = rules(&self.options, &watched.target.check.pace);
        let since = watched.judge.since();
        let from = watched.judge.take(&rules, passed, now);
        let transition = from.map(|from| Transition {
            target: Arc::clone(&watched.target),
            from,
            to: watched.judge.standing(),
            after: now.saturating_sub(since),
            reason: watched.last_error.clone().filter(|_| !passed),
            held_until: watched.judge.held_until(),
        });
        self.dirty |= is_first || transition.is_some();
        if is_first {
            self.pending.remove(&id);
            self.adopt();
        }
        transition
    }

    /// When to look again, if no result comes before.
    pub fn wake(&mut self) -> Option<Moment> {
        let probe = self.schedule.wake();
        [probe, self.publish_at, self.cut_off.wake()].into_iter().flatten().min()
    }

    /// What is known of each backend of each table, in the newest source's order, and what was last
    /// said.
    pub fn backends(&self) -> impl Iterator<Item = (&glb_table::Table, Vec<Seen<'_>>)> {
        let mut said = HashMap::new();
        let tables = self
            .current
            .source
            .set
            .tables
            .iter()
            .zip(self.submitted.iter().flat_map(|said| &said.findings));
        for (table, findings) in tables {
            for (backend, finding) in table.backends.iter().zip(findings) {
                said.insert((table.name.as_str(), backend.address), *finding);
            }
        }
        let Layout { source, backends } = self.newest();
        source.set.tables.iter().zip(backends).map(move |(table, ids)| {
            let seen = table.backends.iter().zip(ids).map(|(backend, ids)| Seen {
                backend,
                finding: said.get(&(table.name.as_str(), backend.address)).copied(),
                checks: ids.iter().filter_map(|id| self.targets.get(id)).collect(),
            });
            (table, seen.collect())
        })
    }

    /// What was loaded last.
    fn newest(&self) -> &Layout {
        self.next.as_ref().unwrap_or(&self.current)
    }

    /// The tables' ids, of what is in force and of what is to be.
    fn tables(&self) -> impl Iterator<Item = &Vec<Vec<u64>>> + Clone {
        let next = self.next.iter().flat_map(|layout| &layout.backends);
        self.current.backends.iter().chain(next)
    }

    /// All targets, in no order.
    pub fn targets(&self) -> impl Iterator<Item = &Watched> {
        self.targets.values()
    }

    /// How many targets have no result yet.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// The source that was loaded last.
    #[must_use]
    pub fn source(&self) -> &Arc<Source> {
        &self.newest().source
    }
}

fn rules(options: &Options, pace: &Pace) -> Rules {
    Rules {
        rise: pace.rise,
        fall: pace.fall,
        hold: options.hold,
        hold_max: options.hold_max,
        forgive: options.forgive,
    }
}

#[cfg(test)]
mod tests;
