//! A change of the tables withdraws what it ends to serve before it is made, never after. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use common::{
    bird::{Bird, wait},
    live::{Site, alone, table},
    traffic::Stream,
};
use glb_director::counters;
use glb_host::{bpffs::PinFolder, generations::link_pin, xdp_link::program_behind};
use nix::sys::signal::Signal;

const WELL: [(u8, &str); 2] = [(11, "active"), (12, "active")];
const ILL: [(u8, &str); 2] = [(11, "draining"), (12, "draining")];

/// The announced VIP's table, 198.51.100.1, with these backends.
fn web(backends: &[(u8, &str)]) -> String {
    table("web", 80, backends)
}

/// Another one, which nothing announces.
fn other() -> String {
    table("other", 80, &WELL).replace("198.51.100.1", "198.51.100.2")
}

fn both() -> String {
    web(&WELL) + &other()
}

const LIMITS: &str = "drain = { quiet = \"300ms\", timeout = \"20s\" }\n\
                      withdraw = { timeout = \"1500ms\", grace = \"700ms\" }\n";

fn configure(site: &Site, way: &str) {
    site.configure(&format!(
        "{LIMITS}[[announce]]\nname = \"web\"\nprefixes = [\"198.51.100.1/32\"]\nwithdraw_below = 1\n{way}\n"
    ));
    site.write(&both());
}

const BY_BIRD: &str = "method = \"bird\"\nsocket = \"bird.ctl\"\nprotocols = [\"vip\"]";

/// One look at everything, in the order of the fields.
#[derive(Clone, Debug, PartialEq)]
struct Look {
    announced: bool,
    program: Option<u32>,
    /// Packets to the VIP that the director has counted as its own.
    packets: u64,
}

/// Looks again and again, from a thread in this network.
struct Reader {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Vec<Look>>,
}

impl Reader {
    fn start(pins: PinFolder, mut announced: impl FnMut() -> bool + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut looks = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let announced = announced();
                let program = program_behind(&link_pin(&pins, "a")).unwrap();
                looks.push(Look { announced, program, packets: packets(&pins) });
                thread::sleep(Duration::from_millis(5));
            }
            looks
        });
        Self { stop, thread }
    }

    fn stop(self) -> Vec<Look> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn packets(pins: &PinFolder) -> u64 {
    let report = counters::read(pins).unwrap();
    let web = report.tables.iter().find(|table| table.name == "web");
    web.map_or(0, |table| table.reasons.values().map(|count| count.packets).sum())
}

/// What was seen says that the old program went on serving after the withdrawal was seen, and that
/// nothing was announced once the new program had been seen.
fn in_order(looks: &[Look]) {
    let (old, new) = (looks[0].program, looks[looks.len() - 1].program);
    assert!(looks[0].announced && old != new, "{looks:?}");
    let gone = looks.iter().position(|look| !look.announced).expect("withdrawn");
    let swapped = looks.iter().position(|look| look.program == new).unwrap();
    // In a look the announcement is read first: it was withdrawn while the old program was there.
    assert!(gone < swapped && looks[gone].program == old, "{:?}", &looks[gone - 1..=gone]);
    assert!(looks[swapped..].iter().all(|look| !look.announced), "{looks:?}");
    // A packet that comes after the withdrawal is served; none is once the table is gone.
    let between = looks[swapped - 1].packets - looks[gone].packets;
    assert!(between > 10, "{between} packets between withdrawal and swap");
    let after = &looks[swapped..];
    assert_eq!(
        after.last().unwrap().packets,
        after[0].packets,
        "it was swapped when it was seen so"
    );
}

/// A VIP leaves the table by a reload, comes back, and leaves it by a rollback.
fn a_vip_leaves(site: &Site, announced: impl FnMut() -> bool + Clone + Send + 'static) {
    let mut daemon = site.start();
    let seen = |what: &str, wanted: bool| {
        let mut announced = announced.clone();
        wait(what, || (announced() == wanted).then_some(()));
    };
    seen("the announcement", true);
    let _stream = Stream::start("a", 1, Duration::from_millis(2));
    let leaves = |change: &dyn Fn()| {
        let reader = Reader::start(site.pins(), announced.clone());
        thread::sleep(Duration::from_millis(100));
        let before = site.running();
        change();
        wait("the change", || (site.running() != before).then_some(()));
        thread::sleep(Duration::from_millis(200));
        in_order(&reader.stop());
    };
    leaves(&|| site.write(&other()));
    let from = daemon.log().len();
    site.write(&both());
    seen("the announcement", true);
    daemon.says("announced", from);
    leaves(&|| {
        let (well, text) = site.run("rollback", &[]);
        assert!(well && text.contains("withdraw"), "{text}");
    });
    // Nothing stays that would keep it from being announced again.
    assert!(site.run("rollback", &[]).0);
    seen("the announcement", true);
    // A stop: withdrawn, then detached.
    let reader = Reader::start(site.pins(), announced.clone());
    thread::sleep(Duration::from_millis(100));
    let drain = site.command("drain").stderr(std::process::Stdio::null()).spawn();
    seen("the withdrawal", false);
    drop(_stream);
    assert!(drain.unwrap().wait().unwrap().success());
    let looks = reader.stop();
    assert!(looks.iter().all(|look| look.program == looks[0].program));
    daemon.end(Signal::SIGTERM);
}

