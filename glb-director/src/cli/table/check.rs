//! `glb-director table check`

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use glb_host::exit_code;
use glb_table::{Diagnostic, glbd, text::count};
use serde::Serialize;

use super::print;
use crate::cli::Output;

/// The result for one file.
#[derive(Serialize)]
struct FileReport {
    file: String,
    valid: bool,
    /// The numbers of tables, binds and backends, if the file is valid.
    #[serde(skip_serializing_if = "Option::is_none")]
    holds: Option<[usize; 3]>,
    /// Why the file cannot be read, or what is wrong with a binary file.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    problems: Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
}

pub(super) fn execute(files: &[PathBuf], output: Output) -> anyhow::Result<ExitCode> {
    let mut reports = Vec::new();
    for file in files {
        let report = check(file, output);
        if let Output::Table = output {
            print::warn(&report.warnings);
            match &report.holds {
                Some([tables, binds, backends]) => {
                    let counts = [(tables, "table"), (binds, "bind"), (backends, "backend")]
                        .map(|(number, noun)| count(*number, noun))
                        .join(", ");
                    print::out(&format!("{}: valid ({counts})\n", report.file))?;
                }
                None if report.problems.is_empty() => {
                    print::err(&format!("{}\n", report.error.as_deref().unwrap_or("not valid")))
                }
                None => {}
            }
        }
        reports.push(report);
    }
    if let Output::Json = output {
        print::json(&reports)?;
    }
    let invalid: Vec<&str> =
        reports.iter().filter(|report| !report.valid).map(|report| report.file.as_str()).collect();
    let message = match invalid[..] {
        [] => return Ok(ExitCode::SUCCESS),
        [file] => format!("{file} is not valid"),
        _ => format!(
            "{} of {} files are not valid: {}",
            invalid.len(),
            files.len(),
            invalid.join(", ")
        ),
    };
    Ok(print::exit_with(exit_code::PROBLEM, &message))
}

fn check(file: &Path, output: Output) -> FileReport {
    let mut report = FileReport {
        file: file.display().to_string(),
        valid: false,
        holds: None,
        error: None,
        problems: Vec::new(),
        warnings: Vec::new(),
    };
    let bytes = match glb_table::read_input(file) {
        Ok(bytes) => bytes,
        Err(error) => {
            report.error = Some(error.to_string());
            return report;
        }
    };
    if glbd::is_glbd(&bytes) {
        match glbd::import(&bytes) {
            Ok(tables) => {
                let binds = tables.iter().map(|table| table.binds.len()).sum();
                let backends = tables.iter().map(|table| table.backends.len()).sum();
                (report.valid, report.holds) = (true, Some([tables.len(), binds, backends]));
            }
            Err(error) => report.error = Some(format!("{}: {error}", file.display())),
        }
        return report;
    }
    match print::parse(file, &bytes) {
        Ok(set) => {
            let binds = set.tables.iter().map(|table| table.binds.len()).sum();
            let backends = set.tables.iter().map(|table| table.backends.len()).sum();
            (report.valid, report.holds) = (true, Some([set.tables.len(), binds, backends]));
            report.warnings = set.warnings;
        }
        Err(error) => {
            if let (Output::Table, false) = (output, error.problems().is_empty()) {
                // Prints the problems; the summary of all files comes at the end.
                drop(print::report(file, &error, output));
            }
            report.error = Some(match &error {
                glb_table::LoadError::Io { .. } => error.to_string(),
                glb_table::LoadError::Invalid { problems, .. } => {
                    format!("{} errors", problems.len())
                }
            });
            report.problems = error.problems().to_vec();
        }
    }
    report
}
