//! What changes between two sets of tables, row by row.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use serde::Serialize;

use crate::{Backend, Bind, BuiltTable, ROWS, RowCache, TableSet};

/// What changes from one set to another.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Diff {
    /// Tables that are in both sets and differ.
    pub tables: Vec<TableDiff>,
    /// Tables that are only in the new set.
    pub added: Vec<String>,
    /// Tables that are only in the old set.
    pub removed: Vec<String>,
}

/// What changes in one table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TableDiff {
    /// Its name.
    pub name: String,
    /// Settings that differ, in words (keys are named and not shown).
    pub settings: Vec<String>,
    /// Binds that only the new table has.
    pub binds_added: Vec<String>,
    /// Binds that only the old table has.
    pub binds_removed: Vec<String>,
    /// Backends of either, by address; only those that change.
    pub backends: Vec<BackendDiff>,
    /// Rows with another first hop, of 65,536.
    pub first_hop_changes: usize,
    /// Rows that lose a backend that was in them.
    pub rows_losing: usize,
    /// Rows that are not the same, be it in order only.
    pub rows_changed: usize,
    /// The hash of flows differs, so that each flow may come to any row: rows are then compared
    /// with rows of the same number, which says little about flows.
    pub flows_move: bool,
}

/// What one backend gains and loses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackendDiff {
    /// Its address.
    pub address: IpAddr,
    /// What is said of it before, if it is there.
    pub before: Option<String>,
    /// What is said of it after.
    pub after: Option<String>,
    /// Rows in which it is newly first.
    pub first_gained: usize,
    /// Rows in which it is no longer first.
    pub first_lost: usize,
    /// Rows in which it newly stands.
    pub rows_gained: usize,
    /// Rows in which it no longer stands.
    pub rows_lost: usize,
}

/// Compares two sets.
#[must_use]
pub fn diff(old: &TableSet, new: &TableSet) -> Diff {
    let (old_built, new_built) = (RowCache::default().build(old), RowCache::default().build(new));
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

fn said(backend: &Backend) -> String {
    let mut said =
        format!("{}, {}", backend.state, if backend.healthy { "healthy" } else { "unhealthy" });
    if backend.weight != 1 {
        said.push_str(&format!(", weight {}", backend.weight));
    }
    if !backend.zone.is_empty() {
        said.push_str(&format!(", zone {}", backend.zone));
    }
    said
}

fn settings(old: &BuiltTable, new: &BuiltTable) -> Vec<String> {
    let (old, new) = (&old.table, &new.table);
    let names = |fields| crate::hash_field_names(fields).join(", ");
    let mut out = Vec::new();
    let mut say = |differs: bool, what: String| out.extend(differs.then_some(what));
    say(old.hash_key != new.hash_key, "hash_key".into());
    say(old.seed != new.seed, "seed".into());
    say(old.alt_hash_key != new.alt_hash_key, "alt_hash_key".into());
    say(old.alt_seed != new.alt_seed, "alt_seed".into());
    let fields = format!("hash_fields: {} → {}", names(old.hash_fields), names(new.hash_fields));
    say(old.hash_fields != new.hash_fields, fields);
    let alternative = |fields: Option<crate::HashFields>| fields.map_or("none".into(), names);
    let fields = format!(
        "alt_hash_fields: {} → {}",
        alternative(old.alt_hash_fields),
        alternative(new.alt_hash_fields)
    );
    say(old.alt_hash_fields != new.alt_hash_fields, fields);
    say(old.hops != new.hops, format!("hops: {} → {}", old.hops, new.hops));
    say(old.order != new.order, format!("order: {:?} → {:?}", old.order, new.order).to_lowercase());
    say(old.healthchecks != new.healthchecks, "healthchecks".into());
    out
}

fn table(old: &BuiltTable, new: &BuiltTable) -> TableDiff {
    let binds =
        |of: &BuiltTable| of.table.binds.iter().map(Bind::to_string).collect::<BTreeSet<_>>();
    let (old_binds, new_binds) = (binds(old), binds(new));
    let addresses = |of: &BuiltTable| {
        of.table.backends.iter().map(|backend| backend.address).collect::<Vec<_>>()
    };
    let (old_addresses, new_addresses) = (addresses(old), addresses(new));
    let mut backends: BTreeMap<IpAddr, BackendDiff> = BTreeMap::new();
    for address in old_addresses.iter().chain(&new_addresses) {
        let said = |of: &BuiltTable| {
            of.table.backends.iter().find(|backend| backend.address == *address).map(said)
        };
        backends.entry(*address).or_insert_with(|| BackendDiff {
            address: *address,
            before: said(old),
            after: said(new),
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
    TableDiff {
        name: new.table.name.clone(),
        settings: settings(old, new),
        binds_added: new_binds.difference(&old_binds).cloned().collect(),
        binds_removed: old_binds.difference(&new_binds).cloned().collect(),
        backends: backends.into_values().filter(changes).collect(),
        first_hop_changes,
        rows_losing,
        rows_changed,
        flows_move: old.table.hash_key != new.table.hash_key
            || old.table.hash_fields != new.table.hash_fields,
    }
}
