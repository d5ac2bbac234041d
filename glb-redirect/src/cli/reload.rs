//! `glb-redirect reload`

use std::{process::ExitCode, time::Duration};

use super::{ClientArgs, Output};
use crate::control::{Command, ReloadOutcome};

/// A reload waits for the neighbour resolution of new backends, and a loaded host is slow.
const TIMEOUT: Duration = Duration::from_secs(120);

pub(super) fn execute(client: &ClientArgs, output: Output) -> anyhow::Result<ExitCode> {
    let outcome: ReloadOutcome = client.connect()?.ask(&Command::Reload, TIMEOUT)?;
    match output {
        Output::Json => super::print(&serde_json::to_string_pretty(&outcome)?)?,
        Output::Table => {
            let ReloadOutcome { generation, changed, milliseconds } = outcome;
            super::print(&if changed {
                format!("generation {generation} is in force ({milliseconds:.1} ms)")
            } else {
                format!("nothing has changed: generation {generation} stays in force")
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
