//! The command line, one module for each command.

mod check;
mod config;
mod doctor;
mod reload;
mod run;
mod status;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use glb_host::{
    cli_main::{self, LogArgs, LogSettings},
    control::Client,
    packet_trace::print_line,
};

use crate::config::Config;

/// The health checker of an L4 load balancer: probes the backends of a table, and writes their health
/// into the table that directors read.
#[derive(Debug, Parser)]
#[command(name = "glb-healthcheck", version, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    log: LogArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Probe the backends and keep the output table up to date, until SIGTERM or SIGINT.
    ///
    /// The daemon follows changes of the input table. SIGHUP, like `reload`, reads configuration, input
    /// table and certificates again; after an error the previous ones stay in force.
    Run(ConfigFile),
    /// Show the health, last error and last results of each check of the running daemon.
    ///
    /// The last results are a strip, the newest at the right: `.` passed, `X` failed, `?`
    /// inconclusive.
    ///
    /// Exit status: 0 all in order, 3 the daemon does not answer, 4 the daemon is isolated or cannot
    /// publish, 5 not permitted, 1 another error.
    Status {
        #[command(flatten)]
        daemon: RunningDaemon,
        /// Output format.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Make the running daemon read its configuration, input table and certificates again.
    ///
    /// After an error the previous ones stay in force.
    ///
    /// Exit status: 0 reloaded, 1 rejected, 3 the daemon does not answer, 5 not permitted.
    Reload {
        #[command(flatten)]
        daemon: RunningDaemon,
        /// Output format.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Find problems of this machine and configuration, and say how to fix each.
    ///
    /// Changes nothing. Exit status: 0 no problem, 4 a problem, 1 an error.
    Doctor {
        #[command(flatten)]
        config: ConfigFile,
        /// Output format.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Run each check of an input table once and show the results. Writes nothing.
    ///
    /// Exit status: 0 all pass, 4 some do not, 1 an error.
    Check {
        /// The input table (TOML, or GLB's JSON).
        #[arg(value_name = "FILE")]
        table: PathBuf,
        /// Take default settings from this configuration file.
        #[arg(short, long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Output format.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Work with the configuration file.
    #[command(subcommand)]
    Config(config::Command),
    /// Print the completion script for a shell.
    ///
    /// For instance: glb-healthcheck completions bash > /etc/bash_completion.d/glb-healthcheck
    Completions {
        /// The shell.
        #[arg(value_enum)]
        shell: cli_main::Shell,
    },
}

#[derive(Args, Debug)]
struct ConfigFile {
    /// The configuration file: TOML, or GLB's healthcheck.conf.
    #[arg(short, long, value_name = "FILE", default_value = "/etc/glb/healthcheck.toml")]
    config: PathBuf,
}

#[derive(Args, Debug)]
struct RunningDaemon {
    #[command(flatten)]
    file: ConfigFile,
    /// The daemon's control socket. Default: the configuration's `control.socket`.
    #[arg(short, long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl RunningDaemon {
    fn connect(&self) -> anyhow::Result<Client> {
        Ok(match &self.socket {
            Some(socket) => Client::connect(socket)?,
            None => Client::connect(&Config::load(&self.file.config)?.control.place.path)?,
        })
    }
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Output {
    /// A table for people.
    #[default]
    Table,
    /// JSON for programs.
    Json,
}

impl Output {
    /// Prints `value` as JSON, or the table that `table` makes of it.
    fn print<T: serde::Serialize>(
        self,
        value: &T,
        table: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<()> {
        let text = match self {
            Self::Table => table(value),
            Self::Json => serde_json::to_string_pretty(value)?,
        };
        // A closed pipe (`| head`) is not an error.
        print_line(text.trim_end()).map(drop).context("cannot write to standard output")
    }
}

impl Cli {
    /// Returns the options of the log.
    #[must_use]
    pub fn log(&self) -> LogSettings {
        self.log.log()
    }

    /// Runs the command.
    ///
    /// # Errors
    /// The command failed; the error is for people.
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Run(file) => run::execute(&file.config),
            Command::Status { daemon, output } => status::execute(&daemon, output),
            Command::Reload { daemon, output } => reload::execute(&daemon, output),
            Command::Doctor { config, output } => doctor::execute(&config.config, output),
            Command::Check { table, config, output } => {
                check::execute(&table, config.as_deref(), output)
            }
            Command::Config(command) => config::execute(command),
            Command::Completions { shell } => {
                cli_main::print_completions(Self::command(), shell)?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

/// Aligns columns. The last one is not padded.
fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..N).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line += &format!("{cell:<width$}  ");
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clap_finds_no_fault_in_the_command_line() {
        Cli::command().debug_assert();
    }
}
