//! Directors and backends run as separate users with three capabilities.

use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt as _, chown},
        net::UnixDatagram,
    },
    path::PathBuf,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use glb_lab::{Fleet, Node, Plan, Process, Program, command, files_below};
use nix::sys::signal::Signal;

use crate::{
    service::next_notification,
    support::{build, everybody_answers},
};

const DIRECTOR: Node = Node::Director(1);
const BACKEND: Node = Node::Backend(1);
/// A user id that no machine uses.
const USER: u32 = 47_110;

/// A fleet whose director is not running but can run as [`USER`], and the folder for its socket.
fn fleet(name: &str) -> Result<(Fleet, PathBuf)> {
    build()?;
    let mut fleet = Fleet::up(Plan { backends: 2, ..Plan::new(name) }, 1, true)?;
    let director = &mut fleet.directors[0];
    director.end(Signal::SIGTERM)?;
    director.detach(&fleet.lab)?;
    // The preparation by an administrator, or by a service manager at each start.
    let pins = fleet.lab.bpf().join(DIRECTOR.to_string());
    let run = fleet.lab.scratch().join("run");
    fs::set_permissions(fleet.lab.bpf(), fs::Permissions::from_mode(0o755))?;
    for folder in [&pins, &run] {
        fs::create_dir_all(folder)?;
        chown(folder, Some(USER), Some(USER))?;
    }
    let director = &fleet.directors[0];
    let config = fs::read_to_string(director.config())?;
    let socket = format!("control.socket = \"{}\"", run.join("control.sock").display());
    let state = format!("state_dir = \"{}\"", run.join("state").display());
    let config = config.replace("control.socket = \"control.sock\"", &socket);
    fs::write(director.config(), config.replace("state_dir = \"state\"", &state))?;
    let table = director.config().with_file_name("table.toml");
    chown(&table, None, Some(USER))?;
    fs::set_permissions(&table, fs::Permissions::from_mode(0o640))?;
    Ok((fleet, run))
}

/// The effect of systemd's User=, AmbientCapabilities=, CapabilityBoundingSet= and
/// NoNewPrivileges=.
fn as_user(fleet: &Fleet, node: Node, capabilities: &str) -> Result<Command> {
    let mut command = fleet.lab.netns(node)?.command("setpriv");
    command.args([format!("--reuid={USER}"), format!("--regid={USER}")]);
    command.args(["--clear-groups", "--no-new-privs"]);
    for set in ["--inh-caps", "--ambient-caps", "--bounding-set"] {
        command.arg(format!("{set}=-all{capabilities}"));
    }
    Ok(command)
}

const ALL: &str = ",+bpf,+net_admin,+perfmon";

fn run_as_user(fleet: &Fleet) -> Result<Process> {
    let mut command = as_user(fleet, DIRECTOR, ALL)?;
    command.arg(Program::Director.path()?);
    command.arg("run").arg("--config").arg(fleet.directors[0].config());
    let mut process = fleet.lab.spawn(DIRECTOR, "glb-director-user", &mut command)?;
    process.wait_for_log("ready", 0, Duration::from_secs(30))?;
    Ok(process)
}

/// Reads a field of every thread's status.
fn of_threads(process: u32, field: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        let status = fs::read_to_string(thread?.path().join("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        found.push(line.context("no such field")?.trim_start_matches(':').trim().to_owned());
    }
    Ok(found)
}

/// CAP_NET_ADMIN, CAP_PERFMON and CAP_BPF.
const THREE: &str = "000000c000001000";

fn has_three(process: u32) -> Result<()> {
    for (field, wanted) in [
        ("CapEff", THREE),
        ("CapPrm", THREE),
        ("CapBnd", THREE),
        ("CapInh", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
        ("NoNewPrivs", "1"),
    ] {
        let found = of_threads(process, field)?;
        ensure!(found.len() > 1, "one thread only: {found:?}");
        ensure!(found.iter().all(|value| value == wanted), "{field}: {found:?}, wanted {wanted}");
    }
    Ok(())
}

#[test]
fn director_runs_as_an_unprivileged_user() -> Result<()> {
    let (mut fleet, run) = fleet("glb-t-user")?;
    let mut process = run_as_user(&fleet)?;
    ensure!(of_threads(process.id(), "Uid")?[0].starts_with(&USER.to_string()));
    has_three(process.id())?;
    everybody_answers(&fleet.lab)?;

    let reload = |fleet: &Fleet| {
        let mut reload = as_user(fleet, DIRECTOR, "")?;
        reload.arg(Program::Director.path()?).args(["reload", "--force"]);
        command::output(reload.arg("--socket").arg(run.join("control.sock")))
    };
    let said = reload(&fleet)?;
    ensure!(said.contains("generation 2"), "{said}");
    everybody_answers(&fleet.lab)?;

    process.signal(Signal::SIGKILL)?;
    process.wait(Duration::from_secs(10))?;
    everybody_answers(&fleet.lab)?;
    let mut process = run_as_user(&fleet)?;
    ensure!(process.log()?.contains("adopting"), "{}", process.log()?);
    let said = reload(&fleet)?;
    ensure!(said.contains("in force"), "{said}");
    everybody_answers(&fleet.lab)?;
    has_three(process.id())?;
    ensure!(!process.log()?.contains("read by everybody"), "{}", process.log()?);

    // A clean stop, then detach.
    process.signal(Signal::SIGTERM)?;
    ensure!(process.wait(Duration::from_secs(10))?.success());
    let mut detach = as_user(&fleet, DIRECTOR, ALL)?;
    detach.arg(Program::Director.path()?).arg("detach");
    command::run(detach.arg("--config").arg(fleet.directors[0].config()))?;
    let pins = fleet.lab.bpf().join(DIRECTOR.to_string());
    ensure!(files_below(&pins)?.is_empty() && pins.is_dir());
    drop(process);
    // The folder can be used again.
    drop(run_as_user(&fleet)?);
    fleet.directors.clear();
    Ok(())
}

#[test]
fn root_drops_unneeded_capabilities() -> Result<()> {
    build()?;
    let mut fleet = Fleet::up(Plan { backends: 2, ..Plan::new("glb-t-root") }, 1, true)?;
    let director = fleet.director()?;
    has_three(director.id().context("it does not run")?)?;
    ensure!(director.process()?.log()?.contains("read by everybody"));
    fleet.reload()?;
    everybody_answers(&fleet.lab)
}

#[test]
fn missing_capabilities_are_named() -> Result<()> {
    let (fleet, _) = fleet("glb-t-missing")?;
    for (capabilities, name) in [
        (",+net_admin,+perfmon", "CAP_BPF"),
        (",+bpf,+perfmon", "CAP_NET_ADMIN"),
        (",+bpf,+net_admin", "CAP_PERFMON"),
    ] {
        let mut command = as_user(&fleet, DIRECTOR, capabilities)?;
        command.arg(Program::Director.path()?).arg("run");
        let output = command::finish(command.arg("--config").arg(fleet.directors[0].config()))?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1) && text.contains(name), "{name}: {text}");
    }
    // Pins made by root before the user existed.
    let pins = fleet.lab.bpf().join(DIRECTOR.to_string());
    chown(&pins, Some(0), Some(0))?;
    let mut command = as_user(&fleet, DIRECTOR, ALL)?;
    command.arg(Program::Director.path()?).arg("run");
    let output = command::finish(command.arg("--config").arg(fleet.directors[0].config()))?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(text.contains("chown") && text.contains(&USER.to_string()), "{text}");
    Ok(())
}

