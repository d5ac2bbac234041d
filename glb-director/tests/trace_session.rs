//! Somebody watches a daemon whose generations change, and which ends. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    io::Read as _,
    process::{Child, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use common::live::{PATIENCE, Site, alone, ip, table};
use glb_host::xdp_link;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const ALL: [(u8, &str); 2] = [(11, "active"), (12, "active")];

fn trace(site: &Site) -> Child {
    site.command("trace")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn ended(child: &mut Child) -> (ExitStatus, String) {
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(begun.elapsed() < PATIENCE, "trace does not end");
        thread::sleep(Duration::from_millis(2));
    };
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (status, said)
}

#[test]
fn a_trace_skips_generations_that_end_quickly() {
    alone(|site| {
        site.write(&table("t", 80, &ALL));
        let mut daemon = site.start();
        // The watcher stops before it opens what the first generation shows.
        site.fault("hold showing");
        let mut watcher = trace(&site);
        daemon.says("trace started", 0);
        for number in 2..5 {
            let done = site.json("reload", &["--force"]);
            assert_eq!(done["generation"].as_u64(), Some(number));
        }
        site.fault("");
        // Once it has caught up, it sees what comes.
        let from = daemon.log().len();
        let done = site.json("reload", &["--force"]);
        assert_eq!(done["generation"].as_u64(), Some(5));
        daemon.says("trace started", from);
        assert!(watcher.try_wait().unwrap().is_none());
        kill(Pid::from_raw(watcher.id() as i32), Signal::SIGTERM).unwrap();
        let (status, said) = ended(&mut watcher);
        assert!(status.success(), "{status}: {said}");
        assert!(!said.contains("cannot"), "{said}");
        assert!(daemon.end(Signal::SIGTERM).success());
    });
}

#[test]
fn stopping_the_daemon_ends_the_trace() {
    alone(|site| {
        site.write(&table("t", 80, &ALL));
        for _ in 0..4 {
            let mut daemon = site.start();
            let mut watcher = trace(&site);
            daemon.says("trace started", 0);
            assert!(daemon.end(Signal::SIGTERM).success());
            let (status, said) = ended(&mut watcher);
            assert!(status.success(), "{status}: {said}");
        }
        // One that is killed has not said anything.
        let mut daemon = site.start();
        let mut watcher = trace(&site);
        daemon.says("trace started", 0);
        daemon.end(Signal::SIGKILL);
        let (status, said) = ended(&mut watcher);
        assert_eq!(status.code(), Some(3), "{said}");
    });
}

#[test]
fn a_recreated_interface_is_traced() {
    alone(|site| {
        site.write(&table("t", 80, &ALL));
        let mut daemon = site.start();
        let mut watcher = trace(&site);
        daemon.says("trace started", 0);
        let shown = site.running();
        assert!(shown[0].is_some() && shown[0] == shown[1]);
        ip("link del dev b");
        daemon.says("is gone", 0);
        site.link("b", 2);
        let begun = Instant::now();
        while xdp_link::attached("b").unwrap().is_none() {
            assert!(begun.elapsed() < PATIENCE, "{}", daemon.log());
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(site.running(), shown, "{}", daemon.log());
        kill(Pid::from_raw(watcher.id() as i32), Signal::SIGTERM).unwrap();
        assert!(ended(&mut watcher).0.success());
        daemon.says("trace ended", 0);
        let plain = site.running();
        assert!(plain[0].is_some() && plain[0] == plain[1] && plain != shown, "{plain:?}");
        assert!(daemon.end(Signal::SIGTERM).success());
    });
}
