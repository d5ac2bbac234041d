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
    glbd::{self, Imported},
    parse_bytes,
};
use serde::Serialize;

use super::{convert, print};
use crate::cli::Output;

#[derive(Args, Debug)]
pub(in crate::cli) struct Arguments {
    /// GLB's binary file.
    src: PathBuf,
    /// The new table; its name ends in `.toml` or `.json`.
    dst: PathBuf,
    /// A file with the seeds, which the binary file does not hold: 32 hex digits on a line for each
    /// table, or one line for all. `-` reads them from standard input.
    #[arg(long, value_name = "FILE")]
    seeds: PathBuf,
    /// Names for the tables, which the binary file does not hold either [default: table1, table2, …]
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    names: Vec<String>,
}

#[derive(Serialize)]
struct Said {
    src: PathBuf,
    dst: PathBuf,
    tables: usize,
    /// What the binary file cannot tell.
    unknown: Vec<String>,
}

pub(super) fn execute(arguments: &Arguments, output: Output) -> anyhow::Result<()> {
    let Arguments { src, dst, names, .. } = arguments;
    let form = convert::form_of_new(dst)?;
    convert::differ(src, dst)?;
    let bytes = fs::read(src).map_err(|error| anyhow!("cannot read {}: {error}", src.display()))?;
    let imported = glbd::import(&bytes).map_err(|error| anyhow!("{}: {error}", src.display()))?;
    let seeds = seeds(&arguments.seeds, imported.len())?;
    if !names.is_empty() && names.len() != imported.len() {
        bail!(
            "{} holds {} tables, and --names gives {} names",
            src.display(),
            imported.len(),
            names.len()
        );
    }
    let mut set = TableSet { tables: Vec::new(), warnings: Vec::new(), healthchecks: None };
    for (index, (one, seed)) in imported.iter().zip(&seeds).enumerate() {
        let name = names.get(index).cloned().unwrap_or_else(|| format!("table{}", index + 1));
        set.tables.push(
            verified(one, &name, *seed)
                .with_context(|| src.display().to_string())
                .map_err(|e| anyhow!("{e:#}"))?,
        );
    }
    let text = set.to_text(form)?;
    // A binary file may hold what is refused here, binds that overlap for instance.
    parse_bytes(dst, form, text.as_bytes()).map_err(|error| print::report(dst, &error, output))?;
    atomic_file::replace(dst, text.as_bytes())
        .map_err(|error| anyhow!("cannot write {}: {error}", dst.display()))?;
    let said = Said {
        src: src.clone(),
        dst: dst.clone(),
        tables: set.tables.len(),
        unknown: unknown(&set, names),
    };
    match output {
        Output::Json => print::json(&said),
        Output::Table => {
            for unknown in &said.unknown {
                print::err(&format!("note: {unknown}\n"));
            }
            print::out(&format!("{}: tables: {}, every row verified\n", dst.display(), said.tables))
        }
    }
}

/// The table, if it builds the file's own rows.
fn verified(imported: &Imported, name: &str, seed: Key) -> anyhow::Result<Table> {
    let mut table = imported.with(name, seed);
    let mut fewest = usize::MAX;
    for order in [Order::HealthyFirst, Order::Glb] {
        table.order = order;
        match imported.differing_rows(&table) {
            0 => return Ok(table),
            differing => fewest = fewest.min(differing),
        }
    }
    bail!(
        "with this seed {fewest} of 65536 rows of table \"{name}\" differ: it is another table's seed, \
         or the rows were built with weights"
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
        let wrong = || anyhow!("{}:{number}: a seed is exactly 32 hex digits", path.display());
        keys.push(Key::from_hex(line).ok_or_else(wrong)?);
    }
    match keys[..] {
        [one] => Ok(vec![one; tables]),
        _ if keys.len() == tables => Ok(keys),
        _ => bail!(
            "{} has {} seeds; the binary file has {tables} tables",
            path.display(),
            keys.len()
        ),
    }
}

fn unknown(set: &TableSet, names: &[String]) -> Vec<String> {
    let mut unknown = vec![
        "a GLBD file holds no hash_fields: if director.conf sets others than src_addr, set them here".to_owned(),
        "a GLBD file tells draining from inactive by the rows only: a backend that is in none is written as inactive".into(),
        "a GLBD file holds no health checks".into(),
    ];
    if names.is_empty() {
        unknown.push("a GLBD file holds no names: tables are called table1, table2, …; rename them or use --names".into());
    }
    if set.tables.iter().all(|table| table.order == Order::HealthyFirst) {
        unknown.push(
            "the rows do not tell which rule made them: beside GLB's directors set order = \"glb\""
                .into(),
        );
    }
    unknown
}
