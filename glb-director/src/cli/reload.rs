//! `glb-director reload`, `rollback` and `mark-drained`

use std::{net::IpAddr, process::ExitCode, time::Duration};

use super::{AskArgs, Output};
use crate::{control::Command, model::ReloadOutcome};

/// How long the daemon may take; a reload waits for new backends to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);

pub(super) fn execute(args: &AskArgs, force: bool) -> anyhow::Result<ExitCode> {
    change(args, &Command::Reload { force })
}

pub(super) fn rollback(args: &AskArgs, force: bool) -> anyhow::Result<ExitCode> {
    change(args, &Command::Rollback { force })
}

pub(super) fn mark_drained(args: &AskArgs, backends: Vec<IpAddr>) -> anyhow::Result<ExitCode> {
    let text: String = args.connect()?.ask(&Command::MarkDrained { backends }, ANSWER_TIMEOUT)?;
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&text)?),
        Output::Table => println!("{text}"),
    }
    Ok(ExitCode::SUCCESS)
}

fn change(args: &AskArgs, command: &Command) -> anyhow::Result<ExitCode> {
    let done: ReloadOutcome = args.connect()?.ask(command, ANSWER_TIMEOUT)?;
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&done)?),
        Output::Table => print!("{}", text(&done)),
    }
    Ok(ExitCode::SUCCESS)
}

fn text(done: &ReloadOutcome) -> String {
    let ReloadOutcome { generation, changed, milliseconds, warning, steps, .. } = done;
    if !changed {
        return format!("unchanged: generation {generation} has this table already\n");
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
