mod reload;

use std::path::Path;

use glb_table::{Format, State, parse_bytes};

use super::*;
use crate::{
    check::Pace,
    check_config,
    probe::{Failure, Said},
};

const SECOND: Duration = Duration::from_secs(1);

/// Backends 10.0.0.1 to n, one check each, of one table.
fn source(backends: u8) -> Arc<Source> {
    source_of(1..=backends)
}

/// These backends, one check each, of one table.
fn source_of(backends: impl IntoIterator<Item = u8>) -> Arc<Source> {
    let mut text = String::from(
        "healthchecks = { tcp = 80, interval_ms = 1000, timeout_ms = 500, rise = 2, fall = 2 }\n\
         [[tables]]\nname = \"t\"\nhash_key = \"00000000000000000000000000000000\"\n\
         seed = \"11111111111111111111111111111111\"\n\
         binds = [{ ip = \"1.1.1.1\", proto = \"tcp\", port = 80 }]\n",
    );
    for n in backends {
        text += &format!("[[tables.backends]]\nip = \"10.0.0.{n}\"\nstate = \"active\"\n");
    }
    parsed(&text)
}

fn parsed(text: &str) -> Arc<Source> {
    let path = Path::new("t.toml");
    let set = parse_bytes(path, Format::Toml, text.as_bytes()).unwrap();
    let wanted = check_config::targets(path, &set, &Pace::default()).unwrap();
    Arc::new(Source { path: path.to_owned(), text: text.to_owned(), set, wanted })
}

fn last_byte(address: IpAddr) -> u8 {
    let IpAddr::V4(address) = address else { panic!("{address} is no address of this world") };
    address.octets()[3]
}

fn failure() -> Failure {
    Failure::Timeout { step: "test", after: SECOND }
}

/// A small world: which addresses answer, and what was decided when.
struct World {
    engine: Engine,
    now: Moment,
    down: HashSet<u8>,
    /// Probes of these say nothing.
    unsure: HashSet<u8>,
    /// These accept and say nothing: their probes fail after the timeout.
    hanging: HashSet<u8>,
    /// Probes under way, and when they will have failed.
    waiting: Vec<(Moment, Job)>,
    /// Whether the control target answers, if there is one; asked every 250 ms.
    control: Option<bool>,
    /// What every agent says.
    drain: Option<bool>,
    next_control: Moment,
    decided: Vec<(Moment, Vec<bool>)>,
    /// Whom the last decision is about.
    listed: Vec<u8>,
}

impl World {
    fn new(backends: u8, known: &[(u8, bool)]) -> Self {
        let address = |n: u8| IpAddr::from([10, 0, 0, n]);
        let known = known
            .iter()
            .map(|(n, healthy)| {
                let finding = HealthResult { healthy: *healthy, state: State::Active };
                (("t".to_owned(), address(*n)), finding)
            })
            .collect();
        let options = Options { hold: Duration::ZERO, ..Options::default() };
        let known = Known { findings: known, ..Known::default() };
        let engine =
            Engine::new(options, source(backends), &known, Controls::default(), 1, Moment::ZERO);
        Self {
            engine,
            now: Moment::ZERO,
            down: HashSet::new(),
            unsure: HashSet::new(),
            hanging: HashSet::new(),
            waiting: Vec::new(),
            control: None,
            drain: None,
            next_control: Moment::ZERO,
            decided: Vec::new(),
            listed: Vec::new(),
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let control = self.control.map(|_| self.next_control);
            let answer = self.waiting.iter().map(|(at, _)| *at).min();
            let wake = [self.engine.wake(), control, answer].into_iter().flatten().min();
            let Some(at) = wake.filter(|at| *at <= end) else { break };
            self.now = self.now.max(at);
            if let Some(passed) = self.control.filter(|_| self.next_control <= self.now) {
                self.next_control = self.now + SECOND / 4;
                self.engine.control(0, passed, self.now);
            }
            let now = self.now;
            for (_, job) in self.waiting.extract_if(.., |(at, _)| *at <= now) {
                let timeout = job.target.check.pace.timeout;
                self.engine.take(job.id, Outcome::Fail(failure()), timeout, now);
            }
            while let Some(job) = self.engine.next_job(self.now) {
                let n = last_byte(job.target.address);
                if self.hanging.contains(&n) {
                    self.waiting.push((self.now + job.target.check.pace.timeout, job));
                    continue;
                }
                let outcome = if self.unsure.contains(&n) {
                    Outcome::Unsure(failure())
                } else if self.down.contains(&n) {
                    Outcome::Fail(failure())
                } else {
                    Outcome::Pass(Said { drain: self.drain, weight: None })
                };
                self.engine.take(job.id, outcome, SECOND / 100, self.now);
            }
            self.engine.look(self.now);
            if let Some(decision) = self.engine.decide(self.now) {
                let healthy = decision.findings[0].iter().map(|finding| finding.healthy);
                self.decided.push((self.now, healthy.collect()));
                let backends = decision.source.set.tables[0].backends.iter();
                self.listed = backends.map(|backend| last_byte(backend.address)).collect();
            }
        }
        self.now = end;
    }

