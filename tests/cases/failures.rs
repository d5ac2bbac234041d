//! Failures around a director: each gives a clear error, and nothing that runs is lost.

use std::{
    collections::VecDeque,
    fs,
    io::Write as _,
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use glb_lab::{Daemon, Fleet, Lab, Node, Plan, Program, TableFile, command, http};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::Signal,
};

use crate::support::{ask, ask_everybody, build, everybody_answers, refusal};

const DIRECTOR: Node = Node::Director(1);

fn fleet(name: &str) -> Result<Fleet> {
    build()?;
    Fleet::up(Plan { backends: 2, ..Plan::new(name) }, 1, true)
}

/// A small file system of a few kilobytes that is unmounted at the end.
struct SmallFilesystem<'p>(&'p Path);

impl<'p> SmallFilesystem<'p> {
    fn mount(path: &'p Path, options: &str) -> Result<Self> {
        fs::create_dir_all(path)?;
        mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some(options))?;
        Ok(Self(path))
    }
}

impl Drop for SmallFilesystem<'_> {
    fn drop(&mut self) {
        if let Err(error) = umount2(self.0, MntFlags::MNT_DETACH) {
            eprintln!("left behind: {}: {error}", self.0.display());
        }
    }
}

fn set(director: &Daemon, from: &str, to: &str) -> Result<()> {
    let text = fs::read_to_string(director.config())?;
    ensure!(text.contains(from), "{from} is not in {text}");
    Ok(fs::write(director.config(), text.replace(from, to))?)
}

#[test]
fn table_with_ten_thousand_errors_is_rejected_quickly() -> Result<()> {
    let mut fleet = fleet("glb-t-lines")?;
    let broken: String = (0..10_000)
        .map(|n| format!("[[tables]]\nname = \"t{n}\"\nhash_key = \"nonsense {n}\"\nseeed = {n}\n"))
        .collect();
    let begun = Instant::now();
    let said = fleet.director()?.reload_refused(&broken)?;
    println!("refused in {:.2?} with {} bytes", begun.elapsed(), said.len());
    ensure!(said.contains("table.toml") && said.contains("more"), "{said:.2000}");
    ensure!(said.len() < 64 * 1024, "{} bytes of errors", said.len());
    let mut status = fleet.directors[0].command(&fleet.lab, "status")?;
    let output = command::finish(&mut status)?;
    ensure!(output.status.code() == Some(4), "{}", output.status);
    everybody_answers(&fleet.lab)?;
    fleet.reload()
}

#[test]
fn full_disk_and_read_only_state_folder_are_reported() -> Result<()> {
    build()?;
    let lab = Lab::up(Plan { backends: 2, ..Plan::new("glb-t-full") })?;
    let mut director = Daemon::director(&lab, DIRECTOR, &TableFile::new(lab.plan()))?;
    let folder = lab.scratch().join("small");
    let socket = folder.join("control.sock").display().to_string();
    set(&director, "\"control.sock\"", &format!("{socket:?}"))?;
    {
        // Two inodes: the root, and one that the lock file takes.
        let _small = SmallFilesystem::mount(&folder, "size=4k,nr_inodes=2")?;
        let said = refusal(&lab, &mut director)?;
        for words in ["control socket", "control.sock", "No space left", "Free some"] {
            ensure!(said.contains(words), "{words:?} is missing in: {said}");
        }
        ensure!(!lab.bpf().join(DIRECTOR.to_string()).exists(), "pins are left");
    }
    {
        let _small = SmallFilesystem::mount(&folder, "size=64k,ro")?;
        let said = refusal(&lab, &mut director)?;
        ensure!(said.contains("Read-only") && said.contains("RuntimeDirectory"), "{said}");
    }
    director.start(&lab)?;
    Ok(())
}

