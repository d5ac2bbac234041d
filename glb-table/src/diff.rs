//! Compares two table sets, row by row.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use serde::Serialize;

use crate::{Backend, Bind, BuiltTable, ROWS, RowCache, TableSet};

/// The difference between two table sets.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Diff {
    /// Tables that are in both sets and differ.
    pub tables: Vec<TableDiff>,
    /// Tables that are only in the new set.
    pub added: Vec<String>,
    /// Tables that are only in the old set.
    pub removed: Vec<String>,
}

/// The difference between two versions of a table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TableDiff {
    /// The table's name.
    pub name: String,
    /// Settings that differ, with old and new value. Keys are named and not shown.
    pub settings: Vec<String>,
    /// Binds that only the new table has.
    pub binds_added: Vec<String>,
    /// Binds that only the old table has.
    pub binds_removed: Vec<String>,
    /// Backends that change or gain or lose rows, by address.
    pub backends: Vec<BackendDiff>,
    /// Number of rows, of 65,536, whose first hop differs.
    pub first_hop_changes: usize,
    /// Number of rows that a backend leaves.
    pub rows_losing: usize,
    /// Number of rows that differ, including rows that differ in order only.
    pub rows_changed: usize,
    /// The flow hash differs, so each flow may move to any row. The counts still compare rows of equal
    /// number, and then say little about flows.
    pub flow_hash_changes: bool,
}

/// What one backend gains and loses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackendDiff {
    /// The backend's address.
    pub address: IpAddr,
    /// Its state, health, weight and zone in the old table; `None` if it is not there.
    pub before: Option<String>,
    /// The same in the new table.
    pub after: Option<String>,
    /// Number of rows in which it becomes the first hop.
    pub first_gained: usize,
    /// Number of rows in which it stops being the first hop.
    pub first_lost: usize,
    /// Number of rows that it enters.
    pub rows_gained: usize,
    /// Number of rows that it leaves.
    pub rows_lost: usize,
}

/// Compares two table sets.
#[must_use]
pub fn diff(old: &TableSet, new: &TableSet) -> Diff {
    // One cache for both: a change of states or health needs no new hashes.
    let mut row_cache = RowCache::default();
    let (old_built, new_built) = (row_cache.build(old), row_cache.build(new));
    let find =
        |built: &[BuiltTable], name: &str| built.iter().position(|built| built.table.name == name);
    let mut out = Diff { tables: Vec::new(), added: Vec::new(), removed: Vec::new() };
    for old in &old_built {
        match find(&new_built, &old.table.name) {
            None => out.removed.push(old.table.name.clone()),
            Some(at) if new_built[at].table != old.table => {
                out.tables.push(table(old, &new_built[at]))
            }
            Some(_) => {}
        }
    }
    let added = new_built.iter().filter(|new| find(&old_built, &new.table.name).is_none());
    out.added = added.map(|new| new.table.name.clone()).collect();
    out
}

fn describe(backend: &Backend) -> String {
    let mut text =
        format!("{}, {}", backend.state, if backend.healthy { "healthy" } else { "unhealthy" });
    if backend.weight != 1 {
        text.push_str(&format!(", weight {}", backend.weight));
    }
    if !backend.zone.is_empty() {
        text.push_str(&format!(", zone {}", backend.zone));
    }
    text
}

