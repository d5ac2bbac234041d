//! `glb-healthcheck config`

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Subcommand;
use serde::Serialize;

use super::{ConfigFile, Output};
use crate::{config::Config, daemon, engine::InputTable};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Validate the configuration file and the input table. Changes nothing.
    ///
    /// `doctor` also looks at the machine. Exit status: 0 valid, 1 not valid.
    Check {
        #[command(flatten)]
        config: ConfigFile,
        /// Output format.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

/// The result of a successful check.
#[derive(Debug, Serialize)]
struct Report {
    config: PathBuf,
    input: PathBuf,
    tables: usize,
    backends: usize,
    targets: usize,
    warnings: Vec<String>,
}

pub(super) fn execute(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Check { config, output } => check(&config.config, output),
    }
}

fn check(file: &Path, output: Output) -> anyhow::Result<ExitCode> {
    let config = Config::load(file)?;
    let input = daemon::read_input(&config.input, &config.defaults)?;
    let report = Report {
        tables: input.set.tables.len(),
        backends: input.set.tables.iter().map(|table| table.backends.len()).sum(),
        targets: input.targets.iter().flatten().map(Vec::len).sum(),
        warnings: warnings(&input),
        config: config.path,
        input: config.input,
    };
    output.print(&report, |report| {
        let mut text = format!("{}: valid\n", report.config.display());
        text += &format!(
            "{}: valid; {} tables, {} backends, {} checks\n",
            report.input.display(),
            report.tables,
            report.backends,
            report.targets
        );
        for warning in &report.warnings {
            text += &format!("warning: {warning}\n");
        }
        text
    })?;
    Ok(ExitCode::SUCCESS)
}

fn warnings(input: &InputTable) -> Vec<String> {
    let mut warnings = Vec::new();
    if !input.set.warnings.is_empty() {
        warnings.push(glb_table::render(&input.set.warnings, false).trim_end().to_owned());
    }
    let unchecked = input.unchecked_backends();
    if unchecked > 0 {
        warnings.push(format!("{unchecked} backends have no check and count as healthy"));
    }
    if let Some(mode) = glb_host::permission::world_readable_mode(&input.path) {
        let path = input.path.display();
        warnings.push(format!(
            "{path} holds hash keys and is readable by all users (mode {mode:o}): chmod o-r {path}"
        ));
    }
    warnings
}