/// The set-up of packaging/glb-redirect.service: pins that a root daemon left behind change their
/// owner.
#[test]
fn backend_runs_as_an_unprivileged_user() -> Result<()> {
    build()?;
    let mut fleet = Fleet::up(Plan { backends: 2, ..Plan::new("glb-t-redirect") }, 1, true)?;
    let redirect = &mut fleet.redirects[0];
    ensure!(redirect.node() == BACKEND);
    has_three(redirect.id().context("it does not run")?)?;
    redirect.end(Signal::SIGTERM)?;
    let path = redirect.config().to_owned();

    let run = fleet.lab.scratch().join("run");
    fs::create_dir_all(&run)?;
    chown(&run, Some(USER), Some(USER))?;
    fs::set_permissions(fleet.lab.bpf(), fs::Permissions::from_mode(0o755))?;
    let pins = fleet.lab.bpf().join(BACKEND.to_string());
    let owner = format!("{USER}:{USER}");
    command::run(Command::new("chown").args(["--recursive", &owner]).arg(pins))?;
    let socket = format!("control.socket = \"{}\"", run.join("control.sock").display());
    let config = fs::read_to_string(&path)?.replace("control.socket = \"control.sock\"", &socket);
    fs::write(&path, &config)?;
    chown(&path, None, Some(USER))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640))?;

    let notify = fleet.lab.scratch().join("notify");
    let manager = UnixDatagram::bind(&notify)?;
    manager.set_read_timeout(Some(Duration::from_millis(200)))?;
    chown(&notify, Some(USER), Some(USER))?;
    let mut command = as_user(&fleet, BACKEND, ALL)?;
    // The watchdog names one process, so the shell becomes the daemon.
    command.args(["sh", "-c", "WATCHDOG_PID=$$ exec \"$@\"", "sh"]);
    command.arg(Program::Redirect.path()?).arg("run").arg("--config").arg(&path);
    command.env("NOTIFY_SOCKET", &notify).env("WATCHDOG_USEC", "1000000");
    let mut process = fleet.lab.spawn(BACKEND, "glb-redirect-user", &mut command)?;

    let message = next_notification(&manager, "READY=1")
        .with_context(|| format!("its log:\n{}", process.log().unwrap_or_default()))?;
    ensure!(message.contains("STATUS=generation 2 is in force"), "{message}");
    ensure!(process.log()?.contains("adopting"), "{}", process.log()?);
    ensure!(of_threads(process.id(), "Uid")?[0].starts_with(&USER.to_string()));
    has_three(process.id())?;
    everybody_answers(&fleet.lab)?;
    for _ in 0..3 {
        next_notification(&manager, "WATCHDOG=1")?;
    }

    // A changed configuration leads to a new generation.
    fs::write(&path, format!("unknown_senders = \"pass\"\n{config}"))?;
    process.signal(Signal::SIGHUP)?;
    let message = next_notification(&manager, "RELOADING=1")?;
    ensure!(message.contains("MONOTONIC_USEC="), "{message}");
    let message = next_notification(&manager, "READY=1")?;
    ensure!(message.contains("STATUS=generation 3 is in force"), "{message}");
    everybody_answers(&fleet.lab)?;
    fs::write(&path, "nonsense")?;
    process.signal(Signal::SIGHUP)?;
    next_notification(&manager, "generation 3 is in force; the last reload failed")?;

    process.signal(Signal::SIGTERM)?;
    next_notification(&manager, "STOPPING=1")?;
    ensure!(process.wait(Duration::from_secs(20))?.success());
    everybody_answers(&fleet.lab)
}
