//! The daemon's life: reloads, rollbacks, restarts and what they leave. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use common::{
    live::{Daemon, PATIENCE, Site, alone, files_below, table},
    traffic::Traffic,
};
use nix::{mount::MsFlags, sys::signal::Signal};

const ALL: [(u8, &str); 3] = [(11, "active"), (12, "active"), (13, "active")];
const DRAINED: [(u8, &str); 3] = [(11, "draining"), (12, "active"), (13, "active")];
const OUT: [(u8, &str); 3] = [(11, "inactive"), (12, "active"), (13, "active")];

#[test]
fn changes_of_the_file_are_loaded_and_a_burst_is_one_reload() {
    alone(|site| {
        site.write(&table("t", 80, &ALL));
        let mut daemon = site.start();
        site.settles_at(&[1]);
        site.write(&table("t", 80, &DRAINED));
        daemon.says("generation=2", 0);
        // Again and again, and signals among them.
        let from = daemon.log().len();
        for round in 0..30 {
            site.write(&table("t", 80, if round % 2 == 0 { &ALL } else { &DRAINED }));
            daemon.signal(Signal::SIGHUP);
        }
        site.write(&table("t", 80, &ALL));
        daemon.says("generation=3", from);
        std::thread::sleep(std::time::Duration::from_millis(500));
        let reloads = daemon.log()[from..].matches("in force").count();
        assert!(reloads <= 3, "{reloads} reloads:\n{}", daemon.log());
        site.settles_at(&[2, 3]);

        // An unchanged table is not loaded again, unless forced.
        let done = site.json("reload", &[]);
        assert_eq!(
            (done["generation"].as_u64(), done["changed"].as_bool()),
            (Some(3), Some(false))
        );
        let done = site.json("reload", &["--force"]);
        assert_eq!((done["generation"].as_u64(), done["changed"].as_bool()), (Some(4), Some(true)));
        let steps = done["steps"].as_array().unwrap();
        assert!(steps.len() > 8 && steps.iter().all(|step| step[1].as_f64().unwrap() >= 0.0));

        // Nonsense changes nothing, and is said where it was asked.
        site.write("nonsense");
        let (well, text) = site.run("reload", &[]);
        assert!(!well && text.contains("table.toml"), "{text}");
        site.settles_at(&[3, 4]);
        // The same file touched is not complained of again.
        let from = daemon.log().len();
        fs::File::open(site.table_file())
            .unwrap()
            .set_modified(std::time::SystemTime::now())
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert!(!daemon.log()[from..].contains("ERROR"), "{}", daemon.log());
    });
}

#[test]
fn a_restart_adopts_the_generation_and_keeps_the_rollback_target() {
    alone(|site| {
        site.write(&table("t", 80, &ALL));
        let mut daemon = site.start();
        site.write(&table("t", 80, &DRAINED));
        daemon.says("generation=2", 0);
        let running = site.running();
        assert!(running[0].is_some() && running[0] == running[1]);
        assert!(daemon.end(Signal::SIGTERM).success());
        assert_eq!(site.running(), running);

        let mut daemon = site.start();
        assert_eq!((site.running(), site.pinned()), (running, vec![1, 2]), "{}", daemon.log());
        let done = site.json("rollback", &[]);
        assert_eq!(done["generation"].as_u64(), Some(1), "{}", daemon.log());
        assert_ne!(site.running(), running);
        // Killed, it still knows, and does not load the file that was rolled back.
        daemon.signal(Signal::SIGKILL);
        daemon.ended();
        let mut daemon = site.start();
        daemon.says("was rolled back", 0);
        let status = site.json("status", &[]);
        assert_eq!(status["generation"].as_u64(), Some(1), "{status}");
        // Once more leads forth.
        assert_eq!(site.json("rollback", &[])["generation"].as_u64(), Some(2));
        assert_eq!(site.running(), running);
        assert_eq!(site.json("rollback", &[])["generation"].as_u64(), Some(1));
        // A request loads the file; a change of the file does too.
        assert_eq!(site.json("reload", &[])["generation"].as_u64(), Some(3));
        assert_eq!(site.json("rollback", &[])["generation"].as_u64(), Some(1));
        site.write(&table("t", 80, &OUT));
        daemon.says("generation=4", 0);
        site.settles_at(&[1, 4]);
        assert!(daemon.end(Signal::SIGTERM).success());

        // The file becomes invalid while no daemon runs.
        site.write("nonsense");
        let mut daemon = site.start();
        daemon.says("what runs stays", 0);
        let status = site.json("status", &[]);
        assert_eq!(status["generation"].as_u64(), Some(4));
        // The status shows it.
        assert_eq!(problems(&status), ["reload_failed"], "{status}");
        site.write(&table("t", 80, &ALL));
        daemon.says("generation=5", 0);
        becomes_well(&site, &daemon);
        assert!(daemon.end(Signal::SIGTERM).success());
        assert!(site.run("detach", &[]).0);
        assert!(!site.pins.exists());
        holders_only(&site);
    });
}

