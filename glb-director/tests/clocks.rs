//! Clocks that jump under a running daemon, and between one daemon and the next. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    fs,
    os::unix::net::UnixDatagram,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use common::{
    live::{Daemon, PATIENCE, Site, alone, table},
    traffic::Traffic,
};
use nix::sys::signal::Signal;
use serde_json::Value;

const ALL: [(u8, &str); 3] = [(11, "active"), (12, "active"), (13, "active")];
const DRAINED: [(u8, &str); 3] = [(11, "draining"), (12, "active"), (13, "active")];
const OUT: [(u8, &str); 3] = [(11, "inactive"), (12, "active"), (13, "active")];

/// All that this test takes, in seconds, and more.
const LONG: f64 = 1_000.0;

/// What the daemon says of times is what has passed, once it has counted so many reloads: the log knows
/// of one a moment before.
#[track_caller]
fn ages_are_true(site: &Site, daemon: &Daemon, reloads: u64) {
    let begun = Instant::now();
    let status = loop {
        let status = site.json("status", &[]);
        if status["reloads"].as_u64() == Some(reloads) {
            break status;
        }
        assert!(begun.elapsed() < PATIENCE, "not {reloads} reloads: {status}\n{}", daemon.log());
        thread::sleep(Duration::from_millis(10));
    };
    let last = &status["last_reload"];
    let ages = [&status["uptime_seconds"], &status["generation_age_seconds"]];
    for age in ages.into_iter().chain((!last.is_null()).then_some(&last["age_seconds"])) {
        let age = age.as_f64().unwrap_or(-1.0);
        assert!((0.0..LONG).contains(&age), "{status}\n{}", daemon.log());
    }
    if !last.is_null() {
        assert!((0.0..60.0).contains(&last["seconds"].as_f64().unwrap()), "{status}");
    }
    // People read the same: nothing is days old.
    for words in [&["status"][..], &["show", "generations"]] {
        let (_, text) = site.run(words[0], &words[1..]);
        assert!(!text.contains(" d "), "{text}");
    }
    assert_eq!(status["problems"].as_array().map(Vec::len), Some(0), "{status}");
}

/// A backend that may hold flows is still known to, and not one second was taken from that.
#[track_caller]
fn is_remembered(site: &Site, daemon: &mut Daemon) {
    let from = daemon.log().len();
    site.write(&table("t", 80, &OUT));
    daemon.says(" in force ", from);
    assert!(daemon.log()[from..].contains("can break flows"), "{}", daemon.log());
    let from = daemon.log().len();
    site.write(&table("t", 80, &DRAINED));
    daemon.says(" in force ", from);
}

/// A service manager: how often it was told that the loop turns. It reads all the time, as the real one
/// does.
fn service_manager(path: &Path) -> Arc<AtomicUsize> {
    let socket = UnixDatagram::bind(path).unwrap();
    let turns = Arc::new(AtomicUsize::new(0));
    let counted = Arc::downgrade(&turns);
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Some(turns) = counted.upgrade() {
            let Ok(length) = socket.recv(&mut bytes) else { continue };
            let is_turn = String::from_utf8_lossy(&bytes[..length]).contains("WATCHDOG=1");
            turns.fetch_add(usize::from(is_turn), Ordering::Relaxed);
        }
    });
    turns
}

/// The year that the last line of a log is from.
fn year(daemon: &Daemon) -> i64 {
    let log = daemon.log();
    log.lines().last().and_then(|line| line.get(..4)?.parse().ok()).expect(&log)
}

