//! The lab itself: it starts, carries packets, and leaves nothing behind.

use std::{
    fs,
    io::Read,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use glb_lab::{Family, Lab, Lock, Node, Plan, Program, client, command, http, vip};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::support::build;

/// Lists namespaces, folders and mounts of the lab `name`.
fn traces(name: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/run/netns").into_iter().flatten() {
        found.extend(entry?.file_name().into_string());
    }
    found.retain(|namespace| namespace.starts_with(&format!("{name}-")));
    for folder in ["/run/glb-lab", "/var/tmp/glb-lab"] {
        let path = Path::new(folder).join(name);
        if path.exists() {
            found.push(path.display().to_string());
        }
    }
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    found.extend(mounts.lines().filter(|m| m.contains(&format!("/{name}/"))).map(str::to_owned));
    Ok(found)
}

#[test]
fn lab_starts_carries_packets_and_leaves_nothing() -> Result<()> {
    let name = "glb-t-updown";
    let lab = Lab::up(Plan { directors: 2, ..Plan::new(name) })?;
    ensure!(traces(name)?.len() > 7, "the check for traces sees nothing: {:?}", traces(name)?);

    lab.route_vips_to(&[Node::Backend(2)])?;
    lab.add_vips(Node::Backend(2))?;
    for family in [Family::V4, Family::V6] {
        let to = SocketAddr::new(vip(family), 80);
        let backend = lab.netns(Node::Backend(2))?;
        let listener = backend.run(|| Ok(TcpListener::bind(to)?))?;
        // From the default address, and from one of the many others.
        for from in [client(family, 0), client(family, 1234)] {
            let limit = Duration::from_secs(2);
            lab.netns(Node::Client)?.run(|| Ok(http::connect(from, to, limit)?))?;
            ensure!(listener.accept()?.1.ip() == from);
        }
    }
    let mut sleep = lab.netns(Node::Backend(1))?.command("sleep");
    let untracked = sleep.arg("1000").spawn()?.id();
    drop(lab);
    ensure!(traces(name)?.is_empty(), "left: {:?}", traces(name)?);
    let stat = fs::read_to_string(format!("/proc/{untracked}/stat")).unwrap_or_default();
    ensure!(stat.is_empty() || stat.contains(" Z "), "a process of the lab lives on: {stat}");
    Ok(())
}

#[test]
fn used_lab_name_is_rejected_and_kept_lab_is_replaced() -> Result<()> {
    let name = "glb-t-name";
    let first = Lab::up(Plan::new(name))?;
    let error = Lab::up(Plan::new(name)).map(drop).map_err(|error| error.to_string());
    ensure!(error.clone().is_err_and(|error| error.contains("being used")), "{error:?}");
    first.keep();
    drop(first);
    ensure!(traces(name)?.len() > 6);
    let neighbour = Lab::up(Plan::new("glb-t-name-client"))?;
    drop(Lab::up(Plan::new(name))?);
    ensure!(traces(name)?.iter().all(|trace| trace.contains("glb-t-name-client")));
    command::run(neighbour.netns(Node::Backend(3))?.command("true").arg("still there"))?;
    drop(neighbour);
    ensure!(traces(name)?.is_empty());
    Ok(())
}

#[test]
fn failing_command_is_named() {
    let error = command::run(Command::new("ip").args(["link", "show", "nonesuch"]));
    assert!(error.is_err_and(|error| error.to_string().contains("ip link show nonesuch")));
}

#[test]
fn interrupted_demo_leaves_nothing() -> Result<()> {
    build()?;
    let _lock = Lock::wait("timing")?;
    let name = "glb-t-early";
    for (milliseconds, signal) in [
        (300, Signal::SIGINT),
        (1_000, Signal::SIGTERM),
        (4_000, Signal::SIGINT),
        (4_000, Signal::SIGKILL),
    ] {
        let mut demo = Command::new(Program::Lab.path()?)
            .args(["demo", "--name", name])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        thread::sleep(Duration::from_millis(milliseconds));
        kill(Pid::from_raw(demo.id().try_into()?), signal)?;
        let status = demo.wait()?;
        if signal == Signal::SIGKILL {
            ensure!(!traces(name)?.is_empty(), "nothing was up after {milliseconds} ms");
            drop(Lab::up(Plan::new(name))?);
        } else {
            let mut error = String::new();
            demo.stderr.take().context("no stderr")?.read_to_string(&mut error)?;
            ensure!(status.code() == Some(130), "{status} after {milliseconds} ms: {error}");
        }
        ensure!(traces(name)?.is_empty(), "{signal}, {milliseconds} ms: {:?}", traces(name)?);
    }
    Ok(())
}
