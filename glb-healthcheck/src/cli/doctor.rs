//! `glb-healthcheck doctor`

use std::{path::Path, process::ExitCode};

use glb_host::{doctor, exit_code};

use super::Output;
use crate::doctor::examine;

pub(super) fn execute(file: &Path, output: Output) -> anyhow::Result<ExitCode> {
    let findings = examine(file);
    output.print(&findings, |findings| doctor::text(findings))?;
    let has_problem = doctor::has_problem(&findings);
    Ok(if has_problem { ExitCode::from(exit_code::PROBLEM) } else { ExitCode::SUCCESS })
}
