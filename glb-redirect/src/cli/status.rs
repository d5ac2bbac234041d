//! `glb-redirect status`

use std::{process::ExitCode, time::Duration};

use glb_host::exit_code;

use super::{ClientArgs, Output, connections::age};
use crate::{control::Command, status::Status};

/// The control thread answers without waiting for the daemon's event loop.
const TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn execute(client: &ClientArgs, output: Output) -> anyhow::Result<ExitCode> {
    let status: Status = client.connect()?.ask(&Command::Status, TIMEOUT)?;
    match output {
        Output::Json => super::print(&serde_json::to_string_pretty(&status)?)?,
        Output::Table => super::print(&text(&status))?,
    }
    let healthy = status.problems.is_empty();
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::from(exit_code::PROBLEM) })
}

fn text(status: &Status) -> String {
    let mut lines = vec![(
        "daemon",
        format!(
            "{}, release {}, process {}, up {}",
            status.phase.name(),
            status.release,
            status.pid,
            age(status.uptime_seconds)
        ),
    )];
    if let (Some(number), Some(seconds)) = (status.generation, status.generation_age_seconds) {
        lines.push(("generation", format!("{number}, in force for {}", age(seconds))));
    }
    for interface in &status.interfaces {
        let mode = interface.mode.as_deref().unwrap_or("not attached");
        lines.push(("interface", format!("{}, {mode}", interface.name)));
    }
    for vip in &status.vips {
        let local = if vip.local { "local" } else { "not local" };
        lines.push(("vip", format!("{}, {local}", vip.address)));
    }
    let unresolved = status.unresolved_peers.len();
    lines.push(("backends", format!("{}, {unresolved} without a next hop", status.peers)));
    if let Some(live) = status.live_connections {
        lines.push(("connections", format!("{live} live")));
    }
    let reloads = format!("{} succeeded, {} failed", status.reloads, status.failed_reloads);
    lines.push(("reloads", reloads));
    if let Some(last) = &status.last_reload {
        let result = if last.error.is_some() { "failed" } else { "succeeded" };
        let took = last.seconds * 1000.0;
        lines.push((
            "last reload",
            format!("{result} {} ago, took {took:.0} ms", age(last.age_seconds)),
        ));
    }
    for problem in &status.problems {
        lines.push(("PROBLEM", format!("{}: {}", problem.name, problem.message)));
    }
    if status.problems.is_empty() {
        lines.push(("problems", "none".into()));
    }
    lines.into_iter().map(|(name, text)| format!("{name:<12} {text}\n")).collect()
}
