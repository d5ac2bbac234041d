//! `glb-healthcheck check`

use std::{collections::HashMap, path::Path, process::ExitCode, sync::Arc, time::Duration};

use glb_host::exit_code;
use serde::Serialize;
use tokio::task::JoinSet;

use super::{Output, columns, run::runtime};
use crate::{
    check::{Settings, Target},
    config::Config,
    daemon::{self, LoadedInput},
    probe::{self, Outcome},
};

/// Most probes that run at the same time.
const MAX_CONCURRENT: usize = 256;

/// A line of the report.
#[derive(Serialize)]
struct Line {
    address: String,
    check: String,
    tables: Vec<String>,
    result: &'static str,
    latency_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub(super) fn execute(
    table: &Path,
    config: Option<&Path>,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let (defaults, exec_user) = match config {
        Some(path) => {
            let config = Config::load(path)?;
            (config.defaults, config.exec_user)
        }
        None => (Settings::default(), None),
    };
    let (loaded, lines) = runtime()?.block_on(async {
        let loaded = daemon::load(table, &defaults, exec_user, None).await?;
        let lines = probe_all(&loaded).await;
        anyhow::Ok((loaded, lines))
    })?;
    output.print(&lines, |lines| shown(lines))?;
    let unchecked = loaded.input.unchecked_backends();
    if unchecked > 0 {
        eprintln!("{unchecked} backends have no check and count as healthy");
    }
    let passed = lines.iter().all(|line| line.result == "pass");
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::from(exit_code::PROBLEM) })
}

/// Probes each target once. A target that several tables share is one line.
async fn probe_all(loaded: &LoadedInput) -> Vec<Line> {
    let mut targets: Vec<(Arc<Target>, Vec<String>)> = Vec::new();
    let mut indexes = HashMap::new();
    for (table, of_table) in loaded.input.set.tables.iter().zip(&loaded.input.targets) {
        for target in of_table.iter().flatten() {
            let index = *indexes.entry(target).or_insert_with(|| {
                targets.push((Arc::new(target.clone()), Vec::new()));
                targets.len() - 1
            });
            targets[index].1.push(table.name.clone());
        }
    }
    let mut running = JoinSet::new();
    let mut waiting = targets.iter().enumerate();
    let mut results: Vec<Option<(Outcome, Duration)>> = targets.iter().map(|_| None).collect();
    loop {
        while running.len() < MAX_CONCURRENT {
            let Some((index, (target, _))) = waiting.next() else { break };
            let (target, context) = (Arc::clone(target), Arc::clone(&loaded.context));
            running.spawn(async move { (index, probe::probe(&target, &context).await) });
        }
        match running.join_next().await {
            Some(Ok((index, result))) => results[index] = Some(result),
            Some(Err(_)) => {}
            None => break,
        }
    }
    let pairs = targets.into_iter().zip(results);
    pairs.map(|((target, tables), result)| line(&target, tables, result)).collect()
}

fn line(target: &Target, tables: Vec<String>, result: Option<(Outcome, Duration)>) -> Line {
    let (result, error, latency) = match result {
        Some((Outcome::Pass(_), latency)) => ("pass", None, latency),
        Some((Outcome::Fail(failure), latency)) => ("fail", Some(failure.to_string()), latency),
        Some((Outcome::Inconclusive(failure), latency)) => {
            ("inconclusive", Some(failure.to_string()), latency)
        }
        None => ("inconclusive", Some("the probe's task panicked".into()), Duration::ZERO),
    };
    Line {
        address: target.address.to_string(),
        check: target.check.kind.to_string(),
        tables,
        result,
        latency_ms: (latency.as_secs_f64() * 1e6).round() / 1e3,
        error,
    }
}

fn shown(lines: &[Line]) -> String {
    let head = ["backend", "check", "result", "ms", "tables", "error"].map(str::to_owned);
    let mut rows = vec![head];
    rows.extend(lines.iter().map(|line| {
        [
            line.address.clone(),
            line.check.clone(),
            line.result.to_owned(),
            format!("{:.1}", line.latency_ms),
            line.tables.join(","),
            line.error.clone().unwrap_or_default(),
        ]
    }));
    columns(&rows)
}
