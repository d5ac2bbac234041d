//! Reading tables and printing results, for all `table` commands.

use std::{
    io::{self, IsTerminal, Write},
    path::Path,
    process::ExitCode,
};

use anyhow::anyhow;
use glb_table::{Diagnostic, Format, LoadError, TableSet};
use serde::Serialize;

use crate::cli::Output;

/// Prints to standard output. A closed pipe (`| head`) is not an error.
pub(super) fn out(text: &str) -> anyhow::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// Prints to standard error; ignores failures.
pub(super) fn err(text: &str) {
    drop(io::stderr().write_all(text.as_bytes()));
}

/// Prints a value as JSON to standard output.
pub(super) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    out(&(serde_json::to_string_pretty(value)? + "\n"))
}

/// The JSON output of a command that could not read a table.
#[derive(Serialize)]
struct Failed<'p> {
    error: String,
    problems: &'p [Diagnostic],
}

/// Reads a table file. If the file is invalid, prints all its problems and returns a summary.
pub(super) fn load(path: &Path, output: Output) -> anyhow::Result<TableSet> {
    parse(path, &read(path)?).map_err(|error| report(path, &error, output))
}

/// Reads a table's bytes from a file, a pipe, or standard input (`-`).
pub(super) fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    glb_table::read_input(path).map_err(|error| anyhow!("{error}"))
}

/// Parses a table. The text of a pipe is JSON if it begins with a brace, else TOML.
pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<TableSet, LoadError> {
    let format = match path.extension() {
        None if bytes.trim_ascii_start().starts_with(b"{") => Format::Json,
        _ => Format::of_path(path),
    };
    glb_table::parse_bytes(path, format, bytes)
}

/// Prints the problems of a file, and returns a one-line summary.
pub(super) fn report(path: &Path, error: &LoadError, output: Output) -> anyhow::Error {
    let many = error.problems().len();
    let summary = match error {
        LoadError::Io { .. } => anyhow!("{error}"),
        LoadError::Invalid { .. } if many == 1 => {
            anyhow!("{} is not valid: 1 error", path.display())
        }
        LoadError::Invalid { .. } => anyhow!("{} is not valid: {many} errors", path.display()),
    };
    match output {
        Output::Json => {
            let failed = Failed { error: summary.to_string(), problems: error.problems() };
            json(&failed).err().unwrap_or(summary)
        }
        Output::Table => {
            if many > 0 {
                err(&error.render(io::stderr().is_terminal()));
            }
            summary
        }
    }
}

/// Prints warnings to standard error.
pub(super) fn warn(problems: &[Diagnostic]) {
    for problem in problems {
        err(&format!("warning: {problem}; {}\n", problem.help));
    }
}

/// Prints an error, and returns the exit code.
pub(super) fn exit_with(code: u8, message: &str) -> ExitCode {
    err(&format!("error: {message}\n"));
    ExitCode::from(code)
}