#[test]
fn unsafe_changes_are_reported_or_refused_and_can_be_forced() {
    alone(|site| {
        site.write(&table("t", 80, &ALL));
        let mut daemon = site.start();
        site.write(&table("t", 80, &OUT));
        daemon.says("can break flows", 0);
        let done = &site.json("status", &[])["last_reload"];
        assert!(done["error"].is_null(), "{done}");
        assert!(daemon.log().contains("10.0.1.11"), "{}", daemon.log());
        assert!(daemon.end(Signal::SIGTERM).success());

        site.configure("on_unsafe = \"refuse\"\n");
        site.write(&table("t", 80, &ALL));
        let mut daemon = site.start();
        // Draining it first reduces the risk, but it may still hold flows.
        site.write(&table("t", 80, &DRAINED));
        daemon.says("generation=4", 0);
        site.write(&table("t", 80, &OUT));
        daemon.says("on_unsafe", 0);
        let (well, text) = site.run("reload", &[]);
        assert!(!well && text.contains("--force") && text.contains("10.0.1.11"), "{text}");
        // A restart does not forget it, and does not take the file.
        assert!(daemon.end(Signal::SIGTERM).success());
        let mut daemon = site.start();
        daemon.says("what runs stays", 0);
        let (well, text) = site.run("mark-drained", &["10.0.1.99"]);
        assert!(!well && text.contains("10.0.1.12"), "{text}");
        let (well, text) = site.run("mark-drained", &["10.0.1.11"]);
        assert!(well && text.contains("10.0.1.11"), "{text}");
        let done = site.json("reload", &[]);
        assert_eq!(done["at_risk"].as_f64(), Some(0.0), "{done}");
        // A backend that was not drained is removed by force.
        site.write(&table("t", 80, &ALL[..2]));
        daemon.says("on_unsafe", daemon.log().len());
        let done = site.json("reload", &["--force"]);
        assert!(done["at_risk"].as_f64().unwrap() > 0.3, "{done}");
        // The memory is damaged: said, and survived.
        assert!(daemon.end(Signal::SIGTERM).success());
        let holders = site.at("state/holders");
        let bytes = fs::read(&holders).unwrap();
        fs::write(&holders, &bytes[..bytes.len() / 2]).unwrap();
        let mut daemon = site.start();
        daemon.says("flow history was lost", 0);
        assert!(files_below(&site.at("state")).iter().all(|file| !file.ends_with(".new")));
        // All of it is lost: said too, and nothing else.
        assert!(daemon.end(Signal::SIGTERM).success());
        fs::remove_dir_all(site.at("state")).unwrap();
        let mut daemon = site.start();
        daemon.says("the state folder has no record of the generation", 0);
        assert!(daemon.end(Signal::SIGTERM).success());
    });
}

