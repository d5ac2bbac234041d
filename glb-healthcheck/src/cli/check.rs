//! `glb-healthcheck once`

use std::{path::Path, process::ExitCode, sync::Arc, time::Duration};

use glb_host::exit_code;
use serde::Serialize;
use tokio::task::JoinSet;

use super::{Output, columns, print, run::runtime};
use crate::{
    check::{Pace, Target},
    config::Config,
    daemon::{self, Loaded},
    probe::{self, Outcome},
};

/// So many probes are under way at once.
const AT_ONCE: usize = 256;

#[derive(Serialize)]
struct Line {
    address: String,
    check: String,
    tables: Vec<String>,
    result: &'static str,
    latency_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

pub(super) fn execute(
    table: &Path,
    config: Option<&Path>,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let defaults = match config {
        Some(path) => Config::load(path)?.defaults,
        None => Pace::default(),
    };
    let (loaded, lines) = runtime()?.block_on(async {
        let loaded = daemon::load(table, &defaults, None).await?;
        let lines = check(&loaded).await;
        anyhow::Ok((loaded, lines))
    })?;
    match output {
        Output::Table => print(&shown(&lines))?,
        Output::Json => print(&serde_json::to_string_pretty(&lines)?)?,
    }
    let unchecked = unchecked(&loaded);
    if unchecked > 0 {
        eprintln!("{unchecked} backends have no check: they are taken for healthy");
    }
    let passed = lines.iter().all(|line| line.result == "pass");
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::from(exit_code::PROBLEM) })
}

async fn check(loaded: &Loaded) -> Vec<Line> {
    let mut targets: Vec<(Arc<Target>, Vec<String>)> = Vec::new();
    let mut places = std::collections::HashMap::new();
    for (table, wanted) in loaded.source.set.tables.iter().zip(&loaded.source.wanted) {
        for target in wanted.iter().flatten() {
            let place = *places.entry(target).or_insert_with(|| {
                targets.push((Arc::new(target.clone()), Vec::new()));
                targets.len() - 1
            });
            targets[place].1.push(table.name.clone());
        }
    }
    let mut lines = Vec::with_capacity(targets.len());
    let mut running = JoinSet::new();
    let mut waiting = targets.iter().enumerate();
    let mut results: Vec<Option<(Outcome, Duration)>> = targets.iter().map(|_| None).collect();
    loop {
        while running.len() < AT_ONCE {
            let Some((index, (target, _))) = waiting.next() else { break };
            let (target, tools) = (Arc::clone(target), Arc::clone(&loaded.tools));
            running.spawn(async move { (index, probe::probe(&target, &tools).await) });
        }
        match running.join_next().await {
            Some(Ok((index, result))) => results[index] = Some(result),
            Some(Err(_)) => {}
            None => break,
        }
    }
    for ((target, tables), result) in targets.into_iter().zip(results) {
        let (result, problem, latency) = match result {
            Some((Outcome::Pass(_), latency)) => ("pass", None, latency),
            Some((Outcome::Fail(failure), latency)) => ("fail", Some(failure.to_string()), latency),
            Some((Outcome::Unsure(failure), latency)) => {
                ("unsure", Some(failure.to_string()), latency)
            }
            None => ("unsure", Some("the probe broke down".into()), Duration::ZERO),
        };
        lines.push(Line {
            address: target.address.to_string(),
            check: target.check.kind.to_string(),
            tables,
            result,
            latency_ms: (latency.as_secs_f64() * 1e6).round() / 1e3,
            problem,
        });
    }
    lines
}

fn shown(lines: &[Line]) -> String {
    let head = ["backend", "check", "result", "ms", "tables", "problem"].map(str::to_owned);
    let mut rows = vec![head];
    rows.extend(lines.iter().map(|line| {
        [
            line.address.clone(),
            line.check.clone(),
            line.result.to_owned(),
            format!("{:.1}", line.latency_ms),
            line.tables.join(","),
            line.problem.clone().unwrap_or_default(),
        ]
    }));
    columns(&rows)
}

fn unchecked(loaded: &Loaded) -> usize {
    loaded.source.wanted.iter().flatten().filter(|targets| targets.is_empty()).count()
}
