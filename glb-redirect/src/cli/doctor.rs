//! `glb-redirect doctor`

use std::{path::Path, process::ExitCode};

use super::Output;
use crate::{
    config::Config,
    doctor::{Finding, Level, examine},
};

/// What the command ends with when something is wrong; 1 is an error and 2 a wrong command line.
const PROBLEMS: u8 = 3;

pub(super) fn execute(file: &Path, output: Output) -> anyhow::Result<ExitCode> {
    let findings = examine(&Config::load(file)?);
    match output {
        Output::Table => print!("{}", text(&findings)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&findings)?),
    }
    let bad = findings.iter().any(|finding| finding.level == Level::Problem);
    Ok(if bad { ExitCode::from(PROBLEMS) } else { ExitCode::SUCCESS })
}

fn text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let mark = match finding.level {
            Level::Ok => "ok     ",
            Level::Warning => "warning",
            Level::Problem => "PROBLEM",
        };
        text += &format!("{mark}  {}: {}\n", finding.check, finding.found);
        if let Some(remedy) = &finding.remedy {
            text += &format!("         -> {remedy}\n");
        }
    }
    let problems = findings.iter().filter(|finding| finding.level == Level::Problem).count();
    text += &match problems {
        0 => "no problem found\n".to_owned(),
        1 => "1 problem\n".to_owned(),
        n => format!("{n} problems\n"),
    };
    text
}
