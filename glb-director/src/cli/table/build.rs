//! `glb-director table build`

use std::path::Path;

use anyhow::{Context, bail};
use glb_table::{atomic_file, glbd};
use serde::Serialize;

use super::print;
use crate::cli::Output;

/// The result of the command.
#[derive(Serialize)]
struct BuildReport<'p> {
    src: &'p Path,
    dst: &'p Path,
    bytes: usize,
    tables: usize,
    /// Settings that the binary file does not hold and a GLB director needs.
    notes: Vec<String>,
}

pub(super) fn execute(src: &Path, dst: &Path, output: Output) -> anyhow::Result<()> {
    if dst.extension().is_some_and(|ext| ext == "toml" || ext == "json") {
        bail!(
            "{} has the name of a table file, and `build` writes GLB's binary file. Use `table convert` to write TOML or JSON",
            dst.display()
        );
    }
    super::convert::check_distinct(src, dst)?;
    let set = print::load(src, output)?;
    let bytes = glbd::export(&set)
        .with_context(|| format!("cannot write {} as a GLBD file", src.display()));
    let bytes = bytes.map_err(|error| anyhow::anyhow!("{error:#}"))?;
    atomic_file::replace(dst, &bytes)
        .map_err(|error| anyhow::anyhow!("cannot write {}: {error}", dst.display()))?;
    let notes: Vec<String> = set.tables.iter().flat_map(glbd::notes).collect();
    let report = BuildReport { src, dst, bytes: bytes.len(), tables: set.tables.len(), notes };
    match output {
        Output::Json => print::json(&report),
        Output::Table => {
            print::warn(&set.warnings);
            for note in &report.notes {
                print::err(&format!("note: {note}\n"));
            }
            print::out(&format!(
                "{}: tables: {}, bytes: {}\n",
                dst.display(),
                report.tables,
                report.bytes
            ))
        }
    }
}
