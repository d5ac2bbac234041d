//! The short form of the survival suite, and a check that the suite detects broken connections.

use std::{collections::BTreeSet, fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};
use glb_lab::{Lock, Program, command};

use crate::support::build;

struct Suite {
    reports: PathBuf,
    name: &'static str,
    form: &'static str,
}

impl Suite {
    fn new(name: &'static str, form: &'static str) -> Result<Self> {
        build()?;
        let reports = std::env::temp_dir().join(name);
        fs::remove_dir_all(&reports).ok();
        Ok(Self { reports, name, form })
    }

    /// Runs the suite; its output is shown if the test fails.
    fn run(&self, arguments: &[&str]) -> Result<(bool, serde_json::Value)> {
        let program = Program::Director.path()?.with_file_name("glb-survive");
        let mut suite = Command::new(program);
        suite.args(["--seed", "1", "--name", self.name, "--form", self.form]);
        suite.args(arguments).arg("--reports").arg(&self.reports);
        let done = command::finish(&mut suite)?;
        println!("{}", String::from_utf8_lossy(&done.stderr));
        let report = fs::read(self.reports.join(format!("{}-seed-1.json", self.form)))
            .context("no report")?;
        Ok((done.status.success(), serde_json::from_slice(&report)?))
    }
}

impl Drop for Suite {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.reports).ok();
    }
}

#[test]
fn survival_suite_breaks_no_protected_connection() -> Result<()> {
    let (held, report) = Suite::new("glb-t-survive", "short")?.run(&[])?;
    ensure!(held, "connections broke that were not allowed to");
    let names = |list: &str| -> BTreeSet<String> {
        let entries = report[list].as_array().into_iter().flatten();
        entries.filter_map(|entry| Some(entry["name"].as_str()?.to_owned())).collect()
    };
    for event in ["drain several", "remove", "backend down", "director down", "hash migration"] {
        ensure!(names("events").contains(event), "no {event} among {:?}", names("events"));
    }
    for kind in report["kinds"].as_array().into_iter().flatten() {
        ensure!(kind["verified"].as_u64() > Some(0), "{kind}");
    }
    ensure!(names("kinds").len() == 10, "{:?}", names("kinds"));
    Ok(())
}

#[test]
fn fleet_events_break_no_connection_and_lose_few_packets() -> Result<()> {
    let suite = Suite::new("glb-t-fleet-events", "fleet")?;
    let _lock = Lock::wait("timing")?;
    let (held, report) = suite.run(&["--directors", "3"])?;
    ensure!(held, "connections broke, or packets were lost for too long");
    let events: Vec<_> = report["events"].as_array().into_iter().flatten().collect();
    // The run proves nothing if no connection was open or no packet was ever lost.
    ensure!(events.len() > 20 && events.iter().all(|event| event["alive"].as_u64() > Some(50)));
    ensure!(events.iter().all(|event| event["pings"].as_u64() > Some(0)));
    ensure!(
        events.iter().any(|event| event["pings_lost"].as_u64() > Some(0)),
        "a failure without notice loses packets until BFD detects it"
    );
    Ok(())
}

/// The counter-check: a suite that detects nothing would pass, too.
#[test]
fn suite_detects_breakage_without_second_chance() -> Result<()> {
    let suite = Suite::new("glb-t-unsurvived", "short")?;
    let (held, report) =
        suite.run(&["--only", "several", "--without-glance", "--without-second-chance"])?;
    ensure!(!held, "nothing broke");
    let broken = report["broken"].as_array().context("no list of what broke")?;
    let bad: Vec<_> = broken.iter().filter(|broken| broken["allowed"] == false).collect();
    ensure!(!bad.is_empty(), "{broken:?}");
    // Each broken connection is attributed to an event and a backend.
    ensure!(bad.iter().all(|broken| broken["event"].is_string()), "{bad:?}");
    ensure!(bad.iter().any(|broken| broken["holder"].is_string()), "{bad:?}");
    Ok(())
}
