//! Exit codes of the commands that ask a daemon, which scripts may rely on.

use std::{io::Write as _, process::ExitCode};

use super::{ClientError, Kind};

/// No daemon answers.
pub const NOT_RUNNING: u8 = 3;
/// The daemon answers, and something is not as it should be.
pub const DEGRADED: u8 = 4;
/// The socket or the daemon does not permit it.
pub const NOT_PERMITTED: u8 = 5;

/// The exit code of a command that asks the daemon; anything unforeseen is 1, which `main` makes of
/// an error, and a wrong command line is 2, which clap makes of it.
///
/// # Errors
/// Those that have no code of their own.
pub fn coded(result: anyhow::Result<ExitCode>) -> anyhow::Result<ExitCode> {
    let error = match result {
        Ok(code) => return Ok(code),
        Err(error) => error,
    };
    let code = match error.downcast_ref::<ClientError>() {
        Some(error) if error.is_not_running() => NOT_RUNNING,
        Some(ClientError::Silent { .. }) => NOT_RUNNING,
        Some(ClientError::NotPermitted { .. }) => NOT_PERMITTED,
        Some(ClientError::Refused(refusal)) if refusal.kind == Kind::NotPermitted => NOT_PERMITTED,
        _ => return Err(error),
    };
    // Whether or not anybody reads it.
    drop(writeln!(std::io::stderr(), "error: {}", crate::with_causes(&error)));
    Ok(ExitCode::from(code))
}