#[test]
fn unsafe_changes_are_refused_after_an_upgrade_too() {
    alone(|site| {
        site.write(&table("t", 80, &ALL));
        let mut daemon = site.start();
        assert!(daemon.end(Signal::SIGTERM).success());
        // As after an upgrade: what runs cannot be taken over, and the table has changed meanwhile.
        site.configure("on_unsafe = \"refuse\"\nouter_tos = 0\n");
        site.write(&table("t", 80, &ALL[..2]));
        let mut daemon = site.start();
        daemon.says("another release", 0);
        let status = site.json("status", &[]);
        assert_eq!(problems(&status), ["reload_failed"], "{status}");
        let error = status["last_reload"]["error"].as_str().unwrap();
        assert!(error.contains("10.0.1.13") && error.contains("--force"), "{error}");
        assert_eq!(status["generation"].as_u64(), Some(2), "{status}");
        let backends = site.json("show", &["backends"]);
        assert_eq!(backends.as_array().unwrap().len(), 3, "{backends}");
        // It is made when it is forced, and when it is allowed.
        site.json("reload", &["--force"]);
        assert_eq!(site.json("show", &["backends"]).as_array().unwrap().len(), 2);
        assert!(daemon.end(Signal::SIGTERM).success());
        site.configure("");
        site.write(&table("t", 80, &ALL[..1]));
        let mut daemon = site.start();
        daemon.says("can break flows", 0);
        assert_eq!(site.json("show", &["backends"]).as_array().unwrap().len(), 1);
        assert!(daemon.end(Signal::SIGTERM).success());
    });
}

/// The table file cannot be read for a while.
fn vanishes_and_is_back(site: &Site, daemon: &Daemon) {
    let (file, aside) = (site.table_file(), site.at("aside"));
    fs::rename(&file, &aside).unwrap();
    fs::create_dir(&file).unwrap();
    let (well, text) = site.run("reload", &[]);
    assert!(!well && text.contains("not a regular file"), "{text}");
    assert_eq!(problems(&site.json("status", &[])), ["reload_failed"]);
    fs::remove_dir(&file).unwrap();
    fs::rename(&aside, &file).unwrap();
    becomes_well(site, daemon);
}

#[test]
fn the_problem_ends_when_the_table_file_is_readable_again() {
    alone(|site| {
        site.write(&table("t", 80, &ALL));
        let mut daemon = site.start();
        vanishes_and_is_back(&site, &daemon);
        // The table that was rolled back is not loaded by that.
        site.write(&table("t", 80, &DRAINED));
        daemon.says("generation=2", 0);
        assert_eq!(site.json("rollback", &[])["generation"].as_u64(), Some(1));
        vanishes_and_is_back(&site, &daemon);
        assert_eq!(site.json("status", &[])["generation"].as_u64(), Some(1));
        assert!(daemon.end(Signal::SIGTERM).success());
    });
}

