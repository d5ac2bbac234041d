//! Directors behind BGP: any of them can receive any packet, and they leave and return.

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use glb_lab::{Fleet, Node, Plan, Program, Routing, command, interrupt, pings::Pings};
use serde_json::Value;

use crate::support::{build, everybody_answers};

const FIRST: Node = Node::Director(1);
const SECOND: Node = Node::Director(2);

fn plan(name: &str) -> Plan {
    Plan { directors: 2, routing: Routing::Bgp, ..Plan::new(name) }
}

#[test]
fn directors_leave_and_return_by_bgp() -> Result<()> {
    build()?;
    let mut fleet = Fleet::up(plan("glb-t-bgp"), 1, true)?;
    everybody_answers(&fleet.lab)?;
    let counters = fleet.counters()?;
    for director in &counters.directors {
        ensure!(director.packets("encapsulated") > 0, "a director gets nothing: {counters:?}");
    }

    fleet.drain_director(FIRST)?;
    fleet.wait_for_routes(&[SECOND])?;
    everybody_answers(&fleet.lab)?;
    // A restarted BIRD does not announce a director that is out of service.
    let bird = "director1/bird".parse()?;
    fleet.kill(bird)?;
    fleet.start(bird)?;
    fleet.wait_for_sessions()?;
    thread::sleep(Duration::from_secs(2));
    fleet.wait_for_routes(&[SECOND])?;

    fleet.undrain_director(FIRST)?;
    fleet.wait_for_routes(&[FIRST, SECOND])?;
    everybody_answers(&fleet.lab)
}

/// Runs `./x lab`'s program.
fn lab(name: &str, words: &[&str]) -> Result<String> {
    command::output(Command::new(Program::Lab.path()?).args(["--name", name]).args(words))
}

/// Reads the status of a lab as JSON.
fn status(name: &str) -> Result<Value> {
    Ok(serde_json::from_str(&lab(name, &["status", "-o", "json"])?)?)
}

/// Waits until the router's routes of both families lead to these directors.
fn wait_for_routes_to(name: &str, directors: &[&str]) -> Result<()> {
    interrupt::wait(&format!("routes to {directors:?}"), Duration::from_secs(30), || {
        let status = status(name)?;
        let mut vips = status["vips"].as_array().context("no VIPs")?.iter();
        Ok(vips.all(|vip| vip["routed_to"] == serde_json::json!(directors)).then_some(()))
    })
}

