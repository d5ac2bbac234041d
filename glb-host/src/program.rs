//! What the daemons' `main` functions have in common.

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
};

use tracing_subscriber::EnvFilter;

/// Sends the log to stderr, does what the command line asks for, and says what went wrong.
///
/// `GLB_LOG` says what is logged (`info` if it is not set).
pub fn run(execute: impl FnOnce() -> anyhow::Result<ExitCode>) -> ExitCode {
    let filter = EnvFilter::try_from_env("GLB_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let ansi = io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(ansi)
        .with_writer(io::stderr)
        .init();
    match execute() {
        Ok(code) => code,
        Err(error) => {
            // Whether or not anybody reads it.
            drop(writeln!(io::stderr(), "error: {}", crate::with_causes(&error)));
            ExitCode::FAILURE
        }
    }
}
