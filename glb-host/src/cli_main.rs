//! What the daemons' `main` functions have in common.

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
};

use clap::{Args, ValueEnum};
pub use clap_complete::Shell;
use tracing_subscriber::EnvFilter;

use crate::exit_code;

/// What a command line says of the log.
#[derive(Args, Clone, Debug)]
pub struct LogArgs {
    /// The form of the log's lines on stderr.
    #[arg(
        long,
        value_enum,
        global = true,
        default_value_t,
        value_name = "FORM",
        help_heading = "LogSettings"
    )]
    log_format: LogFormat,
    /// What is logged: error, warn, info, debug or trace, for some parts too (`warn,hyper=debug`).
    /// The environment's GLB_LOG, or info, if it is left out.
    #[arg(long, global = true, value_name = "LEVEL", help_heading = "LogSettings")]
    log_level: Option<String>,
}

impl LogArgs {
    /// What is meant.
    #[must_use]
    pub fn log(&self) -> LogSettings {
        LogSettings { format: self.log_format, filter: self.log_level.clone() }
    }
}

/// How the log is written.
#[derive(Clone, Debug, Default)]
pub struct LogSettings {
    /// In what form.
    pub format: LogFormat,
    /// What is logged, as `GLB_LOG` has it (`info`, `warn,glb_director=debug`); the environment's, or
    /// `info`, if it is left out.
    pub filter: Option<String>,
}

/// The form of the log's lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object for each event.
    Json,
}

/// Sends the log to stderr, does what the command line asks for, and says what went wrong.
pub fn run_logging(
    log: &LogSettings,
    execute: impl FnOnce() -> anyhow::Result<ExitCode>,
) -> ExitCode {
    let filter = match &log.filter {
        Some(filter) => EnvFilter::try_new(filter),
        None => Ok(EnvFilter::try_from_env("GLB_LOG").unwrap_or_else(|_| EnvFilter::new("info"))),
    };
    let filter = match filter {
        Ok(filter) => filter,
        Err(error) => {
            drop(writeln!(
                io::stderr(),
                "error: --log-level: {error}; say info, debug or the like"
            ));
            return ExitCode::from(exit_code::USAGE);
        }
    };
    let ansi = io::stderr().is_terminal();
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match log.format {
        LogFormat::Text => subscriber.with_ansi(ansi).init(),
        LogFormat::Json => subscriber.json().flatten_event(true).init(),
    }
    match execute() {
        Ok(code) => code,
        Err(error) => {
            let text = crate::error_chain(&error);
            match log.format {
                // Whether or not anybody reads it.
                LogFormat::Text => drop(writeln!(io::stderr(), "error: {text}")),
                // The last line is read by the same program as those before.
                LogFormat::Json => tracing::error!("{text}"),
            }
            ExitCode::from(exit_code::of_error(&error))
        }
    }
}

/// Prints the completions of a command for a shell.
///
/// # Errors
/// When standard output cannot be written to.
pub fn print_completions(mut command: clap::Command, shell: Shell) -> io::Result<()> {
    let name = command.get_name().to_owned();
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut text);
    io::stdout().write_all(&text)
}
