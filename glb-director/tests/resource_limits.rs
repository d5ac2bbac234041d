//! The machine fails the daemon in one way or another: said, and nothing lost. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use common::{
    live::{Daemon, PATIENCE, Site, alone, files_below, ip, table},
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

/// If the daemon ends, packets are still forwarded and the next daemon adopts the generation.
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

/// Checks the error about a program that the verifier refuses.
#[track_caller]
fn says_why_it_is_refused(said: &str) {
    // It has the verifier's message, the kernel's release and the remedy.
    for words in ["rejects the program", "infinite loop", "this is Linux", "report this message"] {
        assert!(said.contains(words), "{words:?} is missing in: {said}");
    }
    assert!(said.len() < 8_192, "{} bytes", said.len());
}

#[test]
fn a_refused_program_leaves_the_active_generation() {
    alone(|site| {
        site.write(&table("t", 80, &ALL));
        let mut daemon = site.start();
        let (running, before) = (site.running(), site.encapsulated());
        let traffic = Traffic::start("a", 1);
        site.fault("refuse load");
        // Another table more: no program that was loaded ahead has room for it.
        let more = table("t", 80, &DRAINED) + &table("u", 81, &ALL);
        site.write(&more);
        daemon.says("the running one stays", 0);
        let (well, said) = site.run("reload", &[]);
        assert!(!well, "{said}");
        says_why_it_is_refused(&said);
        assert_eq!((site.running(), site.pinned()), (running, vec![1]));
        let status = site.json("status", &[]);
        says_why_it_is_refused(&status["problems"].to_string());
        site.fault("");
        let done = site.json("reload", &[]);
        assert_eq!(done["changed"].as_bool(), Some(true), "{done}\n{}", daemon.log());
        assert_ne!(site.running(), running);
        let seen = traffic.stop();
        assert_eq!(seen.sent, seen.back);
        assert_eq!(site.encapsulated() - before, seen.sent);
        assert!(site.json("status", &[])["problems"].as_array().is_some_and(Vec::is_empty));
        assert!(daemon.end(Signal::SIGTERM).success());
    });
}

#[test]
fn a_start_with_a_refused_program_changes_nothing() {
    alone(|site| {
        // Nothing ran: nothing is left.
        site.write(&table("t", 80, &ALL));
        site.fault("refuse load");
        let mut daemon = site.spawn();
        assert_eq!(daemon.ended().code(), Some(1), "{}", daemon.log());
        says_why_it_is_refused(&daemon.log());
        assert!(!site.pins.exists(), "{:?}", files_below(&site.pins));
        site.fault("");
        let mut daemon = site.start();
        assert!(daemon.end(Signal::SIGTERM).success());

        // The running generation is adopted without loading a program.
        let (running, before) = (site.running(), site.encapsulated());
        let traffic = Traffic::start("a", 1);
        site.fault("refuse load");
        let mut daemon = site.start();
        assert_eq!(site.running(), running, "{}", daemon.log());
        assert!(daemon.end(Signal::SIGTERM).success());
        // The file says something else, for which a program is needed: what runs stays, looked after.
        site.write(&table("t", 80, &DRAINED));
        let mut daemon = site.start();
        says_why_it_is_refused(&daemon.log());
        assert_eq!((site.running(), site.pinned()), (running, vec![1]));
        says_why_it_is_refused(&site.json("status", &[])["problems"].to_string());
        assert!(daemon.end(Signal::SIGTERM).success());
        // A generation of another release cannot be adopted, but goes on forwarding.
        let config = fs::read_to_string(site.at("director.toml")).unwrap();
        site.configure("outer_tos = 4");
        let mut daemon = site.spawn();
        assert_eq!(daemon.ended().code(), Some(1), "{}", daemon.log());
        says_why_it_is_refused(&daemon.log());
        assert_eq!((site.running(), site.pinned()), (running, vec![1]));
        // The old release comes back and takes it over once more.
        fs::write(site.at("director.toml"), config).unwrap();
        site.write(&table("t", 80, &ALL));
        let mut daemon = site.start();
        assert_eq!(site.running(), running, "{}", daemon.log());
        site.fault("");
        site.write(&table("t", 80, &DRAINED));
        daemon.says("generation=2", 0);
        let seen = traffic.stop();
        assert_eq!(seen.sent, seen.back);
        assert_eq!(site.encapsulated() - before, seen.sent);
        assert!(daemon.end(Signal::SIGTERM).success());
    });
}

