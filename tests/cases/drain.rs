//! The main promise: a drain breaks nothing, because of second chance and nothing else.

use anyhow::{Result, ensure};
use glb_lab::{
    Family, Lock,
    demo::{self, Options, Outcome},
};

use crate::support::build;

/// The demo, shorter. One at a time: two would share the two cores of a small machine.
fn short(name: &str) -> Result<(Options, Lock)> {
    build()?;
    let options = Options { name: name.to_owned(), megabytes: 30, mbit: 40, ..Options::default() };
    Ok((options, Lock::wait("timing")?))
}

/// Runs the demo; its story is seen if the test fails.
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

#[test]
fn without_second_chance_the_clone_breaks() -> Result<()> {
    for (name, family) in [("glb-t-break4", Family::V4), ("glb-t-break6", Family::V6)] {
        let (options, _lock) = short(name)?;
        let outcome = play(&Options { family, second_chance: false, ..options })?;
        ensure!(outcome.held(), "{}", outcome.failures());
    }
    Ok(())
}
