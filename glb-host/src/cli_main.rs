//! The parts that the `main` functions of all programs share: logging, errors, exit codes.

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
};

use clap::{Args, ValueEnum};
pub use clap_complete::Shell;
use tracing_subscriber::EnvFilter;

use crate::exit_code;

/// The log options of a command line.
#[derive(Args, Clone, Debug)]
pub struct LogArgs {
    /// The format of log lines on stderr.
    #[arg(
        long,
        value_enum,
        global = true,
        default_value_t,
        value_name = "FORM",
        help_heading = "LogSettings"
    )]
    log_format: LogFormat,
    /// Log level: error, warn, info, debug or trace, also by module (`warn,hyper=debug`).
    /// Defaults to the environment variable GLB_LOG, or info.
    #[arg(long, global = true, value_name = "LEVEL", help_heading = "LogSettings")]
    log_level: Option<String>,
}

impl LogArgs {
    /// Returns the settings that the options mean.
    #[must_use]
    pub fn log(&self) -> LogSettings {
        LogSettings { format: self.log_format, filter: self.log_level.clone() }
    }
}

/// Log settings.
#[derive(Clone, Debug, Default)]
pub struct LogSettings {
    /// The format of log lines.
    pub format: LogFormat,
    /// The filter in `GLB_LOG`'s syntax (`info`, `warn,glb_director=debug`); `None` means the
    /// environment's, or `info`.
    pub filter: Option<String>,
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Text for people.
    #[default]
    Text,
    /// One JSON object per event.
    Json,
}

/// Sets up logging to stderr, runs `execute`, and reports its error.
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
    quit_quietly_on_closed_pipe();
    let ansi = io::stderr().is_terminal();
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match log.format {
        LogFormat::Text => subscriber.with_ansi(ansi).init(),
        LogFormat::Json => subscriber.json().flatten_event(true).init(),
    }
    match execute() {
        Ok(code) => code,
        Err(error) if is_closed_pipe(&error) => ExitCode::from(CLOSED_PIPE as u8),
        Err(error) => {
            let text = crate::error_chain(&error);
            match log.format {
                // A closed stderr is not an error.
                LogFormat::Text => drop(writeln!(io::stderr(), "error: {text}")),
                // The reader of the JSON log needs this line too.
                LogFormat::Json => tracing::error!("{text}"),
            }
            ExitCode::from(exit_code::of_error(&error))
        }
    }
}

/// The exit code after standard output was closed: that of a program which SIGPIPE ends.
const CLOSED_PIPE: i32 = 128 + libc::SIGPIPE;

/// Ends the process without a message when `println!` finds standard output closed (`| head`).
///
/// SIGPIPE stays ignored, as a daemon's child processes and connections may close their pipes too.
fn quit_quietly_on_closed_pipe() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload().downcast_ref::<String>();
        if text.is_some_and(|text| {
            text.starts_with("failed printing to stdout") && text.contains("Broken pipe")
        }) {
            std::process::exit(CLOSED_PIPE);
        }
        default(panic);
    }));
}

/// Returns whether a command ended because standard output was closed.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Prints the completion script for a shell.
///
/// # Errors
/// When standard output cannot be written to.
pub fn print_completions(mut command: clap::Command, shell: Shell) -> io::Result<()> {
    let name = command.get_name().to_owned();
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut text);
    io::stdout().write_all(&text)
}
