//! The capabilities of a checker that root starts by hand, and of the commands that it runs. Needs root.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fixture;

use std::fs;

use fixture::{Fixture, HttpServer};

const NET_ADMIN: u64 = 1 << 12;
const NET_RAW: u64 = 1 << 13;
const SETGID: u64 = 1 << 6;
const SETUID: u64 = 1 << 7;

/// A line of /proc/PID/task/TID/status of each thread.
fn lines(id: u32, key: &str) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{id}/task")).unwrap();
    let status = threads.map(|thread| fs::read_to_string(thread.unwrap().path().join("status")));
    let line = |status: String| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.trim_start_matches(':').trim().to_owned()
    };
    status.map(|status| line(status.unwrap())).collect()
}

fn assert_capabilities(checker: &Fixture, capabilities: u64) {
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        for bits in lines(checker.id(), set) {
            let bits = u64::from_str_radix(&bits, 16).unwrap();
            assert_eq!(bits & !capabilities, 0, "{set}: {bits:x}");
        }
    }
    assert!(lines(checker.id(), "NoNewPrivs").iter().all(|set| set == "1"));
    for set in ["CapInh", "CapAmb"] {
        assert!(
            lines(checker.id(), set).iter().all(|bits| bits.trim_start_matches('0').is_empty())
        );
    }
}

fn is_root() -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        eprintln!("skipped: needs root");
    }
    is_root
}

#[test]
fn a_checker_started_by_root_keeps_two_capabilities() {
    if !is_root() {
        return;
    }
    let server = HttpServer::start("127.12.1.1");
    let mut checker = Fixture::new();
    checker.write_input(&[&server]);
    checker.start();
    checker.wait_for(&[true]);
    assert_capabilities(&checker, NET_ADMIN | NET_RAW);
}

#[test]
fn exec_checks_need_exec_user_if_root_starts_the_checker() {
    if !is_root() {
        return;
    }
    let server = HttpServer::start("127.12.2.1");
    let mut checker = Fixture::new();
    checker.write_input(&[&server]);
    let input = fs::read_to_string(checker.path("input.toml")).unwrap();
    // Passes without capabilities, as another user, with a small environment.
    let script = "grep -q CapEff:.0000000000000000 /proc/self/status && test $(id -u) != 0 && \
                  test $(env | grep -vc -e ^PATH= -e ^GLB_BACKEND= -e ^PWD= -e ^SHLVL= -e ^_=) = 0";
    let exec =
        format!("healthchecks = {{ exec = {{ command = [\"/bin/sh\", \"-c\", {script:?}] }}, ");
    fs::write(checker.path("input.toml"), input.replace("healthchecks = {", &exec)).unwrap();
    checker.start();
    checker.wait_for_log("need `exec_user` in the configuration");
    assert!(checker.has_ended(std::time::Duration::from_secs(5)));

    checker.more += "exec_user = \"nobody\"\n";
    checker.start();
    checker.wait_for(&[true]);
    assert_capabilities(&checker, NET_ADMIN | NET_RAW | SETGID | SETUID);
    let refused = checker.path("healthcheck.toml");
    let config = fs::read_to_string(&refused).unwrap().replace("nobody", "no-such-user");
    fs::write(&refused, config).unwrap();
    let error = checker.refuses("healthcheck.toml");
    assert!(
        error.contains("exec_user = \"no-such-user\"") && error.contains("no such user"),
        "{error}"
    );
}
