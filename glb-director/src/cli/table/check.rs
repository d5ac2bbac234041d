//! `glb-director table check`

use std::{fs, path::Path, path::PathBuf};

use anyhow::bail;
use glb_table::{Diagnostic, glbd};
use serde::Serialize;

use super::print;
use crate::cli::Output;

#[derive(Serialize)]
struct Checked {
    file: String,
    valid: bool,
    /// Counts of tables, binds and backends, if it is valid.
    #[serde(skip_serializing_if = "Option::is_none")]
    holds: Option<[usize; 3]>,
    /// Why it cannot be read, or what is wrong with a binary file.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    problems: Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
}

pub(super) fn execute(files: &[PathBuf], output: Output) -> anyhow::Result<()> {
    let mut checked = Vec::new();
    for file in files {
        let one = check(file, output);
        if let Output::Table = output {
            print::warn(&one.warnings);
            match &one.holds {
                Some([tables, binds, backends]) => {
                    let counts = [(tables, "table"), (binds, "bind"), (backends, "backend")]
                        .map(|(count, what)| {
                            format!("{count} {what}{}", if *count == 1 { "" } else { "s" })
                        })
                        .join(", ");
                    print::out(&format!("{}: valid ({counts})\n", one.file))?;
                }
                None if one.problems.is_empty() => {
                    print::err(&format!("{}\n", one.error.as_deref().unwrap_or("not valid")))
                }
                None => {}
            }
        }
        checked.push(one);
    }
    if let Output::Json = output {
        print::json(&checked)?;
    }
    let bad: Vec<&str> =
        checked.iter().filter(|one| !one.valid).map(|one| one.file.as_str()).collect();
    match bad[..] {
        [] => Ok(()),
        [one] => bail!("{one} is not valid"),
        _ => bail!("{} of {} files are not valid: {}", bad.len(), files.len(), bad.join(", ")),
    }
}

fn check(file: &Path, output: Output) -> Checked {
    let mut checked = Checked {
        file: file.display().to_string(),
        valid: false,
        holds: None,
        error: None,
        problems: Vec::new(),
        warnings: Vec::new(),
    };
    if let Ok(bytes) = fs::read(file)
        && glbd::is_glbd(&bytes)
    {
        match glbd::import(&bytes) {
            Ok(tables) => {
                let binds = tables.iter().map(|table| table.binds.len()).sum();
                let backends = tables.iter().map(|table| table.backends.len()).sum();
                (checked.valid, checked.holds) = (true, Some([tables.len(), binds, backends]));
            }
            Err(error) => checked.error = Some(format!("{}: {error}", file.display())),
        }
        return checked;
    }
    match glb_table::load(file) {
        Ok(set) => {
            let binds = set.tables.iter().map(|table| table.binds.len()).sum();
            let backends = set.tables.iter().map(|table| table.backends.len()).sum();
            (checked.valid, checked.holds) = (true, Some([set.tables.len(), binds, backends]));
            checked.warnings = set.warnings;
        }
        Err(error) => {
            if let (Output::Table, false) = (output, error.problems().is_empty()) {
                // Prints the report; the summary comes at the end, for all files.
                drop(print::report(file, &error, output));
            }
            checked.error = Some(match &error {
                glb_table::LoadError::Io { .. } => error.to_string(),
                glb_table::LoadError::Invalid { problems, .. } => {
                    format!("{} errors", problems.len())
                }
            });
            checked.problems = error.problems().to_vec();
        }
    }
    checked
}
