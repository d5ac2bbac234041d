//! The director's prober: faults that health checks and counters do not see become problems within
//! seconds.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use glb_lab::{Daemon, Lab, Node, Plan, TableFile, command};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::build;

/// The time limit for a fault to become a problem: an interval, two time-outs and a busy machine.
const PATIENCE: Duration = Duration::from_secs(15);

fn status(lab: &Lab, director: &Daemon) -> Result<Value> {
    let output = command::finish(director.command(lab, "status")?.args(["-o", "json"]))?;
    serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The prober's problems, as `name: message`.
fn problems(status: &Value) -> Vec<String> {
    let all = status["problems"].as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = all.map(|one| format!("{}: {}", text(&one["name"]), text(&one["message"])));
    all.filter(|one| one.starts_with("probe_")).collect()
}

/// Waits until the prober's problems satisfy `is_right`, and returns the seconds that took.
fn wait(lab: &Lab, director: &Daemon, is_right: impl Fn(&[String], &Value) -> bool) -> Result<f64> {
    let begun = Instant::now();
    loop {
        let status = status(lab, director)?;
        let problems = problems(&status);
        if is_right(&problems, &status) {
            return Ok(begun.elapsed().as_secs_f64());
        }
        ensure!(begun.elapsed() < PATIENCE, "{problems:#?}\n{:#}", status["probes"]);
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn is_well(problems: &[String], status: &Value) -> bool {
    let probes = status["probes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let answered = probes.iter().filter(|one| one["losses"] == 0 && one["error"].is_null());
    problems.is_empty() && !probes.is_empty() && answered.count() == probes.len()
}

#[test]
fn prober_finds_a_forgotten_director_an_mtu_hole_and_a_broken_path() -> Result<()> {
    build()?;
    let plan = Plan { backends: 3, data_centre_mtu: 1500, ..Plan::new("glb-t-prober") };
    let lab = Lab::up(plan)?;
    let mut redirects = Vec::new();
    for node in lab.plan().backend_nodes() {
        let mut daemon = Daemon::redirect(&lab, node, true)?;
        daemon.start(&lab)?;
        redirects.push(daemon);
    }
    let table = TableFile::new(lab.plan());
    let mut director = Daemon::director(&lab, Node::Director(1), &table)?;
    director.configure("probe.enabled", "true")?;
    director.configure("probe.interval", "\"2s\"")?;
    director.start(&lab)?;
    let took = wait(&lab, &director, is_well)?;
    println!("every backend answers probes of both sizes, {took:.1} s after the start");

    // Each family and size is probed, and the large probes fill the path.
    let probes = status(&lab, &director)?["probes"].clone();
    let full = probes.as_array().into_iter().flatten().filter(|one| one["size"] == "full");
    let bytes: Vec<u64> = full.filter_map(|one| one["bytes"].as_u64()).collect();
    ensure!(bytes.len() == 2 * 3 && bytes.iter().all(|bytes| *bytes > 1_400), "{probes:#}");

    // A backend that does not know this director drops its packets.
    let second = Node::Backend(2);
    let address = second.v4().to_string();
    let names = |problems: &[String], name: &str| {
        !problems.is_empty()
            && problems.iter().all(|one| one.starts_with(name) && one.contains(&address))
    };
    ensure!(redirects[1].end(Signal::SIGTERM)?.success());
    let config = fs::read_to_string(redirects[1].config())?;
    let directors = config.lines().find_map(|line| line.strip_prefix("directors = "));
    let directors = directors.context("no line `directors = `")?.to_owned();
    redirects[1].configure("directors", "[\"192.0.2.1\"]")?;
    redirects[1].start(&lab)?;
    let took = wait(&lab, &director, |problems, _| names(problems, "probe_failed"))?;
    println!("a backend that lacks this director: found after {took:.1} s");
    ensure!(redirects[1].end(Signal::SIGTERM)?.success());
    redirects[1].configure("directors", &directors)?;
    redirects[1].start(&lab)?;
    wait(&lab, &director, is_well)?;

    // A hole in the path while both ends say 1500.
    let router = lab.netns(Node::Router)?;
    router.ip(&format!("link set {second} mtu 1450\n"))?;
    let took = wait(&lab, &director, |problems, _| names(problems, "probe_mtu"))?;
    println!("an MTU hole of 1450: found after {took:.1} s");
    router.ip(&format!("link set {second} mtu 1500\n"))?;
    wait(&lab, &director, is_well)?;

    // No backend answers: the director's own port is down on the way.
    router.ip("link set director1 mtu 500\n")?;
    let full_fails = |problems: &[String], _: &Value| problems.len() >= 3;
    let took = wait(&lab, &director, full_fails)?;
    println!("a hole at this director's port: found after {took:.1} s");
    router.ip("link set director1 mtu 1500\n")?;
    wait(&lab, &director, is_well)?;
    for node in lab.plan().backend_nodes() {
        router.ip(&format!("link set {node} down\n"))?;
    }
    let is_path = |problems: &[String], _: &Value| {
        !problems.is_empty() && problems.iter().all(|one| one.starts_with("probe_path"))
    };
    let took = wait(&lab, &director, is_path)?;
    println!("no backend answers: found after {took:.1} s");
    ensure!(director.end(Signal::SIGTERM)?.success());
    Ok(())
}
