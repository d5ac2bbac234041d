mod reload;

use std::path::Path;

use glb_table::{Format, State, parse_bytes};

use super::*;
use crate::{
    check::Settings,
    check_config,
    probe::{AgentReply, Failure},
};

const SECOND: Duration = Duration::from_secs(1);

/// An input with one table: backends 10.0.0.1 to 10.0.0.n with one check each.
fn input(backends: u8) -> Arc<InputTable> {
    input_of(1..=backends)
}

/// An input with one table: the given backends with one check each.
fn input_of(backends: impl IntoIterator<Item = u8>) -> Arc<InputTable> {
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

fn parsed(text: &str) -> Arc<InputTable> {
    let path = Path::new("t.toml");
    let set = parse_bytes(path, Format::Toml, text.as_bytes()).unwrap();
    let targets = check_config::read_targets(path, &set, &Settings::default()).unwrap();
    Arc::new(InputTable { path: path.to_owned(), text: text.to_owned(), set, targets })
}

fn last_byte(address: IpAddr) -> u8 {
    let IpAddr::V4(address) = address else { panic!("{address} is not an address of this fleet") };
    address.octets()[3]
}

fn failure() -> Failure {
    Failure::Timeout { step: "test", after: SECOND }
}

/// A simulated fleet: which backends reply, and what the engine decided when.
struct Fleet {
    engine: Engine,
    now: Moment,
    down: HashSet<u8>,
    /// Probes of these are inconclusive.
    inconclusive: HashSet<u8>,
    /// These accept connections and send nothing: their probes fail after the timeout.
    hanging: HashSet<u8>,
    /// Running probes, and when they fail.
    waiting: Vec<(Moment, ProbeJob)>,
    /// True if the connectivity target replies, if there is one; probed every 250 ms.
    connectivity: Option<bool>,
    /// The report of every agent.
    drain: Option<bool>,
    next_connectivity_probe: Moment,
    decided: Vec<(Moment, Vec<bool>)>,
    /// The backends of the last update.
    listed: Vec<u8>,
}

impl Fleet {
    fn new(backends: u8, previous: &[(u8, bool)]) -> Self {
        let address = |n: u8| IpAddr::from([10, 0, 0, n]);
        let previous = previous
            .iter()
            .map(|(n, healthy)| {
                let result = HealthResult { healthy: *healthy, state: State::Active };
                (("t".to_owned(), address(*n)), result)
            })
            .collect();
        let options = EngineOptions { hold_down: Duration::ZERO, ..EngineOptions::default() };
        let previous = PreviousOutput { health: previous, ..PreviousOutput::default() };
        let engine = Engine::new(
            options,
            input(backends),
            &previous,
            ConnectivityTracker::default(),
            1,
            Moment::ZERO,
        );
        Self {
            engine,
            now: Moment::ZERO,
            down: HashSet::new(),
            inconclusive: HashSet::new(),
            hanging: HashSet::new(),
            waiting: Vec::new(),
            connectivity: None,
            drain: None,
            next_connectivity_probe: Moment::ZERO,
            decided: Vec::new(),
            listed: Vec::new(),
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let connectivity = self.connectivity.map(|_| self.next_connectivity_probe);
            let answer = self.waiting.iter().map(|(at, _)| *at).min();
            let wake = [self.engine.next_wake(), connectivity, answer].into_iter().flatten().min();
            let Some(at) = wake.filter(|at| *at <= end) else { break };
            self.now = self.now.max(at);
            if let Some(passed) =
                self.connectivity.filter(|_| self.next_connectivity_probe <= self.now)
            {
                self.next_connectivity_probe = self.now + SECOND / 4;
                self.engine.record_connectivity(0, passed, self.now);
            }
            let now = self.now;
            for (_, job) in self.waiting.extract_if(.., |(at, _)| *at <= now) {
                let timeout = job.target.check.settings.timeout;
                self.engine.record_result(job.id, Outcome::Fail(failure()), timeout, now);
            }
            while let Some(job) = self.engine.next_job(self.now) {
                let n = last_byte(job.target.address);
                if self.hanging.contains(&n) {
                    self.waiting.push((self.now + job.target.check.settings.timeout, job));
                    continue;
                }
                let outcome = if self.inconclusive.contains(&n) {
                    Outcome::Inconclusive(failure())
                } else if self.down.contains(&n) {
                    Outcome::Fail(failure())
                } else {
                    Outcome::Pass(AgentReply { drain: self.drain, weight: None })
                };
                self.engine.record_result(job.id, outcome, SECOND / 100, self.now);
            }
            self.engine.check_suspects(self.now);
            if let Some(update) = self.engine.next_update(self.now) {
                let healthy = update.health[0].iter().map(|result| result.healthy);
                self.decided.push((self.now, healthy.collect()));
                let backends = update.input.set.tables[0].backends.iter();
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
fn the_first_update_waits_for_a_result_of_every_target() {
    let mut fleet = Fleet::new(3, &[]);
    fleet.down = HashSet::from([2]);
    let job = fleet.engine.next_job(SECOND).unwrap();
    fleet.engine.record_result(job.id, Outcome::Pass(AgentReply::default()), SECOND, SECOND);
    assert!(fleet.engine.next_update(SECOND).is_none());
    fleet.run(2 * SECOND);
    assert_eq!(fleet.decided.len(), 1);
    assert_eq!(fleet.last(), [true, false, true]);
}

#[test]
fn failures_are_written_at_once_and_returns_are_debounced() {
    let mut fleet = Fleet::new(4, &[]);
    fleet.run(3 * SECOND);
    assert_eq!(fleet.decided.len(), 1);
    let died = fleet.now;
    fleet.down = HashSet::from([1]);
    fleet.run(3 * SECOND);
    assert_eq!(fleet.last(), [false, true, true, true]);
    let took = fleet.decided[1].0 - died;
    assert!(took <= 2 * SECOND + SECOND / 5, "{took:?}");

    fleet.down = HashSet::from([1, 2, 3]);
    fleet.run(4 * SECOND);
    assert_eq!(fleet.last(), [false, false, false, true]);
    let before = fleet.decided.len();
    fleet.down.clear();
    fleet.run(5 * SECOND);
    assert_eq!(fleet.last(), [true; 4]);
    assert!(fleet.decided.len() <= before + 2, "{:?}", fleet.decided);
}

/// The backend stops at any point of its interval, and probes fail by timeout.
#[test]
fn a_silent_backend_is_unhealthy_after_fall_intervals() {
    for fall in 1..=4_u32 {
        for phase in 0..40 {
            let mut fleet = Fleet::new(1, &[]);
            let text = fleet.engine.input().text.replace("fall = 2", &format!("fall = {fall}"));
            let input = parsed(&text);
            fleet.engine = Engine::new(
                fleet.engine.options.clone(),
                input,
                &PreviousOutput::default(),
                ConnectivityTracker::default(),
                phase,
                Moment::ZERO,
            );
            fleet.run(3 * SECOND + SECOND / 40 * phase as u32);
            let (died, timeout) = (fleet.now, SECOND / 2);
            let mut waiting: Option<(Moment, ProbeJob)> = None;
            let taken_out = loop {
                let answer = waiting.as_ref().map(|(at, _)| *at);
                let wake = [fleet.engine.next_wake(), answer].into_iter().flatten().min().unwrap();
                fleet.now = fleet.now.max(wake);
                if let Some((_, job)) = waiting.take_if(|(at, _)| *at <= fleet.now) {
                    fleet.engine.record_result(
                        job.id,
                        Outcome::Fail(failure()),
                        timeout,
                        fleet.now,
                    );
                }
                if let Some(job) = fleet.engine.next_job(fleet.now) {
                    assert!(waiting.is_none(), "two probes of one target at once");
                    waiting = Some((fleet.now + timeout, job));
                }
                fleet.engine.check_suspects(fleet.now);
                if fleet.engine.next_update(fleet.now).is_some() {
                    break fleet.now;
                }
            };
            // Jitter makes the first interval up to 5 % longer. With fall = 1 no later probe makes up for the
            // timeout.
            let limit = SECOND * fall + SECOND / 20 + if fall == 1 { timeout } else { SECOND / 10 };
            assert!(taken_out - died <= limit, "fall {fall}: {:?}", taken_out - died);
        }
    }
}

#[test]
fn many_failures_write_at_most_once_per_min_write_interval() {
    let mut fleet = Fleet::new(200, &[]);
    fleet.run(3 * SECOND);
    fleet.down = (1..=100).collect();
    fleet.run(4 * SECOND);
    assert_eq!(fleet.last().iter().filter(|healthy| !**healthy).count(), 100);
    assert!(fleet.decided.len() <= 2 + 4 * 2, "{} writes", fleet.decided.len());
    for pair in fleet.decided.windows(2) {
        assert!(pair[1].0 - pair[0].0 >= Duration::from_millis(250));
    }
}

#[test]
fn a_restart_keeps_the_health_that_was_written() {
    let mut fleet = Fleet::new(2, &[(1, true), (2, false)]);
    fleet.down = HashSet::from([1]);
    fleet.run(SECOND / 5);
    // After one round neither fall nor rise is reached.
    assert_eq!(fleet.last(), [true, false]);
    fleet.run(4 * SECOND);
    assert_eq!(fleet.last(), [false, true]);
}

#[test]
fn inconclusive_probes_count_as_failures_only_after_the_limit() {
    let mut fleet = Fleet::new(2, &[]);
    fleet.run(2 * SECOND);
    fleet.inconclusive = HashSet::from([1]);
    fleet.run(SECOND);
    assert_eq!(fleet.decided.len(), 1);
    fleet.inconclusive.clear();
    fleet.run(2 * SECOND);
    assert_eq!(fleet.decided.len(), 1);
    // A check that never works must not keep a backend healthy.
    fleet.inconclusive = HashSet::from([1]);
    fleet.run(10 * SECOND);
    assert_eq!(fleet.last(), [false, true]);
}

#[test]
fn local_faults_of_most_checks_isolate_the_checker() {
    let mut fleet = Fleet::new(5, &[]);
    fleet.down = HashSet::from([5]);
    fleet.run(3 * SECOND);
    assert_eq!(fleet.last(), [true, true, true, true, false]);
    // For instance the source address of the probes was removed; no connectivity target shows that.
    fleet.inconclusive = (1..=3).collect();
    fleet.run(60 * SECOND);
    assert_eq!(fleet.last(), [true, true, true, true, false]);
    assert_eq!(fleet.engine.isolation(), (1, true));
    // The fault is repaired: healthy backends stay healthy, and failing ones become unhealthy.
    fleet.inconclusive.clear();
    fleet.run(5 * SECOND);
    assert_eq!(fleet.decided.len(), 1);
    assert_eq!(fleet.engine.isolation(), (1, false));
    fleet.down = (1..=5).collect();
    fleet.run(4 * SECOND);
    assert_eq!(fleet.last(), [false; 5]);
}

#[test]
fn an_isolated_checker_keeps_the_last_health() {
    let mut fleet = Fleet::new(5, &[]);
    fleet.engine.isolation = Isolation::new(ConnectivityTracker::new([true]));
    fleet.connectivity = Some(true);
    fleet.down = HashSet::from([5]);
    fleet.run(3 * SECOND);
    assert_eq!(fleet.last(), [true, true, true, true, false]);
    // All backends and the connectivity target fail at once.
    fleet.connectivity = Some(false);
    fleet.down = (1..=5).collect();
    fleet.run(20 * SECOND);
    assert_eq!(fleet.decided.len(), 1);
    assert_eq!(fleet.engine.isolation(), (1, true));
    // Connectivity returns: failures during the isolation do not count.
    fleet.connectivity = Some(true);
    fleet.down = HashSet::from([5]);
    fleet.run(20 * SECOND);
    assert_eq!(fleet.decided.len(), 1);
    assert_eq!(fleet.engine.isolation(), (1, false));
    // With connectivity, failing backends become unhealthy even if all of them fail.
    let died = fleet.now;
    fleet.down = (1..=5).collect();
    fleet.run(4 * SECOND);
    assert_eq!(fleet.last(), [false; 5]);
    assert!(fleet.decided[1].0 - died <= 2 * SECOND + SECOND / 2);
}

#[test]
fn a_failing_connectivity_target_alone_does_not_isolate() {
    let mut fleet = Fleet::new(5, &[]);
    fleet.engine.isolation = Isolation::new(ConnectivityTracker::new([true]));
    fleet.connectivity = Some(true);
    fleet.run(3 * SECOND);
    fleet.connectivity = Some(false);
    fleet.run(3 * SECOND);
    fleet.down = HashSet::from([1, 2]);
    fleet.run(6 * SECOND);
    assert_eq!(fleet.last(), [false, false, true, true, true]);
    assert_eq!(fleet.engine.isolation(), (0, false));
}

#[test]
fn a_checker_isolated_from_the_start_writes_nothing() {
    let mut fleet = Fleet::new(5, &[]);
    fleet.engine.isolation = Isolation::new(ConnectivityTracker::new([true]));
    fleet.connectivity = Some(false);
    fleet.down = (1..=5).collect();
    fleet.run(20 * SECOND);
    assert!(fleet.decided.is_empty());
    fleet.connectivity = Some(true);
    fleet.down = HashSet::from([2]);
    fleet.run(5 * SECOND);
    assert_eq!(fleet.last(), [true, false, true, true, true]);
}

#[test]
fn min_healthy_keeps_the_backends_that_failed_last() {
    let mut fleet = Fleet::new(4, &[]);
    fleet.engine.options.min_healthy = MinHealthy::Count(2);
    fleet.run(3 * SECOND);
    for n in 1..=3 {
        fleet.down.insert(n);
        fleet.run(4 * SECOND);
    }
    assert_eq!(fleet.last(), [false, false, true, true]);
    // All fail: none is kept healthy.
    fleet.down.insert(4);
    fleet.run(4 * SECOND);
    assert_eq!(fleet.last(), [false; 4]);
}

#[test]
fn draining_backends_do_not_count_towards_min_healthy() {
    let mut fleet = Fleet::new(3, &[]);
    fleet.engine.options.min_healthy = MinHealthy::Count(2);
    fleet.run(3 * SECOND);
    let first =
        |monitored: &&mut MonitoredTarget| monitored.target.address == IpAddr::from([10, 0, 0, 1]);
    fleet.engine.targets.values_mut().find(first).unwrap().drain = true;
    fleet.engine.content_changed = true;
    fleet.down = HashSet::from([2]);
    fleet.run(4 * SECOND);
    assert_eq!(fleet.last(), [true; 3]);
}

#[test]
fn an_agents_drain_is_written_as_state_draining() {
    let mut fleet = Fleet::new(1, &[]);
    let state = |fleet: &mut Fleet| {
        fleet.run(3 * SECOND);
        fleet.engine.last_content.as_ref().map(|content| content.health[0][0].state)
    };
    assert_eq!(state(&mut fleet), Some(State::Active));
    fleet.drain = Some(true);
    assert_eq!(state(&mut fleet), Some(State::Draining));
    // It lasts until `ready`.
    fleet.drain = None;
    assert_eq!(state(&mut fleet), Some(State::Draining));
    fleet.drain = Some(false);
    assert_eq!(state(&mut fleet), Some(State::Active));
}