#[test]
fn calendar_jumps_change_nothing() {
    alone(|site| {
        site.configure("flow_age = \"1d\"");
        site.write(&table("t", 80, &ALL));
        // Its calendar is what this file says, again at each look; the other clocks are the kernel's.
        let clock = site.at("clock");
        fs::write(&clock, "+0").unwrap();
        let mut faketime = Command::new("faketime");
        let library = faketime.args(["-f", "+0", "printenv", "LD_PRELOAD"]).output().unwrap();
        let library = String::from_utf8(library.stdout).unwrap();
        let notify = site.at("notify");
        let turns = service_manager(&notify);
        let run = || {
            // The watchdog is meant for one process, which is named: the shell becomes the daemon.
            let shell = ["sh", "-c", "WATCHDOG_PID=$$ exec \"$@\"", "sh"];
            let mut run = site.command_by(&shell, "run");
            run.env("NOTIFY_SOCKET", &notify).env("WATCHDOG_USEC", "1000000");
            run.env("LD_PRELOAD", library.trim()).env("FAKETIME_TIMESTAMP_FILE", &clock);
            run.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
            site.start_by(run)
        };
        let mut daemon = run();
        let now = year(&daemon);
        site.write(&table("t", 80, &DRAINED));
        daemon.says("generation=2", 0);
        let traffic = Traffic::start("a", 1);
        let mut reloads = 1;
        for (jump, years) in [("+2y", 1..=3), ("-2y", -3..=-1), ("+0", 0..=0)] {
            fs::write(&clock, jump).unwrap();
            ages_are_true(&site, &daemon, reloads);
            // Neither silence nor a storm, in the watchdog or in the reloads.
            let told = turns.load(Ordering::Relaxed);
            thread::sleep(Duration::from_secs(3));
            let told = turns.load(Ordering::Relaxed) - told;
            assert!((2..=12).contains(&told), "{jump}: {told} in 3 s");
            ages_are_true(&site, &daemon, reloads);
            is_remembered(&site, &mut daemon);
            ages_are_true(&site, &daemon, reloads + 2);
            // The jump was one: the log has its date.
            let moved = year(&daemon) - now;
            assert!(years.contains(&moved), "{jump}: {moved} years\n{}", daemon.log());
            // The next one starts under the new date, and takes over what is there.
            let running = site.running();
            daemon.signal(Signal::SIGKILL);
            daemon.ended();
            daemon = run();
            assert_eq!(site.running(), running, "{}", daemon.log());
            ages_are_true(&site, &daemon, 0);
            is_remembered(&site, &mut daemon);
            reloads = 2;
        }
        let seen = traffic.stop();
        assert_eq!(seen.sent, seen.back);
        assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
        assert!(daemon.end(Signal::SIGTERM).success());
    });
}

#[test]
fn flow_history_survives_another_time_namespace() {
    alone(|site| {
        site.configure("flow_age = \"1d\"");
        site.write(&table("t", 80, &ALL));
        let mut daemon = site.start();
        site.write(&table("t", 80, &DRAINED));
        daemon.says("generation=2", 0);
        let up = fs::read_to_string("/proc/uptime").unwrap();
        let up: f64 = up.split('.').next().unwrap().parse().unwrap();
        let traffic = Traffic::start("a", 1);
        // Ten years on, back to half of the machine's age, and as it was.
        for offset in [315_360_000, -(up as i64) / 2, 0] {
            let running = site.running();
            daemon.signal(Signal::SIGKILL);
            daemon.ended();
            let offset = offset.to_string();
            let unshare = ["unshare", "--time", "--monotonic", &offset, "--boottime", &offset];
            daemon = site.start_by(site.command_by(&unshare, "run"));
            let offsets = format!("/proc/{}/timens_offsets", daemon.child.id());
            assert!(fs::read_to_string(offsets).unwrap().contains(&offset));
            assert_eq!(site.running(), running, "{}", daemon.log());
            ages_are_true(&site, &daemon, 0);
            is_remembered(&site, &mut daemon);
            ages_are_true(&site, &daemon, 2);
            let done: Value = site.json("rollback", &[]);
            assert_eq!(done["changed"].as_bool(), Some(true), "{done}");
            let done = site.json("rollback", &[]);
            assert_eq!(done["changed"].as_bool(), Some(true), "{done}");
            assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
        }
        let seen = traffic.stop();
        assert_eq!(seen.sent, seen.back);
        assert!(seen.slowest < PATIENCE);
        assert!(daemon.end(Signal::SIGTERM).success());
    });
}
