//! The machine fails the daemon in one way or another: said, and nothing lost. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    process::{Command, Stdio},
    time::Duration,
};

use common::{
    live::{Daemon, Site, alone, ip, table},
    traffic::Traffic,
};
use nix::{
    mount::{MsFlags, mount},
    sys::signal::Signal,
};

const ALL: [(u8, &str); 3] = [(11, "active"), (12, "active"), (13, "active")];
const DRAINED: [(u8, &str); 3] = [(11, "draining"), (12, "active"), (13, "active")];

/// Sets a limit of the running daemon.
fn limit(daemon: &Daemon, what: &str, value: u64) {
    let id = daemon.child.id().to_string();
    let limit = format!("--{what}={value}:");
    let done = Command::new("prlimit").args(["--pid", &id, &limit]).status().unwrap();
    assert!(done.success(), "prlimit {limit}");
}

/// What may end the daemon: packets go on, and the next one takes over.
fn survives(site: &Site, daemon: &mut Daemon, mut change: impl FnMut()) -> String {
    let traffic = Traffic::start("a", 1);
    change();
    let (well, said) = site.run("reload", &[]);
    assert!(!well, "{said}");
    let running = site.running();
    assert!(running[0].is_some() && running[0] == running[1]);
    let seen = traffic.stop();
    assert_eq!(seen.sent, seen.back);
    drop(daemon.child.kill());
    daemon.ended();
    said
}

#[test]
fn pins_that_cannot_be_made_leave_the_running_generation() {
    alone(|site| {
        site.write(&table("t", 80, &ALL));
        let mut daemon = site.start();
        let remount = |flags: MsFlags| {
            let none: Option<&str> = None;
            let folder = site.pins.parent().unwrap();
            mount(none, folder, none, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | flags, none)
                .unwrap();
        };
        remount(MsFlags::MS_RDONLY);
        site.write(&table("t", 80, &DRAINED));
        let (well, said) = site.run("reload", &[]);
        assert!(!well && said.contains("Read-only file system"), "{said}");
        assert_eq!(site.pinned(), [1]);
        remount(MsFlags::empty());
        assert_eq!(site.json("reload", &[])["changed"].as_bool(), Some(true), "{}", daemon.log());
        assert!(daemon.end(Signal::SIGTERM).success());
    });
}

#[test]
fn too_few_descriptors_leave_the_running_generation() {
    alone(|site| {
        site.write(&table("t", 80, &ALL));
        let mut daemon = site.start();
        std::thread::sleep(Duration::from_millis(500));
        let open = fs::read_dir(format!("/proc/{}/fd", daemon.child.id())).unwrap().count() as u64;
        limit(&daemon, "nofile", open + 3);
        // Another port needs no other program, but more of the same do.
        site.write(&table("t", 81, &DRAINED));
        let mut refused = false;
        for round in 0..4 {
            site.write(&table("t", 82 + round, &ALL));
            let (well, said) = site.run("reload", &["--force"]);
            refused |= !well;
            assert!(well || !said.is_empty(), "{said}");
        }
        assert!(refused, "the limit was not reached: {}", daemon.log());
        let running = site.running();
        assert!(running[0].is_some() && running[0] == running[1]);
        limit(&daemon, "nofile", 1024);
        site.write(&table("t", 80, &ALL));
        let (well, said) = site.run("reload", &["--force"]);
        assert!(well, "{said}\n{}", daemon.log());
        assert!(daemon.end(Signal::SIGTERM).success());
    });
}

#[test]
fn too_little_memory_ends_the_daemon_at_worst() {
    alone(|site| {
        site.write(&table("t", 80, &ALL));
        let mut daemon = site.start();
        std::thread::sleep(Duration::from_millis(500));
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.child.id())).unwrap();
        let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
        let size: u64 = size.split_whitespace().next().unwrap().parse().unwrap();
        limit(&daemon, "as", (size + 8_192) * 1024);
        let many: String = (0..200).map(|n| table(&format!("t{n}"), 1000 + n, &ALL)).collect();
        let said = survives(&site, &mut daemon, || site.write(&many));
        assert!(!said.is_empty());
        let mut daemon = site.start();
        let counters = site.json("counters", &[]);
        assert!(counters["tables"].as_array().is_some_and(|tables| tables.len() >= 200));
        assert!(daemon.end(Signal::SIGTERM).success());
    });
}

#[test]
fn what_netlink_did_not_tell_is_asked_for() {
    alone(|site| {
        site.write(&table("t", 80, &ALL));
        let mut daemon = site.start();
        let log = daemon.log().len();
        daemon.signal(Signal::SIGSTOP);
        // Far more than the socket's buffer holds, and in the middle the one that matters.
        let mut lines = String::new();
        for round in 0..6_000u32 {
            let host = std::net::Ipv4Addr::from(0x0a00_0180 + round % 100);
            let mac = format!("02:00:00:01:{:02x}:{:02x}", round >> 8, round & 0xff);
            writeln!(lines, "neighbour replace {host} lladdr {mac} dev a nud permanent").unwrap();
            if round == 3_000 {
                let mac = "02:00:00:00:00:99";
                writeln!(lines, "neighbour replace 10.0.1.11 lladdr {mac} dev a nud permanent")
                    .unwrap();
            }
        }
        let mut batch =
            Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        batch.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        assert!(batch.wait().unwrap().success());
        daemon.signal(Signal::SIGCONT);
        daemon.says("next hop entered", log);
        assert!(daemon.log()[log..].contains("10.0.1.11"), "{}", daemon.log());
        ip("neighbour replace 10.0.1.11 lladdr 02:00:00:00:01:02 dev a nud permanent");
        assert!(daemon.end(Signal::SIGTERM).success());
    });
}

#[test]
fn a_full_disk_is_said_and_in_nobodys_way() {
    alone(|site| {
        site.write(&table("t", 80, &ALL));
        let state = site.at("state");
        fs::create_dir(&state).unwrap();
        let none: Option<&str> = None;
        mount(Some("tmpfs"), &state, Some("tmpfs"), MsFlags::empty(), Some("size=16k")).unwrap();
        let mut daemon = site.start();
        daemon.says("No space left on device", 0);
        let traffic = Traffic::start("a", 1);
        site.write(&table("t", 80, &DRAINED));
        daemon.says("generation=2", 0);
        let seen = traffic.stop();
        assert_eq!(seen.sent, seen.back);
        for number in 3..8 {
            let done = site.json("reload", &["--force"]);
            assert_eq!(done["generation"].as_u64(), Some(number));
        }
        // Said once, though some of what is small finds room now and then.
        let said = daemon.log();
        assert_eq!(said.matches("cannot write to the state folder").count(), 1, "{said}");
        assert!(!said.contains("in order again"), "{said}");
        // What could not be kept whole is not there in part.
        assert!(!state.join("holders").exists() && !state.join("holders.new").exists());
        // Room again.
        mount(none, &state, none, MsFlags::MS_REMOUNT, Some("size=64m")).unwrap();
        // What was not kept is kept by itself.
        daemon.says("in order again", 0);
        assert!(state.join("holders").exists() && state.join("generation-7.json").exists());
        site.write(&table("t", 80, &ALL));
        daemon.says("generation=8", 0);
        let said = daemon.log();
        assert_eq!(said.matches("in order again").count(), 1, "{said}");
        assert!(daemon.end(Signal::SIGTERM).success());
        nix::mount::umount(&state).unwrap();
    });
}
