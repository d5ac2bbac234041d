//! The short form of the survival suite, and a check that the suite detects broken connections.

use std::{collections::BTreeSet, fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};
use glb_lab::{Program, command};

use crate::support::build;

struct Suite {
    reports: PathBuf,
    name: &'static str,
}

impl Suite {
    fn new(name: &'static str) -> Result<Self> {
        build()?;
        let reports = std::env::temp_dir().join(name);
        fs::remove_dir_all(&reports).ok();
        Ok(Self { reports, name })
    }

    /// Runs the suite; its output is shown if the test fails.
    fn run(&self, arguments: &[&str]) -> Result<(bool, serde_json::Value)> {
        let program = Program::Director.path()?.with_file_name("glb-survive");
        let mut suite = Command::new(program);
        suite.args(["--form", "short", "--seed", "1", "--name", self.name]);
        suite.args(arguments).arg("--reports").arg(&self.reports);
        let done = command::finish(&mut suite)?;
        println!("{}", String::from_utf8_lossy(&done.stderr));
        let report = fs::read(self.reports.join("short-seed-1.json")).context("no report")?;
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
    let (held, report) = Suite::new("glb-t-survive")?.run(&[])?;
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

/// The counter-check: a suite that detects nothing would pass, too.
#[test]
fn suite_detects_breakage_without_second_chance() -> Result<()> {
    let suite = Suite::new("glb-t-unsurvived")?;
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