#[test]
fn by_bird() {
    alone(|site| {
        configure(&site, BY_BIRD);
        let bird = Bird::start(&site);
        let socket = bird.socket.clone();
        a_vip_leaves(&site, move || {
            let birdc =
                Command::new("birdc").arg("-s").arg(&socket).args(["show", "route"]).output();
            String::from_utf8(birdc.unwrap().stdout).unwrap().contains("198.51.100.1/32")
        });
    });
}

#[test]
fn by_tun() {
    alone(|site| {
        configure(&site, "method = \"tun\"\ninterface = \"vip\"");
        a_vip_leaves(&site, || {
            let ip = Command::new("ip").args(["route", "show", "198.51.100.1"]).output();
            !ip.unwrap().stdout.is_empty()
        });
    });
}

#[test]
fn by_hook() {
    alone(|site| {
        let (hook, state) = (site.at("hook"), site.at("state-of-hook"));
        fs::write(&hook, format!("#!/bin/sh\nsleep 0.1\necho $1 > {}\n", state.display())).unwrap();
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
        configure(&site, "method = \"exec\"\ncommand = [\"./hook\"]");
        // An empty file is one that is being written: what it said before holds.
        let mut last = false;
        a_vip_leaves(&site, move || {
            let text = fs::read_to_string(&state).unwrap_or_default();
            last = if text.is_empty() { last } else { text == "announce\n" };
            last
        });
    });
}

/// Of a table that stays in force, with too few healthy backends.
#[test]
fn too_few_healthy_backends_are_withdrawn_before_their_table_is_in_force() {
    alone(|site| {
        configure(&site, BY_BIRD);
        let bird = Bird::start(&site);
        let mut daemon = site.start();
        bird.announces(&["vip"]);
        // Held between withdrawal and swap, so that the order can be seen.
        site.fault("hold pinned");
        let before = site.running();
        site.write(&(web(&ILL) + &other()));
        bird.announces(&[]);
        assert_eq!(site.running(), before);
        site.fault("");
        wait("the swap", || (site.running() != before).then_some(()));
        bird.announces(&[]);
        // A BIRD that hangs holds up nothing that concerns health.
        let from = daemon.log().len();
        site.write(&both());
        bird.announces(&["vip"]);
        daemon.says("in force", from);
        bird.signal(Signal::SIGSTOP);
        let (from, before) = (daemon.log().len(), site.running());
        site.write(&(web(&ILL) + &other()));
        daemon.says("too few healthy backends, withdrawal not confirmed", from);
        daemon.says("in force", from);
        assert_ne!(site.running(), before);
        bird.signal(Signal::SIGCONT);
        bird.announces(&[]);
    });
}

#[test]
fn what_cannot_be_withdrawn_is_served_on_until_it_is() {
    alone(|site| {
        configure(&site, BY_BIRD);
        let bird = Bird::start(&site);
        let mut daemon = site.start();
        bird.announces(&["vip"]);
        bird.signal(Signal::SIGSTOP);
        let before = site.running();
        site.write(&other());
        daemon.says("cannot withdraw what the new table does not serve", 0);
        // Whoever asks again has the reason at once.
        let reason = "BIRD on ";
        wait("the reason", || {
            let (well, text) = site.run("reload", &[]);
            assert!(!well && text.contains("announcement \"web\" (method \"bird\")"), "{text}");
            text.contains(reason).then_some(())
        });
        assert_eq!(site.running(), before, "it is served on");
        // By itself, as soon as BIRD goes on.
        bird.signal(Signal::SIGCONT);
        wait("the change", || (site.running() != before).then_some(()));
        bird.announces(&[]);

        // The file is put right meanwhile: it is announced on.
        site.write(&both());
        bird.announces(&["vip"]);
        bird.signal(Signal::SIGSTOP);
        let (before, from) = (site.running(), daemon.log().len());
        site.write(&other());
        daemon.says("cannot withdraw what the new table does not serve", from);
        site.write(&both());
        daemon.says("in force already", from);
        bird.signal(Signal::SIGCONT);
        thread::sleep(Duration::from_secs(1));
        bird.announces(&["vip"]);
        assert_eq!(site.running(), before);

        // Whoever cannot wait does not: a reload, and a rollback.
        bird.signal(Signal::SIGSTOP);
        let from = daemon.log().len();
        site.write(&other());
        daemon.says("cannot withdraw what the new table does not serve", from);
        let (well, text) = site.run("reload", &["--force"]);
        assert!(well, "{text}");
        assert_ne!(site.running(), before);
        assert!(daemon.log()[from..].contains("forced change: VIPs lose service"));
        bird.signal(Signal::SIGCONT);
        bird.announces(&[]);
        assert!(site.run("rollback", &[]).0);
        bird.announces(&["vip"]);
        bird.signal(Signal::SIGSTOP);
        let before = site.running();
        let (well, text) = site.run("rollback", &[]);
        assert!(!well && text.contains("--force"), "{text}");
        assert_eq!(site.running(), before);
        assert!(site.run("rollback", &["--force"]).0);
        bird.signal(Signal::SIGCONT);
        bird.announces(&[]);
    });
}

