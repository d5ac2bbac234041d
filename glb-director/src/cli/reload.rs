//! `glb-director reload`

use std::{process::ExitCode, time::Duration};

use super::{Asking, Output};
use crate::control::{Command, Status};

/// A reload waits for new backends to answer, and a loaded machine is slow.
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) fn execute(asking: &Asking, force: bool) -> anyhow::Result<ExitCode> {
    let status: Status = asking.connect()?.ask(&Command::Reload { force }, PATIENCE)?;
    match asking.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&status)?),
        Output::Table => println!(
            "generation {} is in force ({:.0} ms)",
            status.generation.unwrap_or_default(),
            status.last_reload.map_or(0.0, |reload| reload.seconds * 1000.0),
        ),
    }
    Ok(ExitCode::SUCCESS)
}
