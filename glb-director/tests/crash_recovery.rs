//! The daemon killed, or a step failing, at every place of a start and of a reload. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::fs;

use common::{
    live::{Daemon, Site, alone, files_below, table},
    traffic::{Seen, Traffic},
};
use nix::sys::signal::Signal;

/// All failpoints, in the order in which a reload on two interfaces reaches them.
const PLACES: [&str; 11] = [
    "loaded",
    "store",
    "pinned",
    "recorded",
    "swap 0",
    "swapped 0",
    "swap 1",
    "swapped 1",
    "in force",
    "settled",
    "cleaned",
];
/// Those of them before which nothing has changed yet, so that a failure leaves all as it was.
const CAN_FAIL: [&str; 7] =
    ["loaded", "pinned", "recorded", "swap 0", "swapped 0", "swap 1", "swapped 1"];

fn old() -> String {
    table("t", 80, &[(11, "active"), (12, "active"), (13, "active")])
}

fn new() -> String {
    table("t", 80, &[(14, "active"), (15, "active"), (16, "active")])
}

fn by(seen: &Seen, hosts: std::ops::Range<u8>) -> u64 {
    let of = |hops: &&Vec<u8>| hops.iter().all(|hop| hosts.contains(hop));
    seen.by_hops.iter().filter(|(hops, _)| of(hops)).map(|(_, count)| count).sum()
}

/// None was lost, and each was handled by the old table or by the new one.
#[track_caller]
fn whole(seen: &Seen) {
    assert_eq!(seen.sent, seen.back, "{seen:?}");
    assert_eq!(by(seen, 11..14) + by(seen, 14..17), seen.sent, "{seen:?}");
}

/// Checks that pins and records are those of the active and the previous generation, on all interfaces.
#[track_caller]
fn tidy(site: &Site, daemon: &Daemon, place: &str) -> Vec<u64> {
    let in_force = site.json("status", &[])["generation"].as_u64().unwrap();
    let [a, b] = site.running();
    assert!(a.is_some() && a == b, "{place}: {a:?} and {b:?}\n{}", daemon.log());
    let pinned = site.pinned();
    assert!(pinned.len() <= 2 && pinned.contains(&in_force), "{place}: {pinned:?}");
    let records: Vec<String> = files_below(&site.at("state"))
        .iter()
        .map(|file| file.file_name().unwrap().to_str().unwrap().to_owned())
        .filter(|file| file.starts_with("generation-") || file.ends_with(".new"))
        .collect();
    let mut wanted: Vec<String> =
        pinned.iter().map(|number| format!("generation-{number}.json")).collect();
    wanted.sort();
    assert_eq!(records, wanted, "{place}: {}", daemon.log());
    pinned
}

fn gone(site: &Site) {
    let (well, said) = site.run("detach", &[]);
    assert!(well, "{said}");
    assert!(!site.pins.exists(), "{:?}", files_below(&site.pins));
    fs::remove_dir_all(site.at("state")).unwrap();
}

#[test]
fn a_daemon_killed_during_a_reload_is_adopted_without_loss() {
    alone(|site| {
        for place in PLACES {
            site.fault("");
            site.write(&old());
            let mut daemon = site.start();
            let traffic = Traffic::start("a", 1);
            site.fault(&format!("kill {place}"));
            site.write(&new());
            assert!(daemon.ended().code().is_none(), "{place}: it was not killed");
            assert!(site.running().iter().all(Option::is_some), "{place}");
            // No daemon runs, and packets are forwarded.
            std::thread::sleep(std::time::Duration::from_millis(50));
            site.fault("");
            let mut daemon = site.start();
            std::thread::sleep(std::time::Duration::from_millis(50));
            let seen = traffic.stop();
            whole(&seen);
            assert!(by(&seen, 11..14) > 0 && by(&seen, 14..17) > 0, "{place}: {seen:?}");
            let pinned = tidy(&site, &daemon, place);
            assert_eq!(pinned.len(), 2, "{place}: {pinned:?}");
            // And the way back is there.
            let traffic = Traffic::start("a", 1);
            let back = site.json("rollback", &[]);
            assert!(
                back["changed"].as_bool().unwrap_or(false),
                "{place}: {back}\n{}",
                daemon.log()
            );
            let seen = traffic.stop();
            whole(&seen);
            let traffic = Traffic::start("a", 1);
            std::thread::sleep(std::time::Duration::from_millis(20));
            let seen = traffic.stop();
            assert_eq!(by(&seen, 11..14), seen.sent, "{place}: not back at the old one: {seen:?}");
            tidy(&site, &daemon, place);
            assert!(daemon.end(Signal::SIGTERM).success());
            gone(&site);
        }
    });
}

