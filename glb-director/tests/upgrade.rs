//! A new release, interfaces that come and go, and other odd beginnings. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use aya::maps::{Array, MapData, PerCpuArray, PerCpuValues};
use common::{
    live::{PATIENCE, Site, alone, files_below, ip, table},
    traffic::Traffic,
};
use glb_director::counters;
use glb_host::{
    generations::folder,
    xdp_link::{Mode, attached},
};
use nix::sys::signal::Signal;

const ALL: [(u8, &str); 3] = [(11, "active"), (12, "active"), (13, "active")];
const DRAINED: [(u8, &str); 3] = [(11, "draining"), (12, "active"), (13, "active")];

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Puts another map in the place of a pinned one.
fn replace_pin<V: aya::Pod>(site: &Site, name: &str, entries: u32, values: &[(u32, V)]) {
    let mut array = PerCpuArray::<MapData, V>::create(entries, 0).unwrap();
    let cpus = aya::util::nr_cpus().unwrap();
    for (index, value) in values {
        let all = PerCpuValues::try_from(vec![*value; cpus]).unwrap();
        array.set(*index, all, 0).unwrap();
    }
    let path = site.pins.join(name);
    fs::remove_file(&path).unwrap();
    array.pin(path).unwrap();
}

#[test]
fn counters_of_another_layout_are_migrated() {
    alone(|site| {
        site.write(&table("t", 80, &ALL));
        let mut daemon = site.start();
        assert!(daemon.end(Signal::SIGTERM).success());
        // As a former release might have made them: fewer reasons for fewer tables. Slot 2 is the
        // first table's, reason 0 "encapsulated".
        let cpus = aya::util::nr_cpus().unwrap() as u64;
        let mut value = [[0u64; 2]; 8];
        value[0] = [1_000, 64_000];
        replace_pin(&site, counters::pins::TABLES, 512, &[(2, value)]);
        assert!(site.run("counters", &[]).1.contains("error"));
        // The running program still counts in the old maps; the new release continues with the pinned ones.
        let traffic = Traffic::start("a", 1);
        let mut daemon = site.start();
        daemon.says("another release", 0);
        std::thread::sleep(Duration::from_millis(50));
        let seen = traffic.stop();
        assert_eq!(seen.sent, seen.back);
        let counted = site.encapsulated();
        assert!(
            counted > 1_000 * cpus && counted <= 1_000 * cpus + seen.sent,
            "{counted} {seen:?}"
        );
        let left = files_below(&site.pins.join("counters"));
        assert_eq!(left.len(), 3, "{left:?}");
        assert!(daemon.end(Signal::SIGTERM).success());

        // The counts cannot be attributed any more: all begin at 0, and packets are forwarded.
        let path = site.pins.join(counters::pins::IDENTITIES);
        fs::remove_file(&path).unwrap();
        Array::<MapData, u32>::create(7, 0).unwrap().pin(&path).unwrap();
        let traffic = Traffic::start("a", 1);
        let mut daemon = site.start();
        daemon.says("begin at 0", 0);
        std::thread::sleep(Duration::from_millis(50));
        let seen = traffic.stop();
        assert_eq!(seen.sent, seen.back);
        assert!((1..=seen.sent).contains(&site.encapsulated()));
        assert!(daemon.end(Signal::SIGTERM).success());
    });
}

#[test]
fn old_counters_are_restored_after_a_kill_before_the_swap() {
    alone(|site| {
        site.write(&table("t", 80, &ALL));
        let mut daemon = site.start();
        assert!(daemon.end(Signal::SIGTERM).success());
        replace_pin(&site, counters::pins::TABLES, 512, &[(2, [[500u64, 0]; 8])]);
        site.fault("kill swap 0");
        let mut daemon = site.spawn();
        assert!(daemon.ended().code().is_none(), "{}", daemon.log());
        site.fault("");
        let mut daemon = site.start();
        let cpus = aya::util::nr_cpus().unwrap() as u64;
        assert_eq!(site.encapsulated(), 500 * cpus, "{}", daemon.log());
        let left = files_below(&site.pins.join("counters"));
        assert_eq!(left.len(), 3, "{left:?}");
        assert!(daemon.end(Signal::SIGTERM).success());
    });
}

