//! The command line, one file for each command.

mod check;
mod run;
mod status;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use glb_host::{
    cli_main::{self, LogArgs, LogSettings},
    packet_trace::print_line,
};

/// Checks the backends of a load-balancer table and writes what it finds for the directors.
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
    /// Check, judge, and keep the checked table up to date until a signal comes.
    ///
    /// SIGHUP loads the source table anew; if anything is wrong with it, the running one stays.
    Run(ConfigFile),
    /// Ask the running checker for each target's state, last error and last results.
    ///
    /// The last results are a strip, the newest at the right: `.` passed, `X` failed, `?` said
    /// nothing about the target. Ends with 0 when all is in order, 3 when no checker answers, 4 when
    /// the checker is cut off or cannot publish, 5 when that is not permitted, 1 on another error.
    Status {
        #[command(flatten)]
        config: ConfigFile,
        /// The checker's control socket; the one that the configuration names if it is left out.
        #[arg(short, long, value_name = "PATH")]
        socket: Option<PathBuf>,
        /// How to print it.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Run each check of a source table once and show what comes of it. Writes nothing.
    ///
    /// The exit status is 0 if all pass, and 4 if some do not.
    Once {
        /// The source table (TOML, or GLB's JSON).
        #[arg(value_name = "FILE")]
        table: PathBuf,
        /// Take defaults from this configuration file.
        #[arg(short, long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// How to print it.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Print the completions of this command for a shell.
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

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

impl Cli {
    /// How the log is written.
    #[must_use]
    pub fn log(&self) -> LogSettings {
        self.log.log()
    }

    /// Does what the command line asks for.
    ///
    /// # Errors
    /// What went wrong, for people.
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Run(file) => run::execute(&file.config),
            Command::Status { config, socket, output } => {
                status::execute(&config.config, socket.as_deref(), output)
            }
            Command::Once { table, config, output } => {
                check::execute(&table, config.as_deref(), output)
            }
            Command::Completions { shell } => {
                cli_main::print_completions(Self::command(), shell)?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

/// Prints to standard output. Whoever has seen enough may close it.
fn print(text: &str) -> anyhow::Result<()> {
    print_line(text.trim_end()).map(drop).context("cannot write to standard output")
}

/// Columns as wide as they must be; the last one ends with the line.
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
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
