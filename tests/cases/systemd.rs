//! The packaged units under a real systemd, each in its full sandbox.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use glb_lab::{
    Daemon, Family, FaultyServer, Fleet, Health, INTERFACE, Lab, Node, Plan, Program, State,
    TableFile, interrupt, vip,
};
use nix::sys::signal::Signal;

use crate::{
    machine::{Machine, PROGRAM},
    support::{build, everybody_answers},
};

const DIRECTOR: Node = Node::Director(1);

#[test]
fn director_unit_runs_in_its_sandbox() -> Result<()> {
    build()?;
    let mut fleet = Fleet::up(Plan { backends: 2, ..Plan::new("glb-t-systemd") }, 1, true)?;
    fleet.director()?.end(Signal::SIGTERM)?;
    fleet.directors[0].detach(&fleet.lab)?;
    let table = fleet.table.toml()?;
    let config = format!("table = \"table.toml\"\ninterfaces = [\"{INTERFACE}\"]\n");
    let files = [("table.toml", table.as_str()), ("director.toml", &config)];
    let machine = Machine::start(&fleet.lab, DIRECTOR, Program::Director, &files)?;
    let unit = machine.unit.as_str();
    let first = machine.active("0")?;
    everybody_answers(&fleet.lab)?;

    machine.verify()?;
    // CAP_NET_ADMIN, CAP_PERFMON and CAP_BPF.
    machine.is_confined(&first, "000000c000001000")?;
    let glb = |words: &[&str]| {
        let mut all = vec![PROGRAM];
        all.extend(words);
        all.extend(["--config", "/run/glb/director.toml"]);
        machine.well(&all)
    };
    glb(&["status"])?;

    // A changed table comes into force, and `systemctl reload` reports the result.
    fleet.table.set_state(fleet.redirects[0].node(), State::Draining);
    fs::write(machine.folder.join("table.toml"), fleet.table.toml()?)?;
    machine.well(&["systemctl", "reload", unit])?;
    ensure!(glb(&["show", "backends"])?.contains("draining"), "{}", machine.log());
    fs::write(machine.folder.join("table.toml"), "nonsense")?;
    ensure!(!machine.run(&["systemctl", "reload", unit])?.status.success());
    fs::write(machine.folder.join("table.toml"), fleet.table.toml()?)?;
    machine.well(&["systemctl", "reload", unit])?;

    // A killed daemon is restarted and adopts the running program without loss.
    machine.well(&["systemctl", "kill", "--signal", "KILL", unit])?;
    crate::support::ask_everybody(&fleet.lab)?;
    let second = machine.active(&first)?;
    ensure!(machine.log().contains("adopting"), "{}", machine.log());
    // A restart runs the unit's preparation again.
    machine.well(&["systemctl", "restart", unit])?;
    machine.active(&second)?;
    glb(&["status"])?;
    crate::support::ask_everybody(&fleet.lab)?;
    machine.well(&["systemctl", "stop", unit])?;
    ensure!(machine.property("Result")? == "success", "{}", machine.log());
    // The program stays attached.
    crate::support::ask_everybody(&fleet.lab)?;
    let log = machine.log();
    ensure!(!log.contains("panicked"), "{log}");
    Ok(())
}

