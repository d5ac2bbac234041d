//! The backend's daemon is killed, given invalid configurations, and detached.

use std::{collections::BTreeSet, fs, time::Duration};

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, MapData};
use glb_lab::{Family, GitClone, Lock, Node, State, command, files_below, vip};
use nix::sys::signal::Signal;

use crate::support::{ask, ends_well, everybody_answers, fleet, has_program, program_id, reaches};

#[test]
fn killed_backend_daemon_keeps_second_chance_and_counters() -> Result<()> {
    let _lock = Lock::wait("timing")?;
    let mut fleet = fleet("glb-t-rkill")?;
    let mut clone = GitClone::start(&fleet.lab, Family::V6, "big.git", "copy")?;
    reaches(&mut clone, 15)?;
    let (serving, _) = *clone.served_by(&fleet.lab)?.first().context("nobody serves the clone")?;
    fleet.table.set_state(serving, State::Draining);
    fleet.reload()?;
    reaches(&mut clone, 25)?;
    for daemon in &mut fleet.redirects {
        ensure!(daemon.end(Signal::SIGKILL)?.code().is_none());
    }

    // The daemon is gone. Packets still find their connections, and new connections are accepted.
    let before = fleet.counters()?;
    reaches(&mut clone, 45)?;
    let between = fleet.counters()?;
    ensure!(between.all_forwarded() > before.all_forwarded());
    for number in 1..10 {
        ask(&fleet.lab, Family::V4, number)?;
    }

    for daemon in &mut fleet.redirects {
        daemon.start(&fleet.lab)?;
    }
    ends_well(&mut clone, &fleet)?;
    // The counters continue from the values of the killed daemon.
    ensure!(fleet.counters()?.all_forwarded() > between.all_forwarded());
    Ok(())
}

#[test]
fn backend_upgrade_keeps_connections() -> Result<()> {
    let _lock = Lock::wait("timing")?;
    let mut fleet = fleet("glb-t-rnew")?;
    let mut clone = GitClone::start(&fleet.lab, Family::V4, "big.git", "copy")?;
    reaches(&mut clone, 15)?;
    let (serving, _) = *clone.served_by(&fleet.lab)?.first().context("nobody serves the clone")?;
    fleet.table.set_state(serving, State::Draining);
    fleet.reload()?;
    reaches(&mut clone, 25)?;
    let before = fleet.counters()?;
    for daemon in &mut fleet.redirects {
        let node = daemon.node();
        let old = program_id(&fleet.lab, node)?;
        ensure!(daemon.end(Signal::SIGKILL)?.code().is_none());
        // Pins of another release: a map with a different element layout, and a map that this
        // release does not have.
        let pins = fleet.lab.bpf().join(node.to_string());
        let addresses = files_below(&pins)?.into_iter().find(|path| path.ends_with("addresses"));
        let addresses = addresses.context("the address table is not pinned")?;
        fs::remove_file(&addresses)?;
        for path in [addresses.clone(), addresses.with_file_name("of_another_release")] {
            Array::<MapData, [u8; 24]>::create(3, 0)?.pin(path)?;
        }
        daemon.start(&fleet.lab)?;
        ensure!(program_id(&fleet.lab, node)? != old, "the old program is still in force");
        // The previous generation is kept until the next change, whichever release made it.
        ensure!(daemon.end(Signal::SIGTERM)?.success());
        daemon.start(&fleet.lab)?;
        let left = files_below(&pins)?;
        ensure!(!left.iter().any(|path| path.ends_with("of_another_release")), "{left:?}");
    }
    ends_well(&mut clone, &fleet)?;
    // The counters continue from the values of the old daemon.
    ensure!(fleet.counters()?.all_forwarded() > before.all_forwarded());
    for number in 1..10 {
        ask(&fleet.lab, Family::V4, number)?;
    }
    Ok(())
}

