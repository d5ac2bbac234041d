//! `glb-healthcheck status`

use std::{path::Path, process::ExitCode, time::Duration};

use glb_host::{control::Client, exit_code};

use super::{Output, columns, print};
use crate::{config::Config, control_socket::Command, status::Snapshot};

/// Of thousands of targets there is much to tell.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) fn execute(
    file: &Path,
    socket: Option<&Path>,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let client = match socket {
        Some(socket) => Client::connect(socket),
        None => Client::connect(&Config::load(file)?.control.place.path),
    };
    let snapshot: Snapshot = client?.ask(&Command::Status, PATIENCE)?;
    match output {
        Output::Table => print(&shown(&snapshot))?,
        Output::Json => print(&serde_json::to_string_pretty(&snapshot)?)?,
    }
    let is_well = !snapshot.cut_off && snapshot.trouble.is_none();
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::from(exit_code::PROBLEM) })
}

fn shown(snapshot: &Snapshot) -> String {
    let mut text = String::new();
    if snapshot.cut_off {
        text += "THIS CHECKER IS CUT OFF: the last judgement stands\n";
    }
    if snapshot.pending > 0 {
        text += &format!(
            "{} targets have no result yet: the newest source is written when they have\n",
            snapshot.pending
        );
    }
    if let Some(trouble) = &snapshot.trouble {
        text += &format!("NOT PUBLISHED: {trouble}\n");
    }
    let head =
        ["table", "backend", "written", "check", "is", "for", "ms", "last checks", "last error"];
    let mut rows = vec![head.map(str::to_owned)];
    for table in &snapshot.tables {
        for backend in &table.backends {
            let written = match backend.healthy {
                Some(true) if backend.fail_open => format!("{} healthy (kept)", backend.state),
                Some(true) => format!("{} healthy", backend.state),
                Some(false) => format!("{} UNHEALTHY", backend.state),
                None => "-".into(),
            };
            if backend.checks.is_empty() {
                let mut row = [const { String::new() }; 9];
                row[..4].clone_from_slice(&[
                    table.name.clone(),
                    backend.address.clone(),
                    written.clone(),
                    "none".into(),
                ]);
                rows.push(row);
            }
            for check in &backend.checks {
                let mut is = check.standing.clone();
                if check.held_s > 0.0 {
                    is += &format!(" (held {:.0} s)", check.held_s);
                }
                if check.drain {
                    is += " (wants drain)";
                }
                if let Some(weight) = check.weight {
                    is += &format!(" ({weight}%)");
                }
                rows.push([
                    table.name.clone(),
                    backend.address.clone(),
                    written.clone(),
                    check.check.clone(),
                    is,
                    age(check.since_s),
                    check.latency_ms.map(|ms| format!("{ms:.1}")).unwrap_or_default(),
                    check.history.clone(),
                    check.last_error.clone().unwrap_or_default(),
                ]);
            }
        }
    }
    text + &columns(&rows)
}

fn age(seconds: f64) -> String {
    match seconds as u64 {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} d", seconds / 86_400),
    }
}
