//! `glb-director table diff`

use std::path::Path;

use glb_table::{
    ROWS,
    diff::{Diff, TableDiff, diff},
    text::{columns, percent},
};

use super::print;
use crate::cli::Output;

pub(super) fn execute(old: &Path, new: &Path, output: Output) -> anyhow::Result<()> {
    let (old, new) = (print::load(old, output)?, print::load(new, output)?);
    let diff = diff(&old, &new);
    match output {
        Output::Json => print::json(&diff),
        Output::Table => print::out(&text(&diff)),
    }
}

fn text(diff: &Diff) -> String {
    let mut text = String::new();
    diff.removed.iter().for_each(|name| text.push_str(&format!("- table \"{name}\"\n")));
    diff.added.iter().for_each(|name| text.push_str(&format!("+ table \"{name}\"\n")));
    diff.tables.iter().for_each(|diff| text.push_str(&table(diff)));
    if text.is_empty() {
        text.push_str("no difference\n");
    }
    text
}

fn table(diff: &TableDiff) -> String {
    let mut text = format!("table \"{}\"\n", diff.name);
    diff.settings.iter().for_each(|setting| text.push_str(&format!("  {setting}\n")));
    diff.binds_removed.iter().for_each(|bind| text.push_str(&format!("  - bind {bind}\n")));
    diff.binds_added.iter().for_each(|bind| text.push_str(&format!("  + bind {bind}\n")));
    if !diff.backends.is_empty() {
        let head = ["BACKEND", "BEFORE", "AFTER", "FIRST +", "FIRST -", "ROWS +", "ROWS -"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        let absent = || "-".to_owned();
        rows.extend(diff.backends.iter().map(|backend| {
            let counts =
                [backend.first_gained, backend.first_lost, backend.rows_gained, backend.rows_lost];
            let mut row = vec![
                backend.address.to_string(),
                backend.before.clone().unwrap_or_else(absent),
                backend.after.clone().unwrap_or_else(absent),
            ];
            row.extend(counts.map(|count| count.to_string()));
            row
        }));
        text.push_str(&columns(&rows, &[3, 4, 5, 6]));
    }
    let share = |rows: usize| format!("{rows} rows ({})", percent(rows as f64 / ROWS as f64));
    text.push_str(&format!(
        "  first hop changes in {}; a backend leaves {}\n",
        share(diff.first_hop_changes),
        share(diff.rows_losing)
    ));
    if diff.flow_hash_changes {
        text.push_str("  the flow hash changes, so each flow may move to any row; `table plan` tells what that breaks\n");
    }
    text
}