fn settings(old: &BuiltTable, new: &BuiltTable) -> Vec<String> {
    let (old, new) = (&old.table, &new.table);
    let names = |fields| crate::hash_field_names(fields).join(", ");
    let mut out = Vec::new();
    let mut add = |differs: bool, what: String| out.extend(differs.then_some(what));
    add(old.hash_key != new.hash_key, "hash_key differs".into());
    add(old.seed != new.seed, "seed differs".into());
    add(old.alt_hash_key != new.alt_hash_key, "alt_hash_key differs".into());
    add(old.alt_seed != new.alt_seed, "alt_seed differs".into());
    let fields = format!("hash_fields: {} → {}", names(old.hash_fields), names(new.hash_fields));
    add(old.hash_fields != new.hash_fields, fields);
    let alternative = |fields: Option<crate::HashFields>| fields.map_or("none".into(), names);
    let fields = format!(
        "alt_hash_fields: {} → {}",
        alternative(old.alt_hash_fields),
        alternative(new.alt_hash_fields)
    );
    add(old.alt_hash_fields != new.alt_hash_fields, fields);
    add(old.hops != new.hops, format!("hops: {} → {}", old.hops, new.hops));
    add(old.order != new.order, format!("order: {} → {}", old.order, new.order));
    add(old.healthchecks != new.healthchecks, "healthchecks differ".into());
    out
}

fn table(old: &BuiltTable, new: &BuiltTable) -> TableDiff {
    let binds =
        |of: &BuiltTable| of.table.binds.iter().map(Bind::to_string).collect::<BTreeSet<_>>();
    let (old_binds, new_binds) = (binds(old), binds(new));
    let addresses = |of: &BuiltTable| -> Vec<IpAddr> {
        of.table.backends.iter().map(|backend| backend.address).collect()
    };
    let (old_addresses, new_addresses) = (addresses(old), addresses(new));
    let describe_all = |of: &BuiltTable| -> HashMap<IpAddr, String> {
        of.table.backends.iter().map(|backend| (backend.address, describe(backend))).collect()
    };
    let (mut described_before, mut described_after) = (describe_all(old), describe_all(new));
    let mut backends: HashMap<IpAddr, BackendDiff> = HashMap::new();
    for address in old_addresses.iter().chain(&new_addresses) {
        backends.entry(*address).or_insert_with(|| BackendDiff {
            address: *address,
            before: described_before.remove(address),
            after: described_after.remove(address),
            first_gained: 0,
            first_lost: 0,
            rows_gained: 0,
            rows_lost: 0,
        });
    }
    let mut count =
        |address: IpAddr, add: fn(&mut BackendDiff)| backends.get_mut(&address).map(add);
    let (mut first_hop_changes, mut rows_losing, mut rows_changed) = (0, 0, 0);
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for (old_row, new_row) in old.rows.iter().zip(new.rows.iter()) {
        before.clear();
        before.extend(old_row.iter().map(|index| old_addresses[usize::from(*index)]));
        after.clear();
        after.extend(new_row.iter().map(|index| new_addresses[usize::from(*index)]));
        if before == after {
            continue;
        }
        rows_changed += 1;
        if before.first() != after.first() {
            first_hop_changes += 1;
            before.first().map(|address| count(*address, |backend| backend.first_lost += 1));
            after.first().map(|address| count(*address, |backend| backend.first_gained += 1));
        }
        let mut loses = false;
        for address in before.iter().filter(|address| !after.contains(address)) {
            loses = true;
            count(*address, |backend| backend.rows_lost += 1);
        }
        for address in after.iter().filter(|address| !before.contains(address)) {
            count(*address, |backend| backend.rows_gained += 1);
        }
        rows_losing += usize::from(loses);
    }
    debug_assert!(rows_changed <= ROWS);
    let changes = |backend: &BackendDiff| {
        backend.before != backend.after
            || backend.first_gained + backend.first_lost + backend.rows_gained + backend.rows_lost
                > 0
    };
    let mut backends: Vec<BackendDiff> = backends.into_values().filter(changes).collect();
    backends.sort_unstable_by_key(|backend| backend.address);
    TableDiff {
        name: new.table.name.clone(),
        settings: settings(old, new),
        binds_added: new_binds.difference(&old_binds).cloned().collect(),
        binds_removed: old_binds.difference(&new_binds).cloned().collect(),
        backends,
        first_hop_changes,
        rows_losing,
        rows_changed,
        flow_hash_changes: old.table.hash_key != new.table.hash_key
            || old.table.hash_fields != new.table.hash_fields,
    }
}
