//! Notifications for the service manager, and the JSON log.

use std::{
    fs,
    os::unix::net::UnixDatagram,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use glb_lab::{Daemon, Lab, Node, Plan, Program, TableFile, interrupt};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{build, has_program};

const DIRECTOR: Node = Node::Director(1);

/// Returns the next message that contains `text` and drops earlier ones.
pub(crate) fn next_notification(socket: &UnixDatagram, text: &str) -> Result<String> {
    let mut bytes = [0; 4096];
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(30) {
        let Ok(length) = socket.recv(&mut bytes) else { continue };
        let message = String::from_utf8_lossy(&bytes[..length]).into_owned();
        if message.contains(text) {
            return Ok(message);
        }
    }
    anyhow::bail!("the service manager got no message with {text:?}")
}

#[test]
fn service_manager_is_notified_and_the_log_is_json() -> Result<()> {
    build()?;
    let lab = Lab::up(Plan { backends: 2, ..Plan::new("glb-t-service") })?;
    let director = Daemon::director(&lab, DIRECTOR, &TableFile::new(lab.plan()))?;
    let path = lab.scratch().join("notify");
    let socket = UnixDatagram::bind(&path)?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    // The watchdog names one process, so the shell becomes the daemon.
    let mut command = lab.netns(DIRECTOR)?.command("sh");
    command.args(["-c", "WATCHDOG_PID=$$ exec \"$@\"", "sh"]).arg(Program::Director.path()?);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "1000000");
    command.args(["run", "--log-level", "info,glb_director=debug"]);
    command.args(["--log-format", "json", "--config"]).arg(director.config());
    let mut process = lab.spawn(DIRECTOR, "glb-director-json", &mut command)?;

    let message = next_notification(&socket, "READY=1")?;
    ensure!(message.contains("STATUS=generation 1 is in force"), "{message}");
    ensure!(process.log()?.contains("self-test passed"), "ready before the self-test");
    ensure!(has_program(&lab, DIRECTOR)?, "ready before it is attached");
    for _ in 0..3 {
        next_notification(&socket, "WATCHDOG=1")?;
    }

    process.signal(Signal::SIGHUP)?;
    let message = next_notification(&socket, "RELOADING=1")?;
    ensure!(message.contains("MONOTONIC_USEC="), "{message}");
    next_notification(&socket, "READY=1")?;

    director.write_table("nonsense")?;
    process.signal(Signal::SIGHUP)?;
    next_notification(&socket, "the last reload failed")?;
    process.signal(Signal::SIGTERM)?;
    next_notification(&socket, "STOPPING=1")?;
    ensure!(process.wait(Duration::from_secs(20))?.success());

    let log = process.log()?;
    for line in log.lines() {
        let event: Value =
            serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))?;
        for field in ["timestamp", "level", "message"] {
            ensure!(event.get(field).is_some(), "{field} is missing in {line}");
        }
    }
    let key = "5b1f8a1e6f0c43d2a7e94c0d1b2a3f48";
    ensure!(!log.contains(key), "a key in the log");
    Ok(())
}

#[test]
fn log_levels_apply_and_the_final_error_is_json() -> Result<()> {
    build()?;
    let lab = Lab::up(Plan { backends: 1, ..Plan::new("glb-t-levels") })?;
    let director = Daemon::director(&lab, DIRECTOR, &TableFile::new(lab.plan()))?;
    let run = |words: &[&str]| -> Result<String> {
        let mut command = director.command(&lab, "run")?;
        let mut process = lab.spawn(DIRECTOR, "glb-director-level", command.args(words))?;
        interrupt::wait("the control socket", Duration::from_secs(30), || {
            let there = director.config().with_file_name("control.sock").exists();
            Ok((there && has_program(&lab, DIRECTOR)?).then_some(()))
        })?;
        process.signal(Signal::SIGTERM)?;
        process.wait(Duration::from_secs(20))?;
        process.log()
    };
    let log = run(&["--log-level", "error"])?;
    ensure!(log.is_empty(), "{log}");
    let log = run(&["--log-level", "debug"])?;
    ensure!(log.contains("DEBUG") && log.contains("INFO"), "{log}");

    // Otherwise the daemon would adopt the generation left behind.
    director.detach(&lab)?;
    fs::remove_file(director.config().with_file_name("table.toml"))?;
    let mut command = director.command(&lab, "run")?;
    let output = glb_lab::command::finish(command.args(["--log-format", "json"]))?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let last: Value = serde_json::from_str(text.lines().last().unwrap_or_default())?;
    ensure!(last["message"].as_str().is_some_and(|m| m.contains("table.toml")), "{text}");
    Ok(())
}
