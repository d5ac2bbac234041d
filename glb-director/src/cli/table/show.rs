//! `glb-director table show`

use std::{net::IpAddr, path::Path};

use glb_table::{
    Bind, Digest, Order, ROWS, State, Table, hash_field_names, hex,
    text::{columns, percent},
};
use serde::Serialize;

use super::print;
use crate::cli::Output;

/// The result of the command.
#[derive(Serialize)]
struct SetView {
    file: String,
    digest: Digest,
    tables: Vec<TableView>,
}

#[derive(Serialize)]
struct TableView {
    name: String,
    hops: u8,
    /// Number of hops that the rows have, which is less if few backends are usable.
    hops_used: usize,
    order: Order,
    hash_fields: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    alt_hash_fields: Option<Vec<&'static str>>,
    /// Names of the alternative keys that are set; keys themselves are not shown.
    alternatives: Vec<&'static str>,
    binds: Vec<String>,
    backends: Vec<BackendView>,
    digest: Digest,
    /// Memory of the rows in the kernel and of the ranks in the daemon, in bytes.
    rows_bytes: usize,
    ranks_bytes: usize,
}

#[derive(Serialize)]
struct BackendView {
    address: IpAddr,
    state: State,
    healthy: bool,
    weight: u16,
    #[serde(skip_serializing_if = "String::is_empty")]
    zone: String,
    /// Share of rows, from 0 to 1, in which it is the first, second, … hop.
    shares: Vec<f64>,
}

pub(super) fn execute(file: &Path, output: Output) -> anyhow::Result<()> {
    let set = print::load(file, output)?;
    let view = SetView {
        file: file.display().to_string(),
        digest: set.digest(),
        tables: set.tables.iter().map(view_of).collect(),
    };
    match output {
        Output::Json => print::json(&view),
        Output::Table => {
            print::warn(&set.warnings);
            print::out(&text(&view))
        }
    }
}

fn view_of(table: &Table) -> TableView {
    let ranks = table.ranks();
    let rows = table.rows_from(&ranks);
    let mut counts = vec![vec![0_usize; rows.hops]; table.backends.len()];
    for row in rows.iter() {
        for (place, index) in row.iter().enumerate() {
            counts[usize::from(*index)][place] += 1;
        }
    }
    let backends = table.backends.iter().zip(counts).map(|(backend, counts)| BackendView {
        address: backend.address,
        state: backend.state,
        healthy: backend.healthy,
        weight: backend.weight,
        zone: backend.zone.clone(),
        shares: counts.into_iter().map(|rows| rows as f64 / ROWS as f64).collect(),
    });
    let alternatives =
        [("alt_hash_key", table.alt_hash_key.is_some()), ("alt_seed", table.alt_seed.is_some())];
    TableView {
        name: table.name.clone(),
        hops: table.hops,
        hops_used: rows.hops,
        order: table.order,
        hash_fields: hash_field_names(table.hash_fields),
        alt_hash_fields: table.alt_hash_fields.map(hash_field_names),
        alternatives: alternatives
            .into_iter()
            .filter(|(_, set)| *set)
            .map(|(name, _)| name)
            .collect(),
        binds: table.binds.iter().map(Bind::to_string).collect(),
        backends: backends.collect(),
        digest: table.digest(),
        rows_bytes: table.rows_bytes(),
        ranks_bytes: ranks.bytes(),
    }
}

fn text(view: &SetView) -> String {
    let mut text = String::new();
    for table in &view.tables {
        text.push_str(&format!("table \"{}\"\n", table.name));
        let mut settings = format!("  hops {}", table.hops);
        if table.hops_used < usize::from(table.hops) {
            settings.push_str(&format!(
                " (rows have {}, because only that many backends are usable)",
                table.hops_used
            ));
        }
        if table.order == Order::Glb {
            settings.push_str(", order glb");
        }
        settings.push_str(&format!(", hashes {}", table.hash_fields.join(" + ")));
        if let Some(fields) = &table.alt_hash_fields {
            settings.push_str(&format!(", alternative {}", fields.join(" + ")));
        }
        for name in &table.alternatives {
            settings.push_str(&format!(", {name} set"));
        }
        text.push_str(&settings);
        let kib = |bytes: usize| bytes.div_ceil(1024);
        text.push_str(&format!(
            "\n  rows {} KiB, ranks {} KiB\n  membership {}  order {}\n\n",
            kib(table.rows_bytes),
            kib(table.ranks_bytes),
            &hex(&table.digest.membership)[..16],
            &hex(&table.digest.order)[..16],
        ));
        let binds: Vec<Vec<String>> = std::iter::once(vec!["BIND".to_owned()])
            .chain(table.binds.iter().map(|bind| vec![bind.clone()]))
            .collect();
        text.push_str(&columns(&binds, &[]));
        text.push('\n');
        text.push_str(&backends(table));
        text.push('\n');
    }
    let (membership, order) = (hex(&view.digest.membership), hex(&view.digest.order));
    text.push_str(&format!(
        "all tables: membership {}  order {}\n",
        &membership[..16],
        &order[..16]
    ));
    text
}

fn backends(table: &TableView) -> String {
    let weighted = table.backends.iter().any(|backend| backend.weight != 1);
    let zoned = table.backends.iter().any(|backend| !backend.zone.is_empty());
    let mut head = vec!["BACKEND".to_owned(), "STATE".into(), "HEALTH".into()];
    head.extend(weighted.then(|| "WEIGHT".to_owned()));
    head.extend(zoned.then(|| "ZONE".to_owned()));
    let first = head.len();
    head.extend(
        ["FIRST", "SECOND", "THIRD", "FOURTH"]
            .iter()
            .take(table.hops_used)
            .map(|place| (*place).to_owned()),
    );
    let mut rows = vec![head];
    for backend in &table.backends {
        let health = if backend.healthy { "healthy" } else { "unhealthy" };
        let mut row = vec![backend.address.to_string(), backend.state.to_string(), health.into()];
        row.extend(weighted.then(|| backend.weight.to_string()));
        row.extend(zoned.then(|| backend.zone.clone()));
        row.extend(backend.shares.iter().map(|share| percent(*share)));
        rows.push(row);
    }
    let numbers: Vec<usize> = (first..first + table.hops_used).collect();
    columns(&rows, &numbers)
}