#[test]
fn a_daemon_killed_during_its_start_can_be_started_again() {
    alone(|site| {
        site.write(&old());
        for place in PLACES.iter().chain(&["attached"]) {
            site.fault(&format!("kill {place}"));
            let mut daemon = site.spawn();
            assert!(daemon.ended().code().is_none(), "{place}: it was not killed");
            site.fault("");
            let mut daemon = site.start();
            tidy(&site, &daemon, place);
            let traffic = Traffic::start("a", 1);
            std::thread::sleep(std::time::Duration::from_millis(20));
            let seen = traffic.stop();
            assert_eq!(by(&seen, 11..14), seen.sent, "{place}: {seen:?}");
            assert!(daemon.end(Signal::SIGTERM).success());
            gone(&site);
        }
    });
}

#[test]
fn a_daemon_killed_during_a_rollback_leaves_one_of_both_generations() {
    alone(|site| {
        for place in ["store", "swap 0", "swapped 0", "swap 1", "swapped 1", "in force", "settled"]
        {
            site.fault("");
            site.write(&old());
            let mut daemon = site.start();
            site.write(&new());
            daemon.says("generation=2", 0);
            site.settles_at(&[1, 2]);
            let traffic = Traffic::start("a", 1);
            site.fault(&format!("kill {place}"));
            let (well, said) = site.run("rollback", &[]);
            assert!(!well, "{place}: {said}");
            assert!(daemon.ended().code().is_none(), "{place}: it was not killed");
            site.fault("");
            let mut daemon = site.start();
            std::thread::sleep(std::time::Duration::from_millis(50));
            whole(&traffic.stop());
            let pinned = tidy(&site, &daemon, place);
            assert_eq!(pinned, [1, 2], "{place}: {}", daemon.log());
            // From whichever there is, the way leads to the other one and back.
            let status = site.json("status", &[]);
            let first = status["generation"].as_u64().unwrap();
            assert_eq!(
                site.json("rollback", &[])["generation"].as_u64(),
                Some(3 - first),
                "{place}"
            );
            assert_eq!(site.json("rollback", &[])["generation"].as_u64(), Some(first), "{place}");
            assert!(daemon.end(Signal::SIGTERM).success());
            gone(&site);
        }
    });
}

#[test]
fn a_failed_step_leaves_all_interfaces_unchanged() {
    alone(|site| {
        site.write(&old());
        let mut daemon = site.start();
        let (running, pinned) = (site.running(), site.pinned());
        for place in CAN_FAIL {
            let traffic = Traffic::start("a", 1);
            site.fault(&format!("fail {place}"));
            site.write(&new());
            let (well, said) = site.run("reload", &[]);
            assert!(!well && said.contains("a test wants"), "{place}: {said}");
            assert_eq!((site.running(), site.pinned()), (running, pinned.clone()), "{place}");
            // The failed attempt leaves no pins that block the next one.
            whole(&traffic.stop());
            site.write(&old());
            site.fault("");
            site.run("reload", &[]);
        }
        // The disk is full: said, and not in the way.
        site.fault("fail store");
        site.write(&new());
        // The change is loaded by the watch or by this request.
        assert!(site.run("reload", &[]).0);
        daemon.says("cannot write to the state folder", 0);
        assert_ne!(site.running(), running);
        site.fault("");
        site.write(&old());
        daemon.says("the state folder is in order again", 0);
        assert!(daemon.end(Signal::SIGTERM).success());
    });
}