#[test]
fn an_upgrade_loses_no_packet_and_can_be_rolled_back() {
    alone(|site| {
        site.write(&table("t", 80, &ALL));
        let mut daemon = site.start();
        site.write(&table("t", 80, &DRAINED));
        daemon.says("generation=2", 0);
        site.settles_at(&[1, 2]);
        let before = site.running();
        assert!(daemon.end(Signal::SIGTERM).success());
        // Its backends have another layout, and its record says that it is another program's.
        for number in [1, 2] {
            let path = folder(&site.pins(), number).join("backends");
            fs::remove_file(&path).unwrap();
            Array::<MapData, [u8; 24]>::create(3, 0).unwrap().pin(&path).unwrap();
        }
        let traffic = Traffic::start("a", 1);
        let mut daemon = site.start();
        daemon.says("another release made it", 0);
        daemon.says("generation=3", 0);
        let after = site.running();
        assert!(after[0] != before[0] && after[0] == after[1]);
        let seen = traffic.stop();
        assert_eq!(seen.sent, seen.back);
        site.settles_at(&[2, 3]);

        // The previous one's program cannot be kept fresh: its table comes back with this one's.
        site.write(&table("t", 80, &ALL));
        daemon.says("generation=4", 0);
        assert!(daemon.end(Signal::SIGTERM).success());
        let record = site.at("state/generation-3.json");
        let text = fs::read_to_string(&record).unwrap();
        assert!(text.contains("\"release\":\""), "{text}");
        fs::write(&record, text.replace("\"release\":\"", "\"release\":\"older ")).unwrap();
        let mut daemon = site.start();
        let done = site.json("rollback", &[]);
        assert_eq!(done["generation"].as_u64(), Some(5), "{done} {}", daemon.log());
        assert!(daemon.log().contains("with the present program"), "{}", daemon.log());
        assert!(daemon.end(Signal::SIGTERM).success());
    });
}

#[test]
fn a_recreated_interface_is_attached_and_does_not_block_reloads() {
    alone(|site| {
        site.write(&table("t", 80, &ALL));
        let mut daemon = site.start();
        ip("link delete dev b");
        daemon.says("is gone", 0);
        // The other one gets its table.
        site.write(&table("t", 80, &DRAINED));
        daemon.says("generation=2", 0);
        site.link("b", 2);
        daemon.says("attached", 0);
        wait("it runs what the other one runs", || {
            let [a, b] = site.running();
            a.is_some() && a == b
        });
        // Also across a restart.
        ip("link delete dev b");
        assert!(daemon.end(Signal::SIGTERM).success());
        let mut daemon = site.start();
        daemon.says("is gone", 0);
        site.link("b", 2);
        wait("it is attached to again", || {
            let [a, b] = site.running();
            a.is_some() && a == b
        });
        // And packets flow, though every number has changed.
        let log = daemon.log().len();
        ip("link delete dev a");
        daemon.says("is gone", log);
        site.link("a", 1);
        wait("it is attached to again", || {
            let [a, b] = site.running();
            a.is_some() && a == b
        });
        daemon.says("next hop entered", log);
        std::thread::sleep(Duration::from_millis(300));
        let traffic = Traffic::start("a", 1);
        std::thread::sleep(Duration::from_millis(50));
        let seen = traffic.stop();
        assert!(seen.sent > 0 && seen.sent == seen.back);
        assert!(daemon.end(Signal::SIGTERM).success());
    });
}

#[test]
fn generic_mode_must_be_configured() {
    alone(|site| {
        site.write(&table("t", 80, &ALL));
        // A bridge has no native XDP.
        ip("link add name br type bridge");
        ip("link set dev br up");
        site.configure("interfaces = [\"br\"]");
        let mut daemon = site.spawn();
        assert_eq!(daemon.ended().code(), Some(1));
        let log = daemon.log();
        assert!(log.contains("native XDP") && log.contains("mode = \"generic\""), "{log}");
        assert!(!site.pins.exists(), "{:?}", files_below(&site.pins));

        site.configure("interfaces = [\"br\"]\nmode = \"generic\"");
        let mut daemon = site.start();
        assert!(daemon.log().contains("several times slower"), "{}", daemon.log());
        assert!(matches!(attached("br").unwrap(), Some((Mode::Generic, _))));
        assert!(daemon.end(Signal::SIGTERM).success());
        // The attached program keeps its mode, which is logged.
        site.configure("interfaces = [\"br\"]");
        let mut daemon = site.start();
        assert!(daemon.log().contains("XDP mode differs"), "{}", daemon.log());
        assert!(matches!(attached("br").unwrap(), Some((Mode::Generic, _))));
        assert!(daemon.end(Signal::SIGTERM).success());
        assert!(site.run("detach", &[]).0);
    });
}

#[test]
fn foreign_programs_are_named_in_the_error() {
    alone(|site| {
        site.write(&table("t", 80, &ALL));
        for (name, words) in [
            ("nothing", vec!["`nothing`", "ip link set dev b xdp off"]),
            ("xdp_dispatcher", vec!["libxdp's dispatcher", "xdp-loader unload b"]),
        ] {
            let others = site.pins.with_file_name("others");
            // The one before goes a moment after its pin.
            wait("the interface is free", || {
                glb_lab::link::attach_pass_as("b", &others, name).is_ok()
            });
            let mut daemon = site.spawn();
            assert_eq!(daemon.ended().code(), Some(1));
            let log = daemon.log();
            for words in words {
                assert!(log.contains(words), "{words:?} is missing in: {log}");
            }
            assert!(attached("a").unwrap().is_none(), "attached to the first one");
            assert!(!site.pins.exists(), "{:?}", files_below(&site.pins));
            fs::remove_file(others).unwrap();
        }
    });
}

