//! `glb-redirect config`

use std::{path::PathBuf, process::ExitCode};

use clap::Subcommand;
use glb_host::{permission, xdp_link};
use serde::Serialize;

use super::{ConfigFile, Output};
use crate::config::Config;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Check the configuration and the table that it names, without changing anything.
    ///
    /// Checks too that the interfaces exist. Exits with 0 if the daemon would accept both files, and
    /// with 1 if not. `doctor` examines the rest of the host.
    Check {
        #[command(flatten)]
        config: ConfigFile,
    },
}

/// The result of a check.
#[derive(Debug, Serialize)]
struct Checked {
    config: PathBuf,
    table: Option<PathBuf>,
    vips: usize,
    directors: usize,
    backends: usize,
    warnings: Vec<String>,
}

pub(super) fn execute(command: Command, output: Output) -> anyhow::Result<ExitCode> {
    let Command::Check { config } = command;
    let config = Config::load(&config.config)?;
    let replies = config.mss.iter().flat_map(|mss| &mss.interfaces);
    for interface in config.interfaces.iter().chain(replies) {
        xdp_link::interface_index(interface)?;
    }
    let table = config.table.map(|table| table.source.location().to_owned());
    let mut warnings = Vec::new();
    if let Some(path) = &table
        && let Some(mode) = permission::world_readable_mode(path)
    {
        let path = path.display();
        warnings.push(format!(
            "{path} contains hash keys and every user can read it (mode {mode:o}).\n  \
             Give it to the daemon's group, then: chmod o-r {path}"
        ));
    }
    let checked = Checked {
        config: config.path,
        table,
        vips: config.vips.len(),
        directors: config.directors.len(),
        backends: config.backends.len(),
        warnings,
    };
    match output {
        Output::Json => super::print(&serde_json::to_string_pretty(&checked)?)?,
        Output::Table => {
            let Checked { config, table, vips, directors, backends, warnings } = checked;
            let mut text = format!(
                "{}: valid; {vips} VIPs, {directors} directors, {backends} backends\n",
                config.display()
            );
            if let Some(table) = table {
                text += &format!("{}: valid\n", table.display());
            }
            for warning in warnings {
                text += &format!("warning: {warning}\n");
            }
            super::print(&text)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
