//! `glb-director table build`

use std::path::Path;

use anyhow::{Context, bail};
use glb_table::{atomic_file, glbd};
use serde::Serialize;

use super::print;
use crate::cli::Output;

#[derive(Serialize)]
struct Built<'p> {
    src: &'p Path,
    dst: &'p Path,
    bytes: usize,
    tables: usize,
    /// What the file does not hold and a GLB director must be told.
    notes: Vec<String>,
}

pub(super) fn execute(src: &Path, dst: &Path, output: Output) -> anyhow::Result<()> {
    if dst.extension().is_some_and(|ext| ext == "toml" || ext == "json") {
        bail!(
            "{} looks like a table: build writes GLB's binary file; to write TOML or JSON use convert",
            dst.display()
        );
    }
    super::convert::differ(src, dst)?;
    let set = print::load(src, output)?;
    let bytes =
        glbd::export(&set).with_context(|| format!("{} cannot be a GLBD file", src.display()));
    let bytes = bytes.map_err(|error| anyhow::anyhow!("{error:#}"))?;
    atomic_file::replace(dst, &bytes)
        .map_err(|error| anyhow::anyhow!("cannot write {}: {error}", dst.display()))?;
    let notes: Vec<String> = set.tables.iter().flat_map(glbd::notes).collect();
    let built = Built { src, dst, bytes: bytes.len(), tables: set.tables.len(), notes };
    match output {
        Output::Json => print::json(&built),
        Output::Table => {
            print::warn(&set.warnings);
            for note in &built.notes {
                print::err(&format!("note: {note}\n"));
            }
            print::out(&format!(
                "{}: tables: {}, bytes: {}\n",
                dst.display(),
                built.tables,
                built.bytes
            ))
        }
    }
}
