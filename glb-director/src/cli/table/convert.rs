//! `glb-director table convert`

use std::{fs, path::Path};

use anyhow::{anyhow, bail};
use glb_table::{Format, HashFields, Order, Table, atomic_file};
use serde::Serialize;

use super::print;
use crate::cli::Output;

/// The result of the command.
#[derive(Serialize)]
struct ConvertReport<'p> {
    src: &'p Path,
    dst: &'p Path,
    tables: usize,
    /// Settings that GLB's own tool does not know.
    notes: Vec<String>,
}

/// Fails if both names are the same file.
pub(super) fn check_distinct(src: &Path, dst: &Path) -> anyhow::Result<()> {
    let same = src == dst
        || matches!((fs::canonicalize(src), fs::canonicalize(dst)), (Ok(a), Ok(b)) if a == b);
    if same {
        bail!(
            "{} is both source and destination. Give the destination another name",
            src.display()
        );
    }
    Ok(())
}

/// The format of a new file, by its extension.
pub(super) fn format_of_new_file(dst: &Path) -> anyhow::Result<Format> {
    match dst.extension().and_then(|ext| ext.to_str()) {
        Some("json") => Ok(Format::Json),
        Some("toml") => Ok(Format::Toml),
        _ => {
            bail!("cannot write {}: the name of a table file ends in .toml or .json", dst.display())
        }
    }
}

pub(super) fn execute(src: &Path, dst: &Path, output: Output) -> anyhow::Result<()> {
    let format = format_of_new_file(dst)?;
    check_distinct(src, dst)?;
    let set = print::load(src, output)?;
    let text = set.to_text(format).map_err(|error| anyhow!("{}: {error}", src.display()))?;
    atomic_file::replace(dst, text.as_bytes())
        .map_err(|error| anyhow!("cannot write {}: {error}", dst.display()))?;
    let notes = match format {
        Format::Json => set.tables.iter().filter_map(beyond_glb).collect(),
        Format::Toml => Vec::new(),
    };
    let report = ConvertReport { src, dst, tables: set.tables.len(), notes };
    match output {
        Output::Json => print::json(&report),
        Output::Table => {
            print::warn(&set.warnings);
            for note in &report.notes {
                print::err(&format!("note: {note}\n"));
            }
            print::out(&format!("{}: tables: {}\n", dst.display(), report.tables))
        }
    }
}

/// The settings of a table that GLB's own tool ignores, so that it would build other rows.
fn beyond_glb(table: &Table) -> Option<String> {
    let uses = [
        ("hops", table.hops != 2),
        ("weight", table.backends.iter().any(|backend| backend.weight != 1)),
        ("zone", table.backends.iter().any(|backend| !backend.zone.is_empty())),
        ("IPv6 backends", table.backends.iter().any(|backend| backend.address.is_ipv6())),
        ("hash_fields", table.hash_fields != HashFields::default()),
        ("alt_hash_fields", table.alt_hash_fields.is_some()),
        ("alt_hash_key", table.alt_hash_key.is_some()),
        ("alt_seed", table.alt_seed.is_some()),
        ("order", table.order == Order::Glb),
    ];
    let uses: Vec<&str> =
        uses.into_iter().filter(|(_, used)| *used).map(|(name, _)| name).collect();
    (!uses.is_empty())
        .then(|| format!("table \"{}\": GLB's own tool ignores {}", table.name, uses.join(", ")))
}
