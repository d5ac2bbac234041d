//! `glb-director table import`

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use glb_table::{
    Key, Order, Table, TableSet, atomic_file,
    glbd::{self, GlbdTable},
    parse_bytes,
};
use serde::Serialize;

use super::{convert, print};
use crate::cli::Output;

#[derive(Args, Debug)]
pub(in crate::cli) struct Arguments {
    /// GLB's binary file.
    src: PathBuf,
    /// The table file to write; its name ends in `.toml` or `.json`.
    dst: PathBuf,
    /// File with the tables' seeds, which the binary file does not hold: 32 hex digits per line, one
    /// line per table or one for all. `-` is standard input.
    #[arg(long, value_name = "FILE")]
    seeds: PathBuf,
    /// Names of the tables, which the binary file does not hold [default: table1, table2, …].
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    names: Vec<String>,
}

/// The result of the command.
#[derive(Serialize)]
struct ImportReport {
    src: PathBuf,
    dst: PathBuf,
    tables: usize,
    /// What the binary file does not tell.
    notes: Vec<String>,
}

pub(super) fn execute(arguments: &Arguments, output: Output) -> anyhow::Result<()> {
    let Arguments { src, dst, names, .. } = arguments;
    let format = convert::format_of_new_file(dst)?;
    convert::check_distinct(src, dst)?;
    let bytes = fs::read(src).map_err(|error| anyhow!("cannot read {}: {error}", src.display()))?;
    let imported = glbd::import(&bytes).map_err(|error| anyhow!("{}: {error}", src.display()))?;
    let seeds = seeds(&arguments.seeds, imported.len())?;
    if !names.is_empty() && names.len() != imported.len() {
        bail!(
            "{} has {} tables, and --names gives {} names. Give one name per table",
            src.display(),
            imported.len(),
            names.len()
        );
    }
    let mut set = TableSet { tables: Vec::new(), warnings: Vec::new(), healthchecks: None };
    for (index, (table, seed)) in imported.iter().zip(&seeds).enumerate() {
        let name = names.get(index).cloned().unwrap_or_else(|| format!("table{}", index + 1));
        set.tables.push(
            verified(table, &name, *seed)
                .with_context(|| src.display().to_string())
                .map_err(|e| anyhow!("{e:#}"))?,
        );
    }
    let text = set.to_text(format)?;
    // A binary file may hold what a table file may not, for instance overlapping binds.
    parse_bytes(dst, format, text.as_bytes())
        .map_err(|error| print::report(dst, &error, output))?;
    atomic_file::replace(dst, text.as_bytes())
        .map_err(|error| anyhow!("cannot write {}: {error}", dst.display()))?;
    let report = ImportReport {
        src: src.clone(),
        dst: dst.clone(),
        tables: set.tables.len(),
        notes: notes(&set, names),
    };
    match output {
        Output::Json => print::json(&report),
        Output::Table => {
            for note in &report.notes {
                print::err(&format!("note: {note}\n"));
            }
            print::out(&format!(
                "{}: tables: {}, every row is verified\n",
                dst.display(),
                report.tables
            ))
        }
    }
}

/// Returns the table if its rows are those of the binary file.
fn verified(imported: &GlbdTable, name: &str, seed: Key) -> anyhow::Result<Table> {
    let mut table = imported.with_name_and_seed(name, seed);
    let mut fewest = usize::MAX;
    for order in [Order::HealthyFirst, Order::Glb] {
        table.order = order;
        match imported.differing_rows(&table) {
            0 => return Ok(table),
            differing => fewest = fewest.min(differing),
        }
    }
    bail!(
        "{fewest} of the 65536 rows of table \"{name}\" differ with this seed. Give the seed that the \
         file was built with; rows built with weights cannot be imported"
    )
}

fn seeds(path: &Path, tables: usize) -> anyhow::Result<Vec<Key>> {
    let mut text = String::new();
    if path == Path::new("-") {
        let _ = std::io::stdin()
            .read_to_string(&mut text)
            .context("cannot read seeds from standard input")?;
    } else {
        text = fs::read_to_string(path)
            .map_err(|error| anyhow!("cannot read {}: {error}", path.display()))?;
    }
    let lines = text.lines().enumerate().map(|(number, line)| (number + 1, line.trim()));
    let mut keys = Vec::new();
    for (number, line) in lines.filter(|(_, line)| !line.is_empty()) {
        let wrong = || {
            anyhow!(
                "{}:{number}: this is not a seed. A seed is exactly 32 hex digits",
                path.display()
            )
        };
        keys.push(Key::from_hex(line).ok_or_else(wrong)?);
    }
    match keys[..] {
        [one] => Ok(vec![one; tables]),
        _ if keys.len() == tables => Ok(keys),
        _ => bail!(
            "{} has {} seeds, and the binary file has {tables} tables. Give one seed per table, or one for all",
            path.display(),
            keys.len()
        ),
    }
}

fn notes(set: &TableSet, names: &[String]) -> Vec<String> {
    let mut notes = vec![
        "a GLBD file has no hash_fields: if director.conf sets other fields than src_addr, set them in the table".to_owned(),
        "a GLBD file does not distinguish draining from inactive: a draining backend that is in no row is written as inactive".into(),
        "a GLBD file has no health checks: add them to the table".into(),
    ];
    if names.is_empty() {
        notes.push("a GLBD file has no table names: the tables are named table1, table2, …; use --names to name them".into());
    }
    if set.tables.iter().all(|table| table.order == Order::HealthyFirst) {
        notes.push(
            "both rules for the order of hops give these rows: set order = \"glb\" while GLB's directors serve the same VIPs"
                .into(),
        );
    }
    notes
}