#[test]
fn metrics_server_survives_many_clients_with_few_descriptors() -> Result<()> {
    let mut fleet = fleet("glb-t-crowded")?;
    let address = SocketAddr::new(DIRECTOR.v4().into(), 9650);
    let director = &mut fleet.directors[0];
    director.end(Signal::SIGTERM)?;
    let config = fs::read_to_string(director.config())?;
    fs::write(director.config(), format!("metrics = \"{address}\"\n{config}"))?;
    // The daemon gets fewer descriptors than the test has connections.
    let mut limited = fleet.lab.netns(DIRECTOR)?.command("sh");
    limited.args(["-c", "ulimit -n 128 && exec \"$@\"", "sh"]).arg(Program::Director.path()?);
    limited.args(["run", "--config"]).arg(fleet.directors[0].config());
    let mut process = fleet.lab.spawn(DIRECTOR, "limited", &mut limited)?;
    process.wait_for_log("ready", 0, Duration::from_secs(30))?;
    let netns = fleet.lab.netns(DIRECTOR)?;
    let enough = AtomicBool::new(false);
    let crowd = || {
        let mut crowd = VecDeque::new();
        let mut number = 0;
        while !enough.load(Ordering::Relaxed) {
            // The backlog is shorter than the number of clients, so rejected clients retry.
            let stream = TcpStream::connect_timeout(&address, Duration::from_millis(100));
            let Ok(mut stream) = stream else { continue };
            number += 1;
            match number % 3 {
                // One client does not read, one never finishes its request, one sends nothing.
                0 => drop(stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")),
                1 => drop(stream.write_all(b"GET /met")),
                _ => {}
            }
            crowd.push_back(stream);
            if crowd.len() > 600 {
                crowd.pop_front();
            }
        }
        Ok(number)
    };
    let came = std::thread::scope(|scope| {
        let crowd = scope.spawn(|| netns.run(crowd));
        let reloads = || -> Result<()> {
            for _ in 0..3 {
                std::thread::sleep(Duration::from_secs(1));
                let mut reload = fleet.directors[0].command(&fleet.lab, "reload")?;
                command::run(reload.arg("--force"))?;
                ask_everybody(&fleet.lab)?;
            }
            Ok(())
        };
        let done = reloads();
        enough.store(true, Ordering::Relaxed);
        let came = crowd.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        done.map(|()| came)
    })?;
    println!("{came} connections");
    ensure!(came > 64);
    let begun = Instant::now();
    loop {
        let from = DIRECTOR.v4().into();
        match http::get_in(netns, from, address, "/metrics") {
            Ok(reply) if reply.status == 200 => break,
            _ => ensure!(begun.elapsed() < Duration::from_secs(30), "no scrape gets through"),
        }
    }
    Ok(())
}

#[test]
fn netlink_overflow_triggers_a_full_read() -> Result<()> {
    let mut fleet = fleet("glb-t-overflow")?;
    let process = fleet.director()?.process()?;
    process.signal(Signal::SIGSTOP)?;
    // Far more events than the netlink buffer holds, with the real change among them.
    let mut lines = String::new();
    for number in 0..20_000 {
        let (a, b) = (number / 250, number % 250 + 1);
        lines += &format!(
            "neigh replace 10.77.{a}.{b} lladdr 02:00:00:00:{a:02x}:{b:02x} nud noarp dev eth0\n\
             neigh del 10.77.{a}.{b} dev eth0\n"
        );
    }
    let director = fleet.lab.netns(DIRECTOR)?.clone();
    director.ip(&lines)?;
    let backend = Node::Backend(1).v4();
    director.ip(&format!(
        "neigh replace {backend} lladdr 02:aa:aa:aa:aa:aa nud permanent dev eth0\n"
    ))?;
    fleet.director()?.process()?.signal(Signal::SIGCONT)?;
    let shown = |fleet: &Fleet| -> Result<String> {
        let mut show = fleet.directors[0].command(&fleet.lab, "show")?;
        command::output(show.arg("backends"))
    };
    let begun = Instant::now();
    while !shown(&fleet)?.contains("02:aa:aa:aa:aa:aa") {
        ensure!(begun.elapsed() < Duration::from_secs(20), "{}", shown(&fleet)?);
    }
    println!("seen after {:.2?}", begun.elapsed());
    director.ip(&format!("neigh del {backend} dev eth0\n"))?;
    let begun = Instant::now();
    while shown(&fleet)?.contains("02:aa:aa:aa:aa:aa") || shown(&fleet)?.contains("NONE") {
        ensure!(begun.elapsed() < Duration::from_secs(20), "{}", shown(&fleet)?);
    }
    everybody_answers(&fleet.lab)
}

#[test]
fn missing_or_unreadable_table_keeps_the_current_one() -> Result<()> {
    let mut fleet = fleet("glb-t-vanish")?;
    let table = fleet.directors[0].config().with_file_name("table.toml");
    let text = fs::read_to_string(&table)?;
    fs::remove_file(&table)?;
    let reload = |fleet: &Fleet| -> Result<String> {
        let mut reload = fleet.directors[0].command(&fleet.lab, "reload")?;
        let output = command::finish(reload.arg("--force"))?;
        ensure!(output.status.code() == Some(1), "{}", output.status);
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let said = reload(&fleet)?;
    ensure!(said.contains("table.toml") && said.contains("No such file"), "{said}");
    fs::create_dir(&table)?;
    let said = reload(&fleet)?;
    ensure!(said.contains("table.toml"), "{said}");
    fs::remove_dir(&table)?;
    // The file belongs to another user and is private. The daemon has dropped root's right to read
    // it.
    fs::write(&table, &text)?;
    std::os::unix::fs::chown(&table, Some(47_110), Some(47_110))?;
    fs::set_permissions(&table, fs::Permissions::from_mode(0o600))?;
    let said = reload(&fleet)?;
    ensure!(said.contains("table.toml") && said.contains("ermission denied"), "{said}");
    ask(&fleet.lab, glb_lab::Family::V4, 1)?;
    fs::remove_file(&table)?;
    fs::write(&table, &text)?;
    fleet.reload()
}

#[test]
fn of_six_daemons_started_together_one_remains() -> Result<()> {
    let mut fleet = fleet("glb-t-six")?;
    fleet.director()?.end(Signal::SIGKILL)?;
    let start = |number: u32| {
        let mut run = fleet.directors[0].command(&fleet.lab, "run")?;
        fleet.lab.spawn(DIRECTOR, &format!("of-six-{number}"), &mut run)
    };
    let mut six = (0..6).map(start).collect::<Result<Vec<_>>>()?;
    let begun = Instant::now();
    loop {
        let mut living = Vec::new();
        for (number, process) in six.iter_mut().enumerate() {
            match process.ended()? {
                None => living.push(number),
                Some(status) => ensure!(status.code() == Some(1), "{status}: {}", process.log()?),
            }
        }
        ensure!(!living.is_empty(), "all six gave up");
        if let [one] = living[..] {
            six[one].wait_for_log("ready", 0, Duration::from_secs(30))?;
            break;
        }
        ensure!(begun.elapsed() < Duration::from_secs(30), "{living:?} live");
        std::thread::sleep(Duration::from_millis(20));
    }
    let status = command::output(&mut fleet.directors[0].command(&fleet.lab, "status")?)?;
    ensure!(status.contains("none"), "{status}");
    everybody_answers(&fleet.lab)
}

#[test]
fn hanging_daemon_is_reported_by_status() -> Result<()> {
    let mut fleet = fleet("glb-t-hangs")?;
    fleet.director()?.process()?.signal(Signal::SIGSTOP)?;
    let begun = Instant::now();
    let output = command::finish(&mut fleet.directors[0].command(&fleet.lab, "status")?)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(3) && said.contains("does not answer"), "{said}");
    ensure!(begun.elapsed() < Duration::from_secs(30));
    // The program works without the daemon.
    everybody_answers(&fleet.lab)?;
    fleet.director()?.process()?.signal(Signal::SIGCONT)?;
    command::run(&mut fleet.directors[0].command(&fleet.lab, "status")?)
}
