//! Changes by operators hold: drains survive health changes, restarts, crashes and full disks, and
//! changes of the output by other programs are reported and saved.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fixture;

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use fixture::{Fixture, HttpServer};
use glb_table::{State, atomic_file, edit, write_mark};
use nix::sys::signal::Signal;

fn states(path: &Path) -> Option<Vec<(IpAddr, State)>> {
    let set = glb_table::load(path).ok()?;
    Some(set.tables[0].backends.iter().map(|backend| (backend.address, backend.state)).collect())
}

/// Changes a backend's state in the input, as `glb-director table set` does.
fn set_state(input: &Path, backend: IpAddr, state: State) {
    let text = fs::read_to_string(input).unwrap();
    let (text, _) = edit::set_state(input, &text, backend, state, None).unwrap();
    atomic_file::replace(input, text.as_bytes()).unwrap();
}

/// Waits until the output has this state of a backend; returns how long it took.
fn wait_for_state(checker: &Fixture, backend: IpAddr, state: State) -> Duration {
    let begun = Instant::now();
    while !states(&checker.path("output.toml")).unwrap().contains(&(backend, state)) {
        assert!(begun.elapsed() < Duration::from_secs(20), "{backend}: {}", checker.log());
        thread::sleep(Duration::from_millis(2));
    }
    begun.elapsed()
}

#[test]
fn a_change_of_the_input_is_in_the_output_within_milliseconds() {
    let servers = [HttpServer::start("127.11.1.1"), HttpServer::start("127.11.1.2")];
    let mut checker = Fixture::new();
    checker.write_input(&[&servers[0], &servers[1]]);
    checker.start();
    checker.wait_for(&[true, true]);
    let backend: IpAddr = "127.11.1.1".parse().unwrap();
    set_state(&checker.path("input.toml"), backend, State::Draining);
    // The minimum time between two writes included.
    let took = wait_for_state(&checker, backend, State::Draining);
    assert!(took < Duration::from_millis(1000), "{took:?}");
    // A health change of another backend does not undo the drain.
    servers[1].set(false);
    checker.wait_for(&[true, false]);
    assert!(states(&checker.path("output.toml")).unwrap().contains(&(backend, State::Draining)));
}

