//! The director's life: killed, ended, fed nonsense, detached.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use glb_lab::{Family, GitClone, Lock, Node, Requests, State, files_below};
use nix::sys::signal::Signal;

use crate::support::{ask, ends_well, everybody_answers, fleet, has_program, reaches};

#[test]
fn killed_and_restarted_while_a_clone_goes_on() -> Result<()> {
    let _lock = Lock::wait("timing")?;
    let mut fleet = fleet("glb-t-kill")?;
    let begun = Instant::now();
    let requests = Requests::start(&fleet.lab, Family::V6, 2, Duration::from_millis(20))?;
    let mut clone = GitClone::start(&fleet.lab, Family::V4, "big.git", "copy")?;
    reaches(&mut clone, 15)?;
    let before = fleet.counters()?;
    ensure!(fleet.director()?.end(Signal::SIGKILL)?.code().is_none());

    // Nobody is there, and packets go on.
    reaches(&mut clone, 35)?;
    let director = &mut fleet.directors[0];
    director.start(&fleet.lab)?;
    reaches(&mut clone, 45)?;

    // The new one is in charge: it counts on from where the old one was, and it reloads.
    let (serving, _) = clone.served_by(&fleet.lab)?[0];
    let after = fleet.counters()?;
    ensure!(after.sent_to(serving) > before.sent_to(serving), "{before:?} {after:?}");
    fleet.table.set_state(serving, State::Draining);
    fleet.reload()?;
    ends_well(&mut clone, &fleet)?;
    ensure!(fleet.counters()?.all_forwarded() > 0, "the drain had no effect");

    let (answers, errors) = requests.between(begun, Instant::now());
    ensure!(errors.is_empty() && answers.len() == 3, "{answers:?} {errors:?}");
    Ok(())
}

#[test]
fn sigterm_leaves_it_forwarding_and_detach_takes_it_off() -> Result<()> {
    let mut fleet = fleet("glb-t-term")?;
    let node = Node::Director(1);
    let pins = fleet.lab.bpf().join(node.to_string());
    ensure!(fleet.director()?.end(Signal::SIGTERM)?.success());
    everybody_answers(&fleet.lab)?;
    ensure!(has_program(&fleet.lab, node)? && !files_below(&pins)?.is_empty());

    let director = &fleet.directors[0];
    director.detach(&fleet.lab)?;
    ensure!(!has_program(&fleet.lab, node)?, "still attached");
    ensure!(files_below(&pins)?.is_empty(), "left: {:?}", files_below(&pins)?);
    ensure!(ask(&fleet.lab, Family::V4, 1).is_err(), "who forwards now?");
    // Nothing to do is no error.
    director.detach(&fleet.lab)?;

    fleet.directors[0].start(&fleet.lab)?;
    everybody_answers(&fleet.lab)
}

#[test]
fn a_bad_table_leaves_the_running_one_in_force() -> Result<()> {
    let mut fleet = fleet("glb-t-bad")?;
    let good = fleet.table.toml()?;
    for (bad, word) in [
        ("this is not a table".to_owned(), "table.toml"),
        (good.replace("10.0.2.22", "10.0.2.21"), "10.0.2.21"),
        (good.replace("\"active\"", "\"asleep\""), "asleep"),
        (good.replace("\"active\"", "\"inactive\""), "inactive"),
    ] {
        let answer = fleet.director()?.reload_refused(&bad)?;
        ensure!(answer.contains(word), "{word:?} is not in: {answer}");
        everybody_answers(&fleet.lab)?;
    }
    fleet.table.set_state(Node::Backend(2), State::Inactive);
    fleet.reload()?;
    let before = fleet.counters()?.sent_to(Node::Backend(2));
    for number in 0..20 {
        ensure!(ask(&fleet.lab, Family::V4, number)?.to_string() != "200 backend2");
    }
    ensure!(fleet.counters()?.sent_to(Node::Backend(2)) == before);
    Ok(())
}