#[test]
fn only_one_of_two_concurrent_starts_succeeds() {
    alone(|site| {
        site.write(&table("t", 80, &ALL));
        let mut both = [site.spawn(), site.spawn()];
        let begun = Instant::now();
        let mut refused = None;
        while refused.is_none() {
            assert!(begun.elapsed() < PATIENCE);
            refused = both.iter_mut().position(|one| one.child.try_wait().unwrap().is_some());
        }
        let other = 1 - refused.unwrap();
        both[other].says("ready", 0);
        assert!(site.running()[0].is_some());
        let log = both[0].log();
        assert!(log.contains("holds it"), "{log}");
        assert!(both[other].end(Signal::SIGTERM).success());
        assert!(site.pinned() == [1], "{:?}", site.pinned());
    });
}

#[test]
fn sigterm_during_the_start_leaves_no_pins() {
    alone(|site| {
        // The start waits for a backend that does not answer.
        site.write(&table("t", 80, &[(11, "active"), (99, "active")]));
        for delay in [0, 20, 60, 150, 400] {
            let mut daemon = site.spawn();
            if delay > 0 {
                wait("it begins", || site.pins.exists());
            }
            std::thread::sleep(Duration::from_millis(delay));
            daemon.signal(Signal::SIGTERM);
            let status = daemon.ended();
            // Before the handler is there, the signal itself ends it.
            assert!(status.success() || status.code().is_none(), "{status} {}", daemon.log());
            assert!(!site.pins.exists(), "{delay} ms: {:?}", files_below(&site.pins));
        }
    });
}

#[test]
fn invalid_table_files_are_refused_quickly() {
    alone(|site| {
        site.write(&table("t", 80, &ALL));
        let mut daemon = site.start();
        // A pipe without a writer.
        fs::remove_file(site.table_file()).unwrap();
        let made = Command::new("mkfifo").arg(site.table_file()).status().unwrap();
        assert!(made.success());
        let (well, said) = site.run("reload", &[]);
        assert!(!well && said.contains("not a regular file"), "{said}");
        fs::remove_file(site.table_file()).unwrap();
        // Nothing at all.
        let (well, said) = site.run("reload", &[]);
        assert!(!well && said.contains("table.toml"), "{said}");
        // Ten thousand broken lines.
        let broken: String = (0..10_000).map(|n| format!("line {n} is = = no table [\n")).collect();
        site.write(&broken);
        let begun = Instant::now();
        let (well, said) = site.run("reload", &[]);
        assert!(!well && said.contains("table.toml"), "{said}");
        assert!(said.len() < 200_000, "{} bytes of complaint", said.len());
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        // It was never not in force, and a good one comes.
        assert_eq!(site.json("status", &[])["generation"].as_u64(), Some(1));
        site.write(&table("t", 80, &DRAINED));
        daemon.says("generation=2", 0);
        assert!(daemon.end(Signal::SIGTERM).success());
    });
}

#[test]
fn missing_requirements_are_named() {
    alone(|site| {
        site.write(&table("t", 80, &ALL));
        // Not a BPF file system.
        let config = fs::read_to_string(site.at("director.toml")).unwrap();
        let elsewhere = site.at("pins");
        let pins = format!("\"{}\"", site.pins.display());
        fs::write(
            site.at("director.toml"),
            config.replace(&pins, &format!("\"{}\"", elsewhere.display())),
        )
        .unwrap();
        let mut daemon = site.spawn();
        assert_eq!(daemon.ended().code(), Some(1));
        assert!(daemon.log().contains("mount -t bpf"), "{}", daemon.log());
        assert!(!elsewhere.exists());
        site.configure("");
        // A disk that is full, from the start.
        site.fault("fail store");
        let mut daemon = site.start();
        assert!(daemon.log().contains("state folder"), "{}", daemon.log());
        site.write(&table("t", 80, &DRAINED));
        daemon.says("generation=2", 0);
        assert_eq!(site.json("rollback", &[])["generation"].as_u64(), Some(1));
        // Killed, nothing is known of what runs: it is replaced, and packets go on.
        daemon.signal(Signal::SIGKILL);
        daemon.ended();
        let traffic = Traffic::start("a", 1);
        let mut daemon = site.start();
        let seen = traffic.stop();
        assert_eq!(seen.sent, seen.back);
        assert!(daemon.end(Signal::SIGTERM).success());
        assert!(site.run("detach", &[]).0);
    });
}