#[test]
fn a_foreign_change_of_the_output_is_reported_saved_and_overwritten() {
    let server = HttpServer::start("127.11.2.1");
    let mut checker = Fixture::new();
    checker.write_input(&[&server]);
    checker.start();
    checker.wait_for(&[true]);
    let output = checker.path("output.toml");
    let own = fs::read_to_string(&output).unwrap();
    let mark = write_mark::read(glb_table::Format::Toml, &own).unwrap();
    assert_eq!(mark.input, fs::canonicalize(checker.path("input.toml")).unwrap());
    assert!(mark.intact);
    // While the daemon runs.
    let foreign = own.replace("\"active\"", "\"draining\"");
    fs::write(&output, &foreign).unwrap();
    checker.wait_for_log("another program changed the output");
    let copy = checker.path("output.toml.overwritten-1");
    assert_eq!(fs::read_to_string(&copy).unwrap(), foreign);
    assert_eq!(fs::read_to_string(&output).unwrap(), own);
    let status = checker.ask_for(&["status"], 4);
    assert!(status.contains("OUTPUT CHANGED") && status.contains("overwritten-1"), "{status}");
    fs::remove_file(&copy).unwrap();
    checker.ask_for(&["status"], 0);
    // While no daemon runs.
    assert!(checker.stop(Signal::SIGTERM));
    fs::write(&output, &foreign).unwrap();
    checker.start();
    while fs::read_to_string(&output).unwrap() != own {
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(fs::read_to_string(&copy).unwrap(), foreign);
    checker.ask_for(&["status"], 4);
}

#[test]
fn a_table_in_use_before_the_checker_is_kept() {
    let server = HttpServer::start("127.11.3.1");
    let mut checker = Fixture::new();
    checker.write_input(&[&server]);
    fs::copy(checker.path("input.toml"), checker.path("output.toml")).unwrap();
    let original = fs::read_to_string(checker.path("output.toml")).unwrap();
    checker.start();
    checker.wait_for_log("without the checker's mark");
    assert_eq!(fs::read_to_string(checker.path("output.toml.original")).unwrap(), original);
    checker.ask_for(&["status"], 0);
}

/// Reads the output all the time, and panics if a backend with an acknowledged drain is not draining.
struct Observer {
    /// Backends whose drain has been seen in the output.
    acknowledged: Arc<Mutex<BTreeSet<IpAddr>>>,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<u64>>,
}

impl Observer {
    fn start(output: PathBuf) -> Self {
        let acknowledged = Arc::new(Mutex::new(BTreeSet::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (watched, stopped) = (Arc::clone(&acknowledged), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let mut reads = 0;
            while !stopped.load(Ordering::Relaxed) {
                {
                    let acknowledged = watched.lock().unwrap();
                    let states = states(&output).unwrap();
                    for (backend, state) in states {
                        let drained = acknowledged.contains(&backend);
                        assert!(!drained || state == State::Draining, "{backend} is {state}");
                    }
                    reads += 1;
                }
                thread::sleep(Duration::from_millis(1));
            }
            reads
        });
        Self { acknowledged, stop, thread: Some(thread) }
    }

    fn acknowledge(&self, backend: IpAddr) {
        self.acknowledged.lock().unwrap().insert(backend);
    }

    fn forget(&self, backend: IpAddr) {
        self.acknowledged.lock().unwrap().remove(&backend);
    }

    fn finish(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

/// A pseudo-random number generator (SplitMix64); the seed is printed and can be given again.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z >> 33) as usize % limit
    }
}

/// The steps of a write at which the checker can be killed, or fail as on a full disk.
const POINTS: [&str; 3] = ["drains_written", "write_output", "output_written"];

/// Any order of drains, health changes, kills (also between two steps of a write), failing writes,
/// reloads and restarts.
#[test]
fn an_acknowledged_drain_holds_through_kills_and_failing_writes() {
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64);
    println!("SEED={seed}");
    let mut random = Random(seed);
    let servers: Vec<HttpServer> =
        (1..=4).map(|n| HttpServer::start(&format!("127.11.4.{n}"))).collect();
    let backends: Vec<IpAddr> = servers.iter().map(|of| of.address.parse().unwrap()).collect();
    let mut healthy = [true; 4];
    let mut drained = BTreeSet::new();
    let mut checker = Fixture::new();
    checker.write_input(&servers.iter().collect::<Vec<_>>());
    checker.start();
    checker.wait_for(&[true; 4]);
    let (input, fault) = (checker.path("input.toml"), checker.path("fault"));
    let observer = Observer::start(checker.path("output.toml"));
    let (mut drains, mut kills) = (0, 0);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(25) {
        let n = random.below(4);
        match random.below(7) {
            0 | 1 => {
                // A drain is acknowledged when it is in the output.
                set_state(&input, backends[n], State::Draining);
                wait_for_state(&checker, backends[n], State::Draining);
                observer.acknowledge(backends[n]);
                drained.insert(n);
                drains += 1;
            }
            2 if drained.remove(&n) => {
                observer.forget(backends[n]);
                set_state(&input, backends[n], State::Active);
                // Otherwise a new drain could be acknowledged by the output of the old one.
                wait_for_state(&checker, backends[n], State::Active);
            }
            3 => {
                fs::write(&fault, format!("kill {}", POINTS[random.below(3)])).unwrap();
                healthy[n] = !healthy[n];
                servers[n].set(healthy[n]);
                if checker.has_ended(Duration::from_millis(900)) {
                    kills += 1;
                } else {
                    checker.stop(Signal::SIGKILL);
                }
                fs::remove_file(&fault).unwrap();
                checker.start();
            }
            4 => {
                fs::write(&fault, format!("fail {}", POINTS[random.below(3)])).unwrap();
                healthy[n] = !healthy[n];
                servers[n].set(healthy[n]);
                thread::sleep(Duration::from_millis(700));
                fs::remove_file(&fault).unwrap();
            }
            5 => {
                thread::sleep(Duration::from_millis(random.below(300) as u64));
                checker.stop(Signal::SIGKILL);
                checker.start();
            }
            _ => {
                healthy[n] = !healthy[n];
                servers[n].set(healthy[n]);
                // SIGHUP ends a process that has not installed its handlers yet.
                checker.wait_until_probing();
                checker.signal(Signal::SIGHUP);
                thread::sleep(Duration::from_millis(random.below(200) as u64));
            }
        }
    }
    let reads = observer.finish();
    println!("{drains} drains, {kills} kills within a write, {reads} reads of the output");
    assert!(reads > 1000 && drains > 3, "{drains} drains, {reads} reads");
}