#[test]
fn backend_program_survives_sigterm_until_detach() -> Result<()> {
    let mut fleet = fleet("glb-t-rterm")?;
    for daemon in &mut fleet.redirects {
        ensure!(daemon.end(Signal::SIGTERM)?.success());
    }
    everybody_answers(&fleet.lab)?;

    let node = Node::Backend(2);
    let pins = fleet.lab.bpf().join(node.to_string());
    ensure!(has_program(&fleet.lab, node)? && !files_below(&pins)?.is_empty());
    let mut detach = fleet.redirects[1].command(&fleet.lab, "detach")?;
    command::run(detach.arg("--vips"))?;
    ensure!(!has_program(&fleet.lab, node)?, "still attached");
    ensure!(files_below(&pins)?.is_empty(), "left: {:?}", files_below(&pins)?);
    let mut ip = fleet.lab.netns(node)?.command("ip");
    let addresses = command::output(ip.args(["address", "show", "dev", "lo"]))?;
    for family in [Family::V4, Family::V6] {
        ensure!(!addresses.contains(&vip(family).to_string()), "{addresses}");
    }

    fleet.redirects[1].start(&fleet.lab)?;
    everybody_answers(&fleet.lab)
}

#[test]
fn removed_pins_are_restored() -> Result<()> {
    let mut fleet = fleet("glb-t-rpins")?;
    let node = fleet.redirects[0].node();
    let pins = fleet.lab.bpf().join(node.to_string());
    let running = program_id(&fleet.lab, node)?;
    let pinned = || -> Result<BTreeSet<_>> { Ok(files_below(&pins)?.into_iter().collect()) };
    let wanted = pinned()?;
    let links = wanted.iter().filter(|pin| pin.starts_with(pins.join("links"))).count();
    ensure!(links == 1, "{wanted:?}");
    for of in ["", "links", "counters", "generations"] {
        let from = fleet.redirects[0].process()?.log()?.len();
        fs::remove_dir_all(if of.is_empty() { pins.clone() } else { pins.join(of) })?;
        let wait = Duration::from_secs(30);
        fleet.redirects[0].process()?.wait_for_log("restored pins", from, wait)?;
        ensure!(pinned()? == wanted, "{of}: {:?} {wanted:?}", pinned()?);
        ensure!(program_id(&fleet.lab, node)? == running, "{of}: another program");
        everybody_answers(&fleet.lab)?;
    }
    // With the daemon killed, the program continues and the next daemon adopts it with its
    // counters.
    let before = fleet.redirects[0].redirect_counters(&fleet.lab)?;
    ensure!(fleet.redirects[0].end(Signal::SIGKILL)?.code().is_none());
    everybody_answers(&fleet.lab)?;
    fleet.redirects[0].start(&fleet.lab)?;
    everybody_answers(&fleet.lab)?;
    let after = fleet.redirects[0].redirect_counters(&fleet.lab)?;
    ensure!(after.taken() > before.taken(), "{before:?} {after:?}");
    // A second daemon finds the folder locked.
    let mut second = fleet.redirects[0].command(&fleet.lab, "detach")?;
    let said = command::finish(&mut second)?;
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    ensure!(said.contains("holds it"), "{said}");
    Ok(())
}

#[test]
fn invalid_configuration_leaves_the_current_one_in_force() -> Result<()> {
    let mut fleet = fleet("glb-t-rbad")?;
    let daemon = &mut fleet.redirects[0];
    let good = fs::read_to_string(daemon.config())?;
    for (bad, word) in [
        ("this is nothing".to_owned(), "glb-redirect.toml"),
        (good.replace("10.0.2.22", "10.0.2.222.2"), "10.0.2.222.2"),
        (good.replace("\"eth0\"", "\"eth7\""), "eth7"),
    ] {
        fs::write(daemon.config(), bad)?;
        let answer = daemon.hangup_refused()?;
        ensure!(answer.contains(word), "{word:?} is not in: {answer}");
        everybody_answers(&fleet.lab)?;
    }
    Ok(())
}