    fn last(&self) -> &[bool] {
        &self.decided[self.decided.len() - 1].1
    }
}

#[test]
fn the_first_decision_waits_for_every_target() {
    let mut world = World::new(3, &[]);
    world.down = HashSet::from([2]);
    let job = world.engine.next_job(SECOND).unwrap();
    world.engine.take(job.id, Outcome::Pass(Said::default()), SECOND, SECOND);
    assert!(world.engine.decide(SECOND).is_none());
    world.run(2 * SECOND);
    assert_eq!(world.decided.len(), 1);
    assert_eq!(world.last(), [true, false, true]);
}

#[test]
fn a_death_is_decided_at_once_and_returns_wait_for_each_other() {
    let mut world = World::new(4, &[]);
    world.run(3 * SECOND);
    assert_eq!(world.decided.len(), 1);
    let died = world.now;
    world.down = HashSet::from([1]);
    world.run(3 * SECOND);
    assert_eq!(world.last(), [false, true, true, true]);
    let took = world.decided[1].0 - died;
    assert!(took <= 2 * SECOND + SECOND / 5, "{took:?}");

    world.down = HashSet::from([1, 2, 3]);
    world.run(4 * SECOND);
    assert_eq!(world.last(), [false, false, false, true]);
    let before = world.decided.len();
    world.down.clear();
    world.run(5 * SECOND);
    assert_eq!(world.last(), [true; 4]);
    assert!(world.decided.len() <= before + 2, "{:?}", world.decided);
}

/// Whenever in its interval a backend goes silent, and however long an answer is waited for.
#[test]
fn silence_is_known_after_fall_intervals() {
    for fall in 1..=4_u32 {
        for phase in 0..40 {
            let mut world = World::new(1, &[]);
            let text = world.engine.source().text.replace("fall = 2", &format!("fall = {fall}"));
            let source = parsed(&text);
            world.engine = Engine::new(
                world.engine.options.clone(),
                source,
                &Known::default(),
                Controls::default(),
                phase,
                Moment::ZERO,
            );
            world.run(3 * SECOND + SECOND / 40 * phase as u32);
            let (died, timeout) = (world.now, SECOND / 2);
            let mut waiting: Option<(Moment, Job)> = None;
            let taken_out = loop {
                let answer = waiting.as_ref().map(|(at, _)| *at);
                let wake = [world.engine.wake(), answer].into_iter().flatten().min().unwrap();
                world.now = world.now.max(wake);
                if let Some((_, job)) = waiting.take_if(|(at, _)| *at <= world.now) {
                    world.engine.take(job.id, Outcome::Fail(failure()), timeout, world.now);
                }
                if let Some(job) = world.engine.next_job(world.now) {
                    assert!(waiting.is_none(), "two probes of one target at once");
                    waiting = Some((world.now + timeout, job));
                }
                world.engine.look(world.now);
                if world.engine.decide(world.now).is_some() {
                    break world.now;
                }
            };
            // The first interval is up to 5 % longer; a single failure cannot be made up for.
            let limit = SECOND * fall + SECOND / 20 + if fall == 1 { timeout } else { SECOND / 10 };
            assert!(taken_out - died <= limit, "fall {fall}: {:?}", taken_out - died);
        }
    }
}

#[test]
fn mass_death_writes_no_more_often_than_the_gap() {
    let mut world = World::new(200, &[]);
    world.run(3 * SECOND);
    world.down = (1..=100).collect();
    world.run(4 * SECOND);
    assert_eq!(world.last().iter().filter(|healthy| !**healthy).count(), 100);
    assert!(world.decided.len() <= 2 + 4 * 2, "{} writes", world.decided.len());
    for pair in world.decided.windows(2) {
        assert!(pair[1].0 - pair[0].0 >= Duration::from_millis(250));
    }
}

#[test]
fn a_restart_does_not_flap() {
    let mut world = World::new(2, &[(1, true), (2, false)]);
    world.down = HashSet::from([1]);
    world.run(SECOND / 5);
    // One round: neither fall nor rise is reached.
    assert_eq!(world.last(), [true, false]);
    world.run(4 * SECOND);
    assert_eq!(world.last(), [false, true]);
}

#[test]
fn who_cannot_be_asked_is_not_judged_for_a_while() {
    let mut world = World::new(2, &[]);
    world.run(2 * SECOND);
    world.unsure = HashSet::from([1]);
    world.run(SECOND);
    assert_eq!(world.decided.len(), 1);
    world.unsure.clear();
    world.run(2 * SECOND);
    assert_eq!(world.decided.len(), 1);
    // A check that can never be done proves nothing good.
    world.unsure = HashSet::from([1]);
    world.run(10 * SECOND);
    assert_eq!(world.last(), [false, true]);
}