/// The table changes while the daemon is away, and BIRD announces what its predecessor wanted.
#[test]
fn a_start_withdraws_before_it_loads_what_has_changed_meanwhile() {
    alone(|site| {
        configure(&site, BY_BIRD);
        let bird = Bird::start(&site);
        for hangs in [false, true] {
            site.write(&both());
            let mut daemon = site.start();
            bird.announces(&["vip"]);
            daemon.end(Signal::SIGKILL);
            site.write(&other());
            let before = site.running();
            if hangs {
                bird.signal(Signal::SIGSTOP);
                let mut daemon = site.start();
                daemon.says("cannot withdraw what the new table does not serve", 0);
                assert_eq!(site.running(), before, "it is served on");
                bird.signal(Signal::SIGCONT);
                wait("the change", || (site.running() != before).then_some(()));
                bird.announces(&[]);
            } else {
                site.fault("hold pinned");
                let mut daemon = site.spawn();
                bird.announces(&[]);
                assert_eq!(site.running(), before);
                site.fault("");
                daemon.says("ready", 0);
                assert_ne!(site.running(), before);
                bird.announces(&[]);
                daemon.end(Signal::SIGTERM);
            }
        }
    });
}

#[test]
fn a_stuck_announcer_keeps_what_it_cannot_withdraw_in_service_and_nothing_else_from_being_done() {
    alone(|site| {
        configure(&site, BY_BIRD);
        let bird = Bird::start(&site);
        let mut daemon = site.start();
        bird.announces(&["vip"]);
        site.fault("hold announcing");
        // What concerns no announcement goes on as ever.
        let before = site.running();
        site.write(&(web(&WELL) + &other().replace("10.0.1.12", "10.0.1.13")));
        wait("the change", || (site.running() != before).then_some(()));
        let (before, from) = (site.running(), daemon.log().len());
        site.write(&other());
        daemon.says("the announcement thread does not answer", from);
        assert_eq!(site.running(), before);
        site.fault("");
        wait("the change", || (site.running() != before).then_some(()));
        bird.announces(&[]);
    });
}

/// Killed at any step, the daemon's successor ends what it has begun.
#[test]
fn killed_between_withdrawal_and_swap_its_successor_goes_on() {
    alone(|site| {
        configure(&site, BY_BIRD);
        let bird = Bird::start(&site);
        for place in ["pinned", "recorded", "swap 0", "in force"] {
            site.write(&both());
            let mut daemon = site.start();
            bird.announces(&["vip"]);
            site.fault(&format!("kill {place}"));
            site.write(&other());
            assert!(daemon.ended().code().is_none(), "{place}: {}", daemon.log());
            bird.announces(&[]);
            site.fault("");
            let mut daemon = site.start();
            thread::sleep(Duration::from_millis(500));
            bird.announces(&[]);
            // And with the file put right, it is announced.
            site.write(&both());
            bird.announces(&["vip"]);
            daemon.end(Signal::SIGTERM);
        }
    });
}

#[test]
fn a_vip_that_comes_and_goes_ends_as_its_table_says() {
    alone(|site| {
        configure(&site, "method = \"tun\"\ninterface = \"vip\"");
        let _daemon = site.start();
        let routed = || {
            let ip = Command::new("ip").args(["route", "show", "198.51.100.1"]).output();
            !ip.unwrap().stdout.is_empty()
        };
        wait("the route", || routed().then_some(()));
        let in_force = |site: &Site| {
            let status = site.json("status", &[]);
            (status["generation"].clone(), status["membership_digest"].clone())
        };
        let (_, serving) = in_force(&site);
        let mut seen = std::collections::BTreeSet::new();
        for round in 0..60 {
            site.write(&if round % 2 == 0 { other() } else { both() });
            if round % 20 == 10 {
                // Somebody takes the interface away too.
                drop(Command::new("ip").args(["link", "del", "vip"]).output());
            }
            let before = in_force(&site);
            let routed = routed();
            if before == in_force(&site) {
                let serves = before.1 == serving;
                assert!(serves || !routed, "round {round}: routed, and not served");
                seen.insert((serves, routed));
            }
            thread::sleep(Duration::from_millis([10, 300, 1_200][round % 3]));
        }
        assert!(seen.contains(&(false, false)), "{seen:?}");
        site.write(&both());
        wait("the route", || routed().then_some(()));
        assert_eq!(in_force(&site).1, serving);
    });
}