#[test]
fn failed_pinning_leaves_the_active_generation() {
    alone(|site| {
        site.write(&table("t", 80, &ALL));
        let mut daemon = site.start();
        site.remount(MsFlags::MS_RDONLY);
        site.write(&table("t", 80, &DRAINED));
        let (well, said) = site.run("reload", &[]);
        assert!(!well && said.contains("Read-only file system"), "{said}");
        assert_eq!(site.pinned(), [1]);
        site.remount(MsFlags::empty());
        assert_eq!(site.json("reload", &[])["changed"].as_bool(), Some(true), "{}", daemon.log());
        assert!(daemon.end(Signal::SIGTERM).success());
    });
}

#[test]
fn too_few_descriptors_leave_the_active_generation() {
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

/// More tables than it has memory for.
fn survives_200_tables(site: &Site, mut daemon: Daemon) {
    let many: String = (0..200).map(|n| table(&format!("t{n}"), 1000 + n, &ALL)).collect();
    let said = survives(site, &mut daemon, || site.write(&many));
    assert!(!said.is_empty());
    // With room again, the next one takes over and loads the table.
    let mut daemon = site.start();
    let counters = site.json("counters", &[]);
    assert!(counters["tables"].as_array().is_some_and(|tables| tables.len() >= 200));
    assert!(daemon.end(Signal::SIGTERM).success());
}

#[test]
fn forwarding_survives_a_lack_of_memory() {
    alone(|site| {
        site.write(&table("t", 80, &ALL));
        let daemon = site.start();
        std::thread::sleep(Duration::from_millis(500));
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.child.id())).unwrap();
        let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
        let size: u64 = size.split_whitespace().next().unwrap().parse().unwrap();
        limit(&daemon, "as", (size + 8_192) * 1024);
        survives_200_tables(&site, daemon);
    });
}

/// A control group with a limit for its memory; it goes when its processes have ended.
struct Group(PathBuf);

impl Group {
    fn new() -> Self {
        let name = format!("glb-t-memory-{}", std::process::id());
        let first = Path::new("/sys/fs/cgroup/memory");
        let folder = if first.is_dir() {
            first.join(name)
        } else {
            fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory").unwrap();
            Path::new("/sys/fs/cgroup").join(name)
        };
        fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    fn write(&self, names: [&str; 2], value: &str) {
        let path = names.map(|name| self.0.join(name)).into_iter().find(|path| path.exists());
        fs::write(path.unwrap(), value).unwrap();
    }

    fn limit(&self, bytes: u64) {
        self.write(["memory.max", "memory.limit_in_bytes"], &bytes.to_string());
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let begun = Instant::now();
        while let Err(error) = fs::remove_dir(&self.0) {
            if begun.elapsed() > PATIENCE {
                return eprintln!("left behind: {}: {error}", self.0.display());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn forwarding_survives_a_memory_limited_control_group() {
    alone(|site| {
        site.write(&table("t", 80, &ALL));
        let group = Group::new();
        let daemon = site.start();
        group.write(["cgroup.procs", "cgroup.procs"], &daemon.child.id().to_string());
        // Its memory is charged to another group; 200 tables need many times this limit.
        group.limit(16 << 20);
        survives_200_tables(&site, daemon);
    });
}

#[test]
fn lost_netlink_messages_are_recovered_by_a_dump() {
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
fn a_full_disk_is_reported_and_blocks_nothing() {
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
        // Files that could not be written whole do not exist in part.
        assert!(!state.join("holders").exists() && !state.join("holders.new").exists());
        // Room again.
        mount(none, &state, none, MsFlags::MS_REMOUNT, Some("size=64m")).unwrap();
        // Unwritten files are written without a request.
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
