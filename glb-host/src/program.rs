//! What the daemons' `main` functions have in common.

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
};

use tracing_subscriber::EnvFilter;

/// How the log is written.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// In what form.
    pub format: LogFormat,
    /// What is logged, as `GLB_LOG` has it (`info`, `warn,glb_director=debug`); the environment's, or
    /// `info`, if it is left out.
    pub filter: Option<String>,
}

/// The form of the log's lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object for each event.
    Json,
}

/// Sends the log to stderr, does what the command line asks for, and says what went wrong.
///
/// `GLB_LOG` says what is logged (`info` if it is not set).
pub fn run(execute: impl FnOnce() -> anyhow::Result<ExitCode>) -> ExitCode {
    run_logging(&Log::default(), execute)
}

/// The same with a log as the command line wants it.
pub fn run_logging(log: &Log, execute: impl FnOnce() -> anyhow::Result<ExitCode>) -> ExitCode {
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
            return ExitCode::from(2);
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
            let text = crate::with_causes(&error);
            match log.format {
                // Whether or not anybody reads it.
                LogFormat::Text => drop(writeln!(io::stderr(), "error: {text}")),
                // The last line is read by the same program as those before.
                LogFormat::Json => tracing::error!("{text}"),
            }
            ExitCode::FAILURE
        }
    }
}