#[test]
fn what_is_this_machines_own_fault_takes_nobody_out_if_it_is_most_of_them() {
    let mut world = World::new(5, &[]);
    world.down = HashSet::from([5]);
    world.run(3 * SECOND);
    assert_eq!(world.last(), [true, true, true, true, false]);
    // The address that probes come from is gone, say; no control target tells.
    world.unsure = (1..=3).collect();
    world.run(60 * SECOND);
    assert_eq!(world.last(), [true, true, true, true, false]);
    assert_eq!(world.engine.cut_off(), (1, true));
    // It is back: who was well is well, and who dies is taken out.
    world.unsure.clear();
    world.run(5 * SECOND);
    assert_eq!(world.decided.len(), 1);
    assert_eq!(world.engine.cut_off(), (1, false));
    world.down = (1..=5).collect();
    world.run(4 * SECOND);
    assert_eq!(world.last(), [false; 5]);
}

#[test]
fn a_checker_that_is_cut_off_keeps_the_last_judgement() {
    let mut world = World::new(5, &[]);
    world.engine.cut_off = CutOff::new(Controls::new([true]));
    world.control = Some(true);
    world.down = HashSet::from([5]);
    world.run(3 * SECOND);
    assert_eq!(world.last(), [true, true, true, true, false]);
    // All is lost at once, the control too.
    world.control = Some(false);
    world.down = (1..=5).collect();
    world.run(20 * SECOND);
    assert_eq!(world.decided.len(), 1);
    assert_eq!(world.engine.cut_off(), (1, true));
    // It comes back: nothing was held against anybody.
    world.control = Some(true);
    world.down = HashSet::from([5]);
    world.run(20 * SECOND);
    assert_eq!(world.decided.len(), 1);
    assert_eq!(world.engine.cut_off(), (1, false));
    // And who really dies is taken out, even if it is everybody.
    let died = world.now;
    world.down = (1..=5).collect();
    world.run(4 * SECOND);
    assert_eq!(world.last(), [false; 5]);
    assert!(world.decided[1].0 - died <= 2 * SECOND + SECOND / 2);
}

#[test]
fn the_control_alone_proves_nothing() {
    let mut world = World::new(5, &[]);
    world.engine.cut_off = CutOff::new(Controls::new([true]));
    world.control = Some(true);
    world.run(3 * SECOND);
    world.control = Some(false);
    world.run(3 * SECOND);
    world.down = HashSet::from([1, 2]);
    world.run(6 * SECOND);
    assert_eq!(world.last(), [false, false, true, true, true]);
    assert_eq!(world.engine.cut_off(), (0, false));
}

#[test]
fn cut_off_from_the_start_nothing_is_written() {
    let mut world = World::new(5, &[]);
    world.engine.cut_off = CutOff::new(Controls::new([true]));
    world.control = Some(false);
    world.down = (1..=5).collect();
    world.run(20 * SECOND);
    assert!(world.decided.is_empty());
    world.control = Some(true);
    world.down = HashSet::from([2]);
    world.run(5 * SECOND);
    assert_eq!(world.last(), [true, false, true, true, true]);
}

#[test]
fn the_floor_keeps_who_failed_last() {
    let mut world = World::new(4, &[]);
    world.engine.options.floor = Floor::Count(2);
    world.run(3 * SECOND);
    for n in 1..=3 {
        world.down.insert(n);
        world.run(4 * SECOND);
    }
    assert_eq!(world.last(), [false, false, true, true]);
    // Nobody is left: nobody is preferred.
    world.down.insert(4);
    world.run(4 * SECOND);
    assert_eq!(world.last(), [false; 4]);
}

#[test]
fn who_drains_is_none_of_those_who_stay_healthy() {
    let mut world = World::new(3, &[]);
    world.engine.options.floor = Floor::Count(2);
    world.run(3 * SECOND);
    let first = |watched: &&mut Watched| watched.target.address == IpAddr::from([10, 0, 0, 1]);
    world.engine.targets.values_mut().find(first).unwrap().drain = true;
    world.engine.dirty = true;
    world.down = HashSet::from([2]);
    world.run(4 * SECOND);
    assert_eq!(world.last(), [true; 3]);
}

#[test]
fn an_agents_wish_is_written_as_a_state() {
    let mut world = World::new(1, &[]);
    let state = |world: &mut World| {
        world.run(3 * SECOND);
        world.engine.submitted.as_ref().map(|said| said.findings[0][0].state)
    };
    assert_eq!(state(&mut world), Some(State::Active));
    world.drain = Some(true);
    assert_eq!(state(&mut world), Some(State::Draining));
    // It stands until `ready`.
    world.drain = None;
    assert_eq!(state(&mut world), Some(State::Draining));
    world.drain = Some(false);
    assert_eq!(state(&mut world), Some(State::Active));
}
