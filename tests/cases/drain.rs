//! The main promise: a drain breaks no connection, because of second chance and nothing else.

use anyhow::{Result, ensure};
use glb_lab::{
    Family, Fleet, GitClone, Lock, Plan, State,
    demo::{self, Options, Outcome},
};

use crate::support::{build, ends_well, everybody_answers, reaches};

/// A shorter demo. Only one runs at a time, because two would share two cores.
fn short(name: &str) -> Result<(Options, Lock)> {
    build()?;
    let options = Options { name: name.to_owned(), megabytes: 30, mbit: 40, ..Options::default() };
    Ok((options, Lock::wait("timing")?))
}

/// Runs the demo; its output is shown if the test fails.
fn play(options: &Options) -> Result<Outcome> {
    let mut story = Vec::new();
    let outcome = demo::run(options, &mut story, false);
    println!("{}", String::from_utf8_lossy(&story));
    outcome
}

#[test]
fn a_clone_survives_the_drain_of_its_backend() -> Result<()> {
    let (options, _lock) = short("glb-t-drain4")?;
    let outcome = play(&options)?;
    ensure!(outcome.held(), "{}", outcome.failures());
    Ok(())
}

#[test]
fn a_clone_survives_the_drain_of_its_backend_over_ipv6() -> Result<()> {
    let (options, _lock) = short("glb-t-drain6")?;
    let outcome = play(&Options { family: Family::V6, ..options })?;
    ensure!(outcome.held(), "{}", outcome.failures());
    Ok(())
}

/// Backends with IPv6 addresses: the tunnel and its hop list use IPv6.
#[test]
fn a_clone_survives_the_drain_of_its_backend_in_a_tunnel_of_ipv6() -> Result<()> {
    build()?;
    let _lock = Lock::wait("timing")?;
    let plan = Plan { client_mbit: Some(40), tunnel: Family::V6, ..Plan::new("glb-t-tunnel6") };
    let mut fleet = Fleet::up(plan, 24, true)?;
    everybody_answers(&fleet.lab)?;
    for family in [Family::V4, Family::V6] {
        let copy = format!("copy-{family:?}");
        let mut clone = GitClone::start(&fleet.lab, family, "big.git", &copy)?;
        reaches(&mut clone, 15)?;
        let (serving, _) = clone.served_by(&fleet.lab)?[0];
        let before = fleet.counters()?;
        fleet.table.set_state(serving, State::Draining);
        fleet.reload()?;
        ends_well(&mut clone, &fleet)?;
        let after = fleet.counters()?;
        ensure!(after.all_forwarded() > before.all_forwarded() + 100, "{before:?} {after:?}");
        fleet.table.set_state(serving, State::Active);
        fleet.reload()?;
    }
    Ok(())
}

#[test]
fn without_second_chance_the_clone_breaks() -> Result<()> {
    for (name, family) in [("glb-t-break4", Family::V4), ("glb-t-break6", Family::V6)] {
        let (options, _lock) = short(name)?;
        let outcome = play(&Options { family, second_chance: false, ..options })?;
        ensure!(outcome.held(), "{}", outcome.failures());
    }
    Ok(())
}
