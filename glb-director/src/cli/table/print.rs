//! What the commands share in reading and printing.

use std::{
    io::{self, IsTerminal, Write},
    path::Path,
};

use anyhow::anyhow;
use glb_table::{Diagnostic, LoadError, TableSet};
use serde::Serialize;

use crate::cli::Output;

/// Prints to standard output. Who closes the pipe (`| head`) has seen enough.
pub(super) fn out(text: &str) -> anyhow::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// Prints to standard error, whether or not anybody reads it.
pub(super) fn err(text: &str) {
    drop(io::stderr().write_all(text.as_bytes()));
}

pub(super) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    out(&(serde_json::to_string_pretty(value)? + "\n"))
}

/// A failed command's answer for programs.
#[derive(Serialize)]
struct Failed<'p> {
    error: String,
    problems: &'p [Diagnostic],
}

/// Reads a table. If it is not valid the whole report is printed, with every place.
pub(super) fn load(path: &Path, output: Output) -> anyhow::Result<TableSet> {
    glb_table::load(path).map_err(|error| report(path, &error, output))
}

/// Prints what is wrong with a file; returns the one line that is left to say.
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

/// Says what is doubtful, on standard error.
pub(super) fn warn(problems: &[Diagnostic]) {
    for problem in problems {
        err(&format!("warning: {problem}; {}\n", problem.help));
    }
}

/// Columns of equal width; the second and following ones are set to the right if `numbers`.
pub(super) fn columns(rows: &[Vec<String>], numbers: &[usize]) -> String {
    let widths: Vec<usize> = (0..rows.iter().map(Vec::len).max().unwrap_or(0))
        .map(|column| {
            rows.iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::from("  ");
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let pad = " ".repeat(width - cell.chars().count());
            let (before, after) =
                if numbers.contains(&column) { (pad, String::new()) } else { (String::new(), pad) };
            line.push_str(&format!("{before}{cell}{after}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A share in percent, never rounded down to nothing.
pub(super) fn percent(share: f64) -> String {
    match share * 100.0 {
        0.0 => "0%".into(),
        share if share < 0.01 => "<0.01%".into(),
        share => format!("{share:.2}%"),
    }
}
