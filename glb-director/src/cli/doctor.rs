//! `glb-director doctor`

use std::{path::Path, process::ExitCode};

use anyhow::Context as _;
use glb_host::{
    doctor::{Finding, Level, has_problem, text},
    exit_code,
};
use serde::Serialize;

use super::{Output, columns::columns};
use crate::{
    config::Config,
    doctor::{
        self,
        probe::{self, Outcome, Probed},
    },
};

#[derive(Serialize)]
struct Report<'f> {
    findings: &'f [Finding],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    probes: Vec<Probed>,
}

pub(super) fn execute(file: &Path, probe: bool, output: Output) -> anyhow::Result<ExitCode> {
    let config = Config::load(file)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    let mut findings = runtime.block_on(doctor::examine(&config));
    let mut probes = Vec::new();
    if probe {
        let tables = glb_table::load(&config.table)
            .map_err(|error| anyhow::anyhow!("{}", error.render(false).trim_end().to_owned()))?;
        match runtime.block_on(probe::run(&config, &tables)) {
            Ok(probed) => probes = probed,
            Err(error) => {
                let text = error.to_string();
                findings.push(Finding::problem("probe", text, "See the other findings."));
            }
        }
        findings.extend(probes.iter().filter_map(judge));
    }
    match output {
        Output::Table => {
            if !probes.is_empty() {
                println!("{}", shown(&probes));
            }
            print!("{}", text(&findings));
        }
        Output::Json => {
            println!("{}", serde_json::to_string_pretty(&Report { findings: &findings, probes })?);
        }
    }
    let problem = has_problem(&findings);
    Ok(if problem { ExitCode::from(exit_code::PROBLEM) } else { ExitCode::SUCCESS })
}

/// Returns the finding for a probe, unless the backend answered.
fn judge(probed: &Probed) -> Option<Finding> {
    const CHECK: &str = "probe";
    let Probed { table, vip, backend, outcome } = probed;
    let finding = |level, found: String, remedy: &str| {
        let remedy = Some(remedy.to_owned());
        Some(Finding { check: CHECK, level, found: format!("table {table}: {found}"), remedy })
    };
    match outcome {
        Outcome::Answered { .. } | Outcome::NeverFirst => None,
        Outcome::Refused => finding(
            Level::Problem,
            format!("{backend} refuses {vip}"),
            "The tunnel works, but nothing listens on the VIP there. Start the service, or bind it to \
             the VIP or to every address.",
        ),
        Outcome::Silent => finding(
            Level::Problem,
            format!("{backend} did not answer for {vip}"),
            "On the backend: `glb-redirect doctor` (does it run, is this director in `directors`, is \
             the VIP on lo?), and its route back to this machine.",
        ),
        Outcome::NotAsked { why } => finding(
            Level::Problem,
            format!("{backend} was not probed for {vip}: {why}"),
            "Restore its next hop first.",
        ),
    }
}

fn shown(probes: &[Probed]) -> String {
    let rows = probes.iter().map(|probed| {
        let outcome = match &probed.outcome {
            Outcome::Answered { microseconds } => format!("answered in {microseconds} µs"),
            Outcome::Refused => "REFUSED".into(),
            Outcome::Silent => "SILENT".into(),
            Outcome::NeverFirst => "never the first hop".into(),
            Outcome::NotAsked { why } => format!("NOT PROBED: {why}"),
        };
        [probed.table.clone(), probed.vip.clone(), probed.backend.to_string(), outcome]
    });
    columns(["TABLE", "VIP", "BACKEND", "OUTCOME"], "<<<<", rows)
}