/// Every kind of check that needs privileges, and an `exec` check.
#[test]
fn healthcheck_unit_runs_in_its_sandbox() -> Result<()> {
    build()?;
    let lab = Lab::up(Plan { backends: 1, ..Plan::new("glb-t-systemd-h") })?;
    let mut redirect = Daemon::redirect(&lab, Node::Backend(1), true)?;
    redirect.start(&lab)?;
    let server = FaultyServer::start(&lab, Node::Backend(1), Duration::from_secs(1))?;
    let source = format!(
        "[healthchecks]\ninterval = \"1000ms\"\ntimeout = \"900ms\"\nrise = 1\nfall = 2\n\
         gue = 19523\nhttp = 80\nvip = {{ address = \"{}\", port = 80, path = \"/\" }}\n\
         exec = {{ command = [\"grep\", \"-q\", \"CapEff:.0000000000000000\", \"/proc/self/status\"] }}\n\n{}",
        vip(Family::V4),
        TableFile::new(lab.plan()).toml()?,
    );
    // The output file is where the unit's header says.
    let place = "/var/lib/glb-healthcheck/table.toml";
    let config = format!(
        "input = \"table.src.toml\"\noutput = \"{place}\"\nhold_down = \"0ms\"\ndebounce = \"200ms\"\n"
    );
    let files = [("table.src.toml", source.as_str()), ("healthcheck.toml", &config)];
    let machine = Machine::start(&lab, DIRECTOR, Program::Healthcheck, &files)?;
    let unit = machine.unit.as_str();
    let first = machine.active("0")?;
    machine.verify()?;
    // CAP_NET_ADMIN and CAP_NET_RAW.
    machine.is_confined(&first, "0000000000003000")?;
    let written = |wanted: &str| {
        interrupt::wait(wanted, Duration::from_secs(60), || {
            Ok(machine.well(&["cat", place])?.contains(wanted).then_some(()))
        })
        .with_context(|| machine.log())
    };
    written("healthy = true")?;
    let status = || machine.well(&[PROGRAM, "status", "--config", "/run/glb/healthcheck.toml"]);
    let said = status()?;
    for check in ["gue 19523", "http 80", "vip ", "exec grep"] {
        ensure!(said.contains(check), "{check:?} is missing in {said}");
    }
    server.set(Health::Dead);
    written("healthy = false")?;

    // A reload works, an invalid one changes nothing, and a killed daemon restarts without a health
    // change.
    fs::write(machine.folder.join("table.src.toml"), "nonsense")?;
    machine.well(&["systemctl", "reload", unit])?;
    interrupt::wait("the refusal", Duration::from_secs(60), || {
        Ok(machine.log().contains("the previous input stays").then_some(()))
    })?;
    fs::write(machine.folder.join("table.src.toml"), source.replace("http = 80\n", ""))?;
    machine.well(&["systemctl", "reload", unit])?;
    interrupt::wait("the reload", Duration::from_secs(60), || {
        Ok((!status()?.contains("http 80")).then_some(()))
    })?;
    machine.well(&["systemctl", "kill", "--signal", "KILL", unit])?;
    let second = machine.active(&first)?;
    server.set(Health::Well);
    written("healthy = true")?;
    machine.well(&["systemctl", "restart", unit])?;
    machine.active(&second)?;
    status()?;
    machine.well(&["systemctl", "stop", unit])?;
    ensure!(machine.property("Result")? == "success", "{}", machine.log());
    let log = machine.log();
    ensure!(!log.contains("panicked"), "{log}");
    Ok(())
}

#[test]
fn backend_unit_runs_in_its_sandbox() -> Result<()> {
    build()?;
    let mut fleet = Fleet::up(Plan { backends: 2, ..Plan::new("glb-t-systemd-b") }, 1, true)?;
    let redirect = &mut fleet.redirects[0];
    let node = redirect.node();
    redirect.end(Signal::SIGTERM)?;
    redirect.detach(&fleet.lab)?;
    // The same configuration with the unit's default paths.
    let config = fs::read_to_string(redirect.config())?;
    let is_place =
        |line: &&str| line.starts_with("bpffs_dir = ") || line.starts_with("control.socket");
    let lines = config.lines().filter(|line| !is_place(line));
    let config: String = lines.flat_map(|line| [line, "\n"]).collect();
    let files = [("redirect.toml", config.as_str())];
    let machine = Machine::start(&fleet.lab, node, Program::Redirect, &files)?;
    let unit = machine.unit.as_str();
    let first = machine.active("0")?;
    machine.verify()?;
    // CAP_NET_ADMIN, CAP_PERFMON and CAP_BPF.
    machine.is_confined(&first, "000000c000001000")?;
    everybody_answers(&fleet.lab)?;
    let connections =
        || machine.well(&[PROGRAM, "connections", "--config", "/run/glb/redirect.toml"]);
    connections()?;

    // A reload works, and an invalid one changes nothing.
    fs::write(machine.folder.join("redirect.toml"), "nonsense")?;
    machine.well(&["systemctl", "reload", unit])?;
    interrupt::wait("the refusal", Duration::from_secs(60), || {
        Ok(machine.log().contains("the running configuration stays").then_some(()))
    })
    .with_context(|| machine.log())?;
    fs::write(machine.folder.join("redirect.toml"), &config)?;
    machine.well(&["systemctl", "reload", unit])?;
    everybody_answers(&fleet.lab)?;

    // After kill, restart and stop, the program continues.
    machine.well(&["systemctl", "kill", "--signal", "KILL", unit])?;
    everybody_answers(&fleet.lab)?;
    let second = machine.active(&first)?;
    machine.well(&["systemctl", "restart", unit])?;
    machine.active(&second)?;
    connections()?;
    everybody_answers(&fleet.lab)?;
    machine.well(&["systemctl", "stop", unit])?;
    ensure!(machine.property("Result")? == "success", "{}", machine.log());
    everybody_answers(&fleet.lab)?;
    let log = machine.log();
    ensure!(!log.contains("panicked"), "{log}");
    Ok(())
}
