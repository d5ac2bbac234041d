//! VIP checks use the tunnel, whatever other checkers run on the machine and whatever is removed.

use std::{fs, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use glb_lab::{
    BackendFault, CheckedFleet, Family, Node, Plan, ProbeTiming, Process, Program, command,
};
use nix::sys::signal::Signal;

use crate::support::build;

const DIRECTOR: Node = Node::Director(1);
const TIMING: ProbeTiming = ProbeTiming {
    interval: Duration::from_millis(500),
    timeout: Duration::from_millis(400),
    fall: 3,
};
const LOST: &str = "checks bypass the tunnel";

fn fleet(name: &str) -> Result<CheckedFleet> {
    build()?;
    let plan = Plan { backends: 2, tunnel: Family::V4, ..Plan::new(name) };
    CheckedFleet::up(plan, TIMING, "hold_down = \"0ms\"\n")
}

fn ip(fleet: &CheckedFleet, words: &str) -> Result<String> {
    let mut ip = fleet.lab.netns(DIRECTOR)?.command("ip");
    command::output(ip.args(words.split_whitespace()))
}

/// Returns the routing table that leads into the tunnel, from the routing rule.
fn table(fleet: &CheckedFleet) -> Result<String> {
    let rules = ip(fleet, "rule show")?;
    let rule = rules.lines().find(|line| line.contains("19523:")).context("no rule")?;
    Ok(rule.split_whitespace().last().context("no table")?.to_owned())
}

/// Returns whether device, rules and routes exist, which the tunnel needs.
fn is_whole(fleet: &CheckedFleet, table: &str) -> Result<bool> {
    let show = |words: &str| ip(fleet, words).unwrap_or_default();
    let lookup = format!("lookup {table}");
    Ok(["-4", "-6"].iter().all(|family| {
        show(&format!("{family} rule show")).contains(&lookup)
            && show(&format!("{family} route show table {table}")).contains("dev glbcheck0")
    }))
}

/// Returns each VIP's last results and the reason of its last failure.
fn check_results(status: &str) -> Result<Vec<(String, String)>> {
    let status: serde_json::Value = serde_json::from_str(status)?;
    let list = |value: &serde_json::Value| value.as_array().cloned().unwrap_or_default();
    let backends = list(&status["tables"]).into_iter().flat_map(|t| list(&t["backends"]));
    let checks = backends.flat_map(|backend| list(&backend["checks"]));
    let word = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let vips = checks.filter(|check| word(&check["check"]).starts_with("vip "));
    Ok(vips.map(|check| (word(&check["history"]), word(&check["last_error"]))).collect())
}

#[test]
fn removed_tunnel_parts_are_restored() -> Result<()> {
    let mut fleet = fleet("glb-t-hway")?;
    let table = table(&fleet)?;
    ensure!(is_whole(&fleet, &table)?, "{}", ip(&fleet, "rule show")?);
    let removals = [
        "-4 rule del priority 19523".to_owned(),
        "-6 rule del priority 19523".to_owned(),
        format!("-4 route flush table {table}"),
        format!("-6 route flush table {table}"),
        "link set glbcheck0 down".to_owned(),
        "link del glbcheck0".to_owned(),
    ];
    for removal in removals {
        let mark = fleet.mark()?;
        ip(&fleet, &removal)?;
        ensure!(!is_whole(&fleet, &table)?, "{removal} removes nothing");
        fleet.wait(&removal, |fleet| is_whole(fleet, &table)).context(removal.clone())?;
        let log = fleet.log_since(&mark)?;
        ensure!(log.contains(LOST), "{removal}: {log}");
        // Each VIP is checked again, and no backend was marked unhealthy meanwhile.
        fleet.wait("passes", |fleet| {
            let status =
                command::output(fleet.checker.command(&fleet.lab, "status")?.args(["-o", "json"]))?;
            Ok(check_results(&status)?.iter().all(|(history, _)| history.ends_with("..")))
        })?;
        ensure!(fleet.writes(&mark)? == 0, "{removal}: {}", fleet.log_since(&mark)?);
    }
    // The checker still detects failed backends.
    let mark = fleet.mark()?;
    fleet.strike(0, BackendFault::VipMissing)?;
    fleet.in_force(&mark, &[false, true])?;
    fleet.heal(0, BackendFault::VipMissing)?;
    Ok(())
}

#[test]
fn two_checkers_on_one_machine_are_independent() -> Result<()> {
    let mut fleet = fleet("glb-t-htwo")?;
    let folder = fleet.lab.scratch().join("second");
    fs::create_dir(&folder)?;
    fs::copy(fleet.checker.config().with_file_name("source.toml"), folder.join("source.toml"))?;
    let config = folder.join("healthcheck.toml");
    let text = "input = \"source.toml\"\noutput = \"table.toml\"\ncontrol.socket = \"sock\"\n";
    fs::write(&config, format!("{text}hold_down = \"0ms\"\n"))?;
    let start = |fleet: &CheckedFleet| -> Result<Process> {
        let mut run = fleet.lab.netns(DIRECTOR)?.command(Program::Healthcheck.path()?);
        run.args(["run", "--config"]).arg(&config);
        let mut process = fleet.lab.spawn(DIRECTOR, "glb-healthcheck-second", &mut run)?;
        process.wait_for_log("ready", 0, Duration::from_secs(60))?;
        Ok(process)
    };
    let goes_on = |fleet: &mut CheckedFleet| -> Result<()> {
        thread::sleep(4 * TIMING.interval);
        let status =
            command::output(fleet.checker.command(&fleet.lab, "status")?.args(["-o", "json"]))?;
        for (history, error) in check_results(&status)? {
            ensure!(!error.contains("bypassed the tunnel"), "{history} {error}");
        }
        let log = fleet.log()?;
        ensure!(!log.contains(LOST), "{log}");
        Ok(())
    };
    let mut second = start(&fleet)?;
    goes_on(&mut fleet)?;
    ensure!(!second.log()?.contains(LOST), "{}", second.log()?);
    // Each checker detects failed backends independently.
    let mark = fleet.mark()?;
    fleet.strike(1, BackendFault::VipMissing)?;
    fleet.in_force(&mark, &[true, false])?;
    fleet.wait("the second one's word", |_| {
        Ok(fs::read_to_string(folder.join("table.toml"))?.contains("healthy = false"))
    })?;
    fleet.heal(1, BackendFault::VipMissing)?;
    fleet.in_force(&mark, &[true, true])?;
    // A killed or restarted checker does not affect the other.
    second.signal(Signal::SIGKILL)?;
    second.wait(Duration::from_secs(10))?;
    goes_on(&mut fleet)?;
    let second = start(&fleet)?;
    goes_on(&mut fleet)?;
    ensure!(!second.log()?.contains(LOST), "{}", second.log()?);
    Ok(())
}
