//! `glb-redirect doctor`

use std::{path::Path, process::ExitCode};

use glb_host::{
    doctor::{has_problem, text},
    exit_code,
};

use super::Output;
use crate::{config::Config, doctor::examine};

pub(super) fn execute(file: &Path, output: Output) -> anyhow::Result<ExitCode> {
    let findings = examine(&Config::load(file)?);
    match output {
        Output::Table => super::print(&text(&findings))?,
        Output::Json => super::print(&serde_json::to_string_pretty(&findings)?)?,
    }
    Ok(if has_problem(&findings) { ExitCode::from(exit_code::PROBLEM) } else { ExitCode::SUCCESS })
}
