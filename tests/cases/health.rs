//! The health checker with real servers: every failure of a backend, and the director's reaction.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use glb_lab::{
    BackendFault, CheckedFleet, Daemon, Family, Health, Lab, Node, Plan, ProbeTiming, Program,
    TableFile, vip,
};
use nix::sys::signal::Signal;

use crate::support::build;

const DIRECTOR: Node = Node::Director(1);

const TIMING: ProbeTiming = ProbeTiming {
    interval: Duration::from_millis(300),
    timeout: Duration::from_millis(200),
    fall: 2,
};

/// The allowance beyond interval x fall. `bench failover` measures the time; this test only bounds
/// it.
const SLACK: Duration = Duration::from_secs(5);

/// The number of backends, and half of it.
const ALL: usize = 3;
const HALF: usize = ALL.div_ceil(2);

/// The expected health with the first `ill` backends unhealthy.
fn first(ill: usize) -> [bool; ALL] {
    std::array::from_fn(|index| index >= ill)
}

fn fleet(name: &str, tunnel: Family, more: &str) -> Result<CheckedFleet> {
    build()?;
    let plan = Plan { backends: ALL as u8, tunnel, ..Plan::new(name) };
    CheckedFleet::up(plan, TIMING, more)
}

/// Each failure hits one backend: it is taken out, gets no traffic from the director, and returns
/// after the repair.
fn check_every_fault(fleet: &mut CheckedFleet) -> Result<()> {
    for illness in BackendFault::ALL {
        let mark = fleet.mark()?;
        fleet.strike(0, illness)?;
        let took = fleet.in_force(&mark, &first(1)).context(illness)?;
        println!("{illness}: written {:.2?}, in force {:.2?}", took.written, took.in_force);
        println!("    {}", fleet.reason(&mark)?);
        ensure!(took.in_force < TIMING.noticed() + SLACK, "{illness}: {took:?}");
        for family in [Family::V4, Family::V6] {
            let answers = fleet.ask(family, 24)?;
            println!("    {answers:?}");
            ensure!(
                answers.len() == ALL - 1 && answers.keys().all(|who| who.starts_with("200")),
                "{illness}: {answers:?}"
            );
        }
        let mark = fleet.mark()?;
        fleet.heal(0, illness).context(illness)?;
        fleet.in_force(&mark, &[true; ALL]).context(illness)?;
    }
    Ok(())
}

#[test]
fn every_backend_fault_is_detected() -> Result<()> {
    check_every_fault(&mut fleet("glb-t-ill", Family::V4, "hold_down = \"0ms\"\n")?)
}

#[test]
fn every_backend_fault_is_detected_over_ipv6_tunnels() -> Result<()> {
    check_every_fault(&mut fleet("glb-t-ill6", Family::V6, "hold_down = \"0ms\"\n")?)
}

#[test]
fn mass_failure_and_isolated_checker_are_told_apart() -> Result<()> {
    let mut fleet = fleet("glb-t-many", Family::V4, "hold_down = \"0ms\"\n")?;
    let by_rank = fleet.first_rows()?;

    let mark = fleet.mark()?;
    fleet.servers[..HALF].iter().for_each(|server| server.set(Health::Dead));
    let took = fleet.in_force(&mark, &first(HALF))?;
    let (writes, generations) = (fleet.writes(&mark)?, fleet.generations(&mark)?);
    println!("half at once: {took:.2?}, {writes} writes, {generations} generations");
    ensure!(writes <= 2 && generations <= 2, "{}", fleet.log_since(&mark)?);
    // A row has two hops. Rows whose hops are both dead (a third of them here) get no answer; all
    // other rows are answered by the live backend.
    let answers = fleet.ask(Family::V4, 24)?;
    let answered = answers.get("200 backend3").copied().unwrap_or(0);
    println!("    {answered} of 24 requests answered");
    ensure!((12..=24).contains(&answered), "{answers:?}");
    ensure!(fleet.first_rows()?[2] > by_rank[2], "the living one is not preferred");

    // All backends fail while the gateway answers, so they are unhealthy, and rows keep their rank
    // order.
    let mark = fleet.mark()?;
    fleet.servers.iter().for_each(|server| server.set(Health::Dead));
    let took = fleet.in_force(&mark, &[false; ALL])?;
    println!("all at once: {took:.2?}, rows by rank as when all are well");
    ensure!(fleet.first_rows()? == by_rank, "{:?}, {by_rank:?}", fleet.first_rows()?);
    let mark = fleet.mark()?;
    fleet.servers.iter().for_each(|server| server.set(Health::Well));
    fleet.in_force(&mark, &[true; ALL])?;

    // The checker's own link breaks, so no backend changes its health.
    let mark = fleet.mark()?;
    fleet.lab.netns(Node::Router)?.ip(&format!("link set {DIRECTOR} down\n"))?;
    fleet.wait("isolation", |fleet| Ok(fleet.log_since(&mark)?.contains("checker is isolated")))?;
    thread::sleep(Duration::from_secs(3));
    let mut status = fleet.checker.command(&fleet.lab, "status")?;
    let output = glb_lab::command::finish(&mut status)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.code() == Some(4) && text.contains("ISOLATED"), "{text}");
    ensure!(text.contains("healthy (fail open)"), "{text}");
    fleet.lab.netns(Node::Router)?.ip(&format!("link set {DIRECTOR} up\n"))?;
    fleet.wait("the connection", |f| Ok(f.log_since(&mark)?.contains("has connectivity again")))?;
    thread::sleep(Duration::from_secs(2));
    ensure!(fleet.writes(&mark)? == 0 && fleet.written()? == [true; ALL], "{}", fleet.log()?);
    println!("isolated for some seconds: no write");
    Ok(())
}