/// Each command runs as a separate process, as a user types it.
#[test]
fn kept_lab_is_operated_by_commands() -> Result<()> {
    build()?;
    let name = "glb-t-cli";
    let _down = LabCleanup(name);
    let words = ["up", "--directors=2", "--backends=3", "--clients=2", "--repository=1"];
    lab(name, &[&words[..], &["--health"]].concat())?;
    let error = lab(name, &["up"]).expect_err("it is up").to_string();
    ensure!(error.contains("lab down --name glb-t-cli"), "{error}");

    wait_for_routes_to(name, &["director1", "director2"])?;
    let seen = status(name)?;
    for session in seen["sessions"].as_array().context("no sessions")? {
        ensure!(session["state"] == "Established", "{session}");
    }
    let text = lab(name, &["status"])?;
    for word in ["client2", "backend3", "glb-healthcheck", "203.0.113.10", "active"] {
        ensure!(text.contains(word), "{word} is missing: {text}");
    }
    let page = lab(name, &["exec", "client2", "--", "git", "ls-remote", REPOSITORY])?;
    ensure!(page.contains("refs/heads/main"), "{page}");
    let counters = ["glb-director", "counters", "--config", "glb-director.toml"];
    let counters = lab(name, &[&["exec", "directors", "--"][..], &counters].concat())?;
    ensure!(counters.contains("== director2"), "{counters}");

    lab(name, &["drain", "backend2"])?;
    let seen = status(name)?;
    ensure!(seen["backends"][1]["state"] == "draining", "{seen}");
    ensure!(seen["directors"][0]["order_digest"] == seen["directors"][1]["order_digest"], "{seen}");
    lab(name, &["back", "backend2"])?;

    // Kills a daemon.
    lab(name, &["kill", "director1/bird"])?;
    wait_for_routes_to(name, &["director2"])?;
    let daemons = &status(name)?["nodes"];
    let text = lab(name, &["status"])?;
    ensure!(text.contains("bird DEAD"), "{text} {daemons}");
    // The lab's status shows a director's problems next to everything else.
    interrupt::wait("the director's problem", Duration::from_secs(30), || {
        let seen = status(name)?;
        let problems = seen["directors"][0]["problems"].to_string();
        let generation = &seen["directors"][0]["generation"];
        Ok((problems.contains("BIRD") && generation.is_u64()).then_some(()))
    })?;
    let error = lab(name, &["kill", "director1/bird"]).expect_err("it is dead").to_string();
    ensure!(error.contains("does not run"), "{error}");
    // The director is in service again when the command ends.
    lab(name, &["start", "director1/bird"])?;
    let seen = status(name)?;
    for vip in seen["vips"].as_array().context("no VIPs")? {
        ensure!(vip["routed_to"] == serde_json::json!(["director1", "director2"]), "{seen}");
    }
    ensure!(seen["directors"][0]["announcements"]["vips"] == "announced", "{seen}");

    // The lab's status shows a director's own drain.
    let ask = |word: &'static str| {
        let words = ["glb-director", word, "--config", "glb-director.toml"];
        lab(name, &[&["exec", "director1", "--"][..], &words].concat())
    };
    ask("drain")?;
    let text = lab(name, &["status"])?;
    ensure!(text.contains("vips withdrawn, DRAINED"), "{text}");
    ask("undrain")?;
    wait_for_routes_to(name, &["director1", "director2"])?;

    // Kills a machine. The table changes meanwhile.
    lab(name, &["kill", "director1"])?;
    wait_for_routes_to(name, &["director2"])?;
    lab(name, &["fill", "backend1"])?;
    lab(name, &["start", "director1"])?;
    wait_for_routes_to(name, &["director1", "director2"])?;
    let seen = status(name)?;
    ensure!(seen["directors"][0]["order_digest"] == seen["directors"][1]["order_digest"], "{seen}");
    lab(name, &["exec", "client", "--", "git", "ls-remote", REPOSITORY])?;

    for (words, wanted) in [
        (&["kill", "router"][..], "router/bird"),
        (&["kill", "director1/nginx"], "director1/glb-director"),
        (&["kill", "director7"], "director7"),
        (&["drain", "backend9"], "not a backend"),
        (&["kill", "fridge"], "not a node"),
    ] {
        let error = lab(name, words).expect_err("refused").to_string();
        ensure!(error.contains(wanted), "{words:?}: {error}");
    }
    lab(name, &["down"])?;
    let error = lab(name, &["status"]).expect_err("it is gone").to_string();
    ensure!(error.contains("./x lab up --name glb-t-cli"), "{error}");
    Ok(())
}

const REPOSITORY: &str = "http://203.0.113.10/git/big.git";

/// Removes a lab that a failed test left running.
struct LabCleanup(&'static str);

impl Drop for LabCleanup {
    fn drop(&mut self) {
        if let Err(error) = glb_lab::down(self.0) {
            eprintln!("{error:#}");
        }
    }
}

/// The counter-check of the survival suite's packet loss: an unplugged cable is measured.
#[test]
fn pings_measure_the_loss_of_an_unplugged_cable() -> Result<()> {
    build()?;
    let fleet = Fleet::up(Plan { backends: 2, ..Plan::new("glb-t-pings") }, 1, true)?;
    let pings = Pings::start(&fleet.lab)?;
    thread::sleep(Duration::from_millis(200));
    let begun = Instant::now();
    fleet.lab.unplug(FIRST)?;
    thread::sleep(Duration::from_millis(300));
    fleet.lab.plug_in(FIRST)?;
    thread::sleep(Duration::from_millis(200));
    let loss = pings.loss_since(begun);
    ensure!(loss.lost > 100 && loss.longest > Duration::from_millis(200), "{loss:?}");
    Ok(())
}
