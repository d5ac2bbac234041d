//! `glb-healthcheck status`

use std::{process::ExitCode, time::Duration};

use glb_host::exit_code;

use super::{Output, RunningDaemon, columns};
use crate::{
    control_socket::Command,
    health_state::Health,
    status::{BackendStatus, CheckStatus, Snapshot},
};

/// Time limit of the daemon's reply, which may list thousands of targets.
const TIMEOUT: Duration = Duration::from_secs(30);

pub(super) fn execute(daemon: &RunningDaemon, output: Output) -> anyhow::Result<ExitCode> {
    let snapshot: Snapshot = daemon.connect()?.ask(&Command::Status, TIMEOUT)?;
    output.print(&snapshot, shown)?;
    Ok(if snapshot.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(exit_code::PROBLEM) })
}

fn shown(snapshot: &Snapshot) -> String {
    let mut text = String::new();
    if snapshot.isolated {
        text += "ISOLATED: this checker has no connectivity; all health states stay as they are\n";
    }
    if let Some(problem) = &snapshot.problem {
        text += &format!("NOT PUBLISHED: {problem}\n");
    }
    for version in &snapshot.foreign_versions {
        text += &format!(
            "OUTPUT CHANGED by another program: the change is overwritten and saved as {}; make it in {} if \
             it is wanted, then remove the saved file\n",
            version.display(),
            snapshot.input.display()
        );
    }
    if snapshot.pending > 0 {
        text += &format!(
            "{} checks have no result yet; the newest input comes into force when they have\n",
            snapshot.pending
        );
    }
    let head = [
        "table",
        "backend",
        "output",
        "check",
        "health",
        "since",
        "ms",
        "last results",
        "last error",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    for table in &snapshot.tables {
        for backend in &table.backends {
            let row = |[check, health, since, ms, history, error]: [String; 6]| {
                let (table, address) = (table.name.clone(), backend.address.clone());
                [table, address, output_column(backend), check, health, since, ms, history, error]
            };
            if backend.checks.is_empty() {
                let empty = String::new;
                rows.push(row(["none".into(), empty(), empty(), empty(), empty(), empty()]));
            }
            rows.extend(backend.checks.iter().map(check_columns).map(row));
        }
    }
    text + &columns(&rows)
}

fn output_column(backend: &BackendStatus) -> String {
    match backend.healthy {
        Some(true) if backend.fail_open => format!("{} healthy (fail open)", backend.state),
        Some(true) => format!("{} healthy", backend.state),
        Some(false) => format!("{} UNHEALTHY", backend.state),
        None => "-".into(),
    }
}

fn check_columns(check: &CheckStatus) -> [String; 6] {
    let mut health = match check.health {
        Health::Unknown => "unknown",
        Health::Healthy => "healthy",
        Health::Unhealthy => "unhealthy",
    }
    .to_owned();
    if check.held_s > 0.0 {
        health += &format!(" (held down {:.0} s)", check.held_s);
    }
    if check.drain {
        health += " (agent drains)";
    }
    if let Some(weight) = check.weight {
        health += &format!(" ({weight}%)");
    }
    [
        check.check.clone(),
        health,
        age(check.since_s),
        check.latency_ms.map(|ms| format!("{ms:.1}")).unwrap_or_default(),
        check.history.clone(),
        check.last_error.clone().unwrap_or_default(),
    ]
}

fn age(seconds: f64) -> String {
    match seconds as u64 {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} d", seconds / 86_400),
    }
}