/// Waits until nothing is wrong any more.
#[track_caller]
fn becomes_well(site: &Site, daemon: &Daemon) {
    let begun = Instant::now();
    loop {
        let status = site.json("status", &[]);
        if problems(&status).is_empty() {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{status}\n{}", daemon.log());
        thread::sleep(Duration::from_millis(20));
    }
}

/// The names of the status's problems.
fn problems(status: &serde_json::Value) -> Vec<&str> {
    let problems = status["problems"].as_array().unwrap();
    problems.iter().map(|problem| problem["name"].as_str().unwrap()).collect()
}

/// A detach removes the records, which hold keys.
fn holders_only(site: &Site) {
    let state = site.at("state");
    assert_eq!(files_below(&state), [state.join("holders"), state.join("pin")]);
}

#[test]
fn a_rollback_without_a_target_is_not_a_failed_reload() {
    alone(|site| {
        site.write(&table("t", 80, &ALL));
        let mut daemon = site.start();
        let (well, text) = site.run("rollback", &[]);
        assert!(!well && text.contains("no previous generation"), "{text}");
        let status = site.json("status", &[]);
        assert_eq!(status["failed_reloads"].as_u64(), Some(0), "{status}");
        assert!(problems(&status).is_empty(), "{status}");
        assert_eq!(status["phase"], "running", "{status}");
        assert!(daemon.end(Signal::SIGTERM).success());
    });
}

#[test]
fn sigterm_detaches_if_configured() {
    alone(|site| {
        site.configure("on_stop = \"detach\"\n");
        site.write(&table("t", 80, &ALL));
        let mut daemon = site.start();
        assert!(site.running()[0].is_some());
        assert!(daemon.end(Signal::SIGTERM).success());
        assert!(!site.pins.exists(), "{:?}", files_below(&site.pins));
        assert!(daemon.log().contains("ended and detached"), "{}", daemon.log());
        holders_only(&site);
    });
}

/// Removes what `of` names below the pin folder, as somebody might who tidies up.
fn remove(site: &Site, of: &str) {
    let path = if of.is_empty() { site.pins.clone() } else { site.pins.join(of) };
    fs::remove_dir_all(path).unwrap();
}

#[test]
fn removed_pins_are_made_again_without_loss() {
    alone(|site| {
        site.write(&table("t", 80, &ALL));
        let mut daemon = site.start();
        site.write(&table("t", 80, &DRAINED));
        daemon.says("generation=2", 0);
        site.settles_at(&[1, 2]);
        // Also of a generation that was taken over, of which this process made nothing.
        for is_adopted in [false, true] {
            if is_adopted {
                daemon.signal(Signal::SIGKILL);
                daemon.ended();
                daemon = site.start();
            }
            let (running, files) = (site.running(), files_below(&site.pins));
            for of in ["", "links", "counters", "generations"] {
                let traffic = Traffic::start("a", 1);
                let from = daemon.log().len();
                remove(&site, of);
                daemon.says("had removed pins", from);
                let seen = traffic.stop();
                assert_eq!(seen.sent, seen.back, "{of}");
                assert_eq!(files_below(&site.pins), files, "{of}: {}", daemon.log());
                assert_eq!(site.running(), running, "{of}");
                becomes_well(&site, &daemon);
                // It is locked again.
                let (well, text) = site.run("detach", &[]);
                assert!(!well && text.contains("holds it"), "{text}");
            }
            assert!(!daemon.log().contains("ERROR"), "{}", daemon.log());
        }
        // By whichever part of the daemon needs it first.
        remove(&site, "owned-by-glb-director");
        let begun = Instant::now();
        while !site.pins.join("owned-by-glb-director").is_dir() {
            assert!(begun.elapsed() < PATIENCE, "{}", daemon.log());
            thread::sleep(Duration::from_millis(20));
        }
        // At once, where something is wanted of it.
        let before = site.encapsulated();
        assert!(before > 0);
        remove(&site, "");
        assert_eq!(site.json("rollback", &[])["generation"].as_u64(), Some(1), "{}", daemon.log());
        assert_eq!(site.json("reload", &["--force"])["changed"].as_bool(), Some(true));
        assert_eq!(site.encapsulated(), before);
        // The next daemon adopts the repaired pins.
        let running = site.running();
        daemon.signal(Signal::SIGKILL);
        daemon.ended();
        assert_eq!(site.running(), running);
        let mut daemon = site.start();
        assert_eq!(site.running(), running, "{}", daemon.log());
        assert!(daemon.end(Signal::SIGTERM).success());
    });
}

#[test]
fn pins_that_cannot_be_repaired_are_a_problem() {
    alone(|site| {
        site.write(&table("t", 80, &ALL));
        let mut daemon = site.start();
        // It looks only when both has been done.
        daemon.signal(Signal::SIGSTOP);
        remove(&site, "");
        site.remount(MsFlags::MS_RDONLY);
        daemon.signal(Signal::SIGCONT);
        daemon.says("cannot be made again", 0);
        let status = site.json("status", &[]);
        assert!(problems(&status).contains(&"pins_lost"), "{status}");
        let (well, text) = site.run("doctor", &[]);
        assert!(!well && text.contains("pins of this director were removed"), "{text}");
        // Packets do not need them.
        let traffic = Traffic::start("a", 1);
        thread::sleep(Duration::from_millis(200));
        let seen = traffic.stop();
        assert!(seen.sent > 0 && seen.sent == seen.back);
        site.remount(MsFlags::empty());
        daemon.says("had removed pins", 0);
        assert_eq!(daemon.log().matches("cannot be made again").count(), 1, "{}", daemon.log());
        assert!(problems(&site.json("status", &[])).is_empty());
        assert!(daemon.end(Signal::SIGTERM).success());
    });
}