/// A stopped checker or one with little processor time marks no backend unhealthy.
#[test]
fn stopped_or_slow_checker_marks_no_backend_unhealthy() -> Result<()> {
    let mut fleet = fleet("glb-t-still", Family::V4, "hold_down = \"0ms\"\n")?;
    let mark = fleet.mark()?;
    let signal = |fleet: &mut CheckedFleet, signal, milliseconds| -> Result<()> {
        fleet.checker.process()?.signal(signal)?;
        thread::sleep(Duration::from_millis(milliseconds));
        Ok(())
    };
    for stopped in [250, 1000, 3000] {
        signal(&mut fleet, Signal::SIGSTOP, stopped)?;
        signal(&mut fleet, Signal::SIGCONT, 1500)?;
    }
    // The checker gets a tenth of the processor time for five seconds.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(5) {
        signal(&mut fleet, Signal::SIGSTOP, 90)?;
        signal(&mut fleet, Signal::SIGCONT, 10)?;
    }
    thread::sleep(Duration::from_millis(1500));
    ensure!(fleet.writes(&mark)? == 0, "{}", fleet.log_since(&mark)?);
    ensure!(fleet.generations(&mark)? == 0, "{}", fleet.log_since(&mark)?);
    Ok(())
}

#[test]
fn flapping_backends_cause_few_table_writes() -> Result<()> {
    let more = "hold_down = \"1000ms\"\nflap_reset = \"60000ms\"\n";
    let mut fleet = fleet("glb-t-flap", Family::V4, more)?;
    for period in [50, 150, 300, 700, 1500] {
        let mark = fleet.mark()?;
        let begun = Instant::now();
        let mut toggles = 0;
        while begun.elapsed() < Duration::from_secs(6) {
            toggles += 1;
            fleet.servers[0].set(if toggles % 2 == 1 { Health::Busy } else { Health::Well });
            thread::sleep(Duration::from_millis(period));
        }
        fleet.servers[0].set(Health::Well);
        let (writes, generations) = (fleet.writes(&mark)?, fleet.generations(&mark)?);
        println!("every {period} ms, {toggles} times: {writes} writes, {generations} generations");
        // The hold-down is 1 s, then 2, then 4, so at most three failures fit.
        ensure!(writes <= 6 && generations <= 6, "{}", fleet.log_since(&mark)?);
        ensure!(fleet.written()?[1..] == [true; ALL - 1], "{:?}", fleet.written()?);
    }
    Ok(())
}

/// The director dies. The checker reports it, continues, and notifies the next director.
#[test]
fn checker_notifies_a_restarted_director() -> Result<()> {
    let mut fleet = fleet("glb-t-away", Family::V4, "hold_down = \"0ms\"\n")?;
    fleet.director.end(Signal::SIGKILL)?;
    fleet.servers[0].set(Health::Dead);
    fleet.wait("the write", |fleet| Ok(fleet.written()? == first(1)))?;
    fleet.wait("the trouble", |fleet| Ok(fleet.log()?.contains("no daemon answers")))?;
    fleet.director.start(&fleet.lab)?;
    ensure!(fleet.healths()? == first(1));
    let mark = fleet.mark()?;
    fleet.servers[1].set(Health::Dead);
    fleet.in_force(&mark, &[false, false, true])?;
    fleet.wait("the word", |f| Ok(f.log_since(&mark)?.contains("in force at the director")))
}

#[test]
fn missing_permission_is_named() -> Result<()> {
    build()?;
    let lab = Lab::up(Plan { backends: 1, ..Plan::new("glb-t-nocap") })?;
    let table = TableFile::new(lab.plan()).toml()?;
    for (check, words) in [
        ("gue = 19523".to_owned(), ["healthchecks.gue", "CAP_NET_RAW"]),
        (
            format!("vip = {{ address = \"{}\", port = 80 }}", vip(Family::V4)),
            ["healthchecks.vip", "CAP_NET_ADMIN"],
        ),
    ] {
        let source = format!("[healthchecks]\n{check}\n\n{table}");
        let checker = Daemon::healthcheck(&lab, DIRECTOR, &source, "")?;
        let mut command = lab.netns(DIRECTOR)?.command("setpriv");
        command.args(["--bounding-set=-all", "--inh-caps=-all"]);
        command.arg(Program::Healthcheck.path()?);
        command.args(["run", "--config"]).arg(checker.config());
        let output = glb_lab::command::finish(&mut command)?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success(), "{text}");
        for word in words {
            ensure!(text.contains(word), "{word} is missing in: {text}");
        }
        ensure!(!checker.config().with_file_name("table.toml").exists(), "it wrote a table");
    }
    Ok(())
}
