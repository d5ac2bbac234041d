//! `glb-director drain` and `undrain`

use std::{
    io::{IsTerminal as _, Write as _, stderr},
    process::ExitCode,
    time::Duration,
};

use super::{AskArgs, Output};
use crate::{announce::DrainView, control::Command};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) fn drain(
    args: &AskArgs,
    timeout: Option<Duration>,
    force: bool,
) -> anyhow::Result<ExitCode> {
    let timeout_seconds = timeout.map(|timeout| timeout.as_secs_f64());
    let command = Command::Drain { timeout_seconds, force };
    let mut answers = args.connect()?.follow(&command, None)?;
    let mut last: Option<DrainView> = None;
    let in_place = stderr().is_terminal();
    loop {
        let next = answers.next::<DrainView>();
        if in_place && last.is_some() && !matches!(next, Ok(Some(_))) {
            eprintln!();
        }
        let Some(view) = next? else { break };
        match args.output {
            Output::Json => println!("{}", serde_json::to_string(&view)?),
            Output::Table if in_place => {
                let mut stderr = stderr();
                drop(write!(stderr, "\r{:<78}", view.message));
                drop(stderr.flush());
            }
            // Without a terminal, one line for each stage is enough.
            Output::Table if last.as_ref().map(|last| last.stage) != Some(view.stage) => {
                eprintln!("{}", view.message);
            }
            Output::Table => {}
        }
        last = Some(view);
    }
    if matches!(args.output, Output::Table) {
        println!("drained; `glb-director undrain` announces again");
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn undrain(args: &AskArgs) -> anyhow::Result<ExitCode> {
    let was: bool = args.connect()?.ask(&Command::Undrain, ANSWER_TIMEOUT)?;
    match args.output {
        Output::Json => println!("{}", serde_json::json!({ "was_draining": was })),
        Output::Table if was => println!("drain cancelled; eligible prefixes are announced again"),
        Output::Table => println!("no drain was running"),
    }
    Ok(ExitCode::SUCCESS)
}
