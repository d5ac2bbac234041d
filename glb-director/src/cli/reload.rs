//! `glb-director reload`, `rollback` and `drained`

use std::{net::IpAddr, process::ExitCode, time::Duration};

use super::{Asking, Output};
use crate::{control::Command, model::ReloadOutcome};

/// A reload waits for new backends to answer, and a loaded machine is slow.
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) fn execute(asking: &Asking, force: bool) -> anyhow::Result<ExitCode> {
    change(asking, &Command::Reload { force })
}

pub(super) fn rollback(asking: &Asking, force: bool) -> anyhow::Result<ExitCode> {
    change(asking, &Command::Rollback { force })
}

pub(super) fn drained(asking: &Asking, backends: Vec<IpAddr>) -> anyhow::Result<ExitCode> {
    let text: String = asking.connect()?.ask(&Command::MarkDrained { backends }, PATIENCE)?;
    match asking.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&text)?),
        Output::Table => println!("{text}"),
    }
    Ok(ExitCode::SUCCESS)
}

fn change(asking: &Asking, command: &Command) -> anyhow::Result<ExitCode> {
    let done: ReloadOutcome = asking.connect()?.ask(command, PATIENCE)?;
    match asking.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&done)?),
        Output::Table => print!("{}", text(&done)),
    }
    Ok(ExitCode::SUCCESS)
}

fn text(done: &ReloadOutcome) -> String {
    let ReloadOutcome { generation, changed, milliseconds, warning, steps, .. } = done;
    if !changed {
        return format!("generation {generation} has this table and stays in force\n");
    }
    let steps: Vec<String> = steps.iter().map(|(name, took)| format!("{name} {took:.1}")).collect();
    let warning = if warning.is_empty() {
        String::new()
    } else {
        format!("WARNING: this change can break flows:\n{warning}\n")
    };
    format!(
        "{warning}generation {generation} is in force ({milliseconds:.1} ms: {})\n",
        steps.join(", ")
    )
}
