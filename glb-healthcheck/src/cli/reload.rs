//! `glb-healthcheck reload`

use std::{process::ExitCode, time::Duration};

use super::{Output, RunningDaemon};
use crate::control_socket::{Command, ReloadReport};

/// Time limit of the daemon's reply, which waits for the validation of the input.
const TIMEOUT: Duration = Duration::from_secs(30);

pub(super) fn execute(daemon: &RunningDaemon, output: Output) -> anyhow::Result<ExitCode> {
    let report: ReloadReport = daemon.connect()?.ask(&Command::Reload, TIMEOUT)?;
    output.print(&report, |ReloadReport { targets, new }| match new {
        0 => format!("reloaded: {targets} targets"),
        _ => format!(
            "reloaded: {targets} targets, {new} of them new; the input comes into force when each has a \
             result"
        ),
    })?;
    Ok(ExitCode::SUCCESS)
}
