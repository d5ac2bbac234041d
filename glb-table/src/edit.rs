//! Edits single values of a table file. Everything else in the text stays: comments, order, spaces.

use std::{net::IpAddr, path::Path};

use crate::{
    Format, LoadError, State, TableSet, parse_bytes,
    syntax::{self, Node, Value},
};

/// Why an edit was refused.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// The file is not valid before the edit.
    #[error(transparent)]
    Invalid(#[from] LoadError),
    /// No table has this backend.
    #[error("{file} has no backend {address}{}; its backends are {known}", in_table(table.as_deref()))]
    NoBackend {
        /// The file.
        file: String,
        /// The address.
        address: IpAddr,
        /// The table, if one was named.
        table: Option<String>,
        /// The backends that there are.
        known: String,
    },
    /// No table has this name.
    #[error("{file} has no table \"{table}\"; its tables are {known}")]
    NoTable {
        /// The file.
        file: String,
        /// The name.
        table: String,
        /// The tables that there are.
        known: String,
    },
    /// The file would not be valid after the edit.
    #[error("the change would make the table invalid: {0}")]
    Result(LoadError),
}

fn in_table(table: Option<&str>) -> String {
    table.map(|table| format!(" in table \"{table}\"")).unwrap_or_default()
}

/// A changed state.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct StateChange {
    /// The table.
    pub table: String,
    /// The backend.
    pub backend: IpAddr,
    /// The state before.
    pub from: State,
    /// The state after.
    pub to: State,
}

/// Sets the state of a backend, in one table or in all that have it. Returns the new text, which is
/// valid, and the changes; there are none if the backend already has the state.
///
/// # Errors
/// When the text is not valid before or after the edit, or has no such backend or table.
pub fn set_state(
    path: &Path,
    text: &str,
    address: IpAddr,
    state: State,
    table: Option<&str>,
) -> Result<(String, Vec<StateChange>), EditError> {
    let form = Format::of_path(path);
    let file = path.display().to_string();
    let old = parse_bytes(path, form, text.as_bytes())?;
    let known =
        |names: Vec<String>| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    if let Some(name) = table.filter(|name| old.tables.iter().all(|table| table.name != *name)) {
        let names = old.tables.iter().map(|table| format!("\"{}\"", table.name)).collect();
        return Err(EditError::NoTable { file, table: name.to_owned(), known: known(names) });
    }
    let mut found = Vec::new();
    for (t, of) in
        old.tables.iter().enumerate().filter(|(_, of)| table.is_none_or(|name| of.name == name))
    {
        let place = of.backends.iter().position(|backend| backend.address == address);
        found.extend(place.map(|b| (t, b)));
    }
    if found.is_empty() {
        let all = old.tables.iter().filter(|of| table.is_none_or(|name| of.name == name));
        let mut names: Vec<String> =
            all.flat_map(|of| &of.backends).map(|backend| backend.address.to_string()).collect();
        names.dedup();
        names.truncate(20);
        let table = table.map(str::to_owned);
        return Err(EditError::NoBackend { file, address, table, known: known(names) });
    }
    // The syntax tree of a valid file has the same order as the model.
    let root = syntax::parse(form, text, &mut Vec::new());
    let mut out = text.to_owned();
    let mut changes = Vec::new();
    for (t, b) in found.into_iter().rev() {
        let backend = &old.tables[t].backends[b];
        let node = root.as_ref().and_then(|root| state_of(root, t, b));
        if let Some(node) = node.filter(|_| backend.state != state) {
            out.replace_range(node.span.clone(), &format!("\"{state}\""));
            let table = old.tables[t].name.clone();
            changes.push(StateChange { table, backend: address, from: backend.state, to: state });
        }
    }
    changes.reverse();
    let new = parse_bytes(path, form, out.as_bytes()).map_err(EditError::Result)?;
    debug_assert!(only_states_differ(&old, &new));
    Ok((out, changes))
}

fn state_of(root: &Node, table: usize, backend: usize) -> Option<&Node> {
    key(item(key(item(key(root, "tables")?, table)?, "backends")?, backend)?, "state")
}

fn key<'n>(node: &'n Node, key: &str) -> Option<&'n Node> {
    let Value::Map(entries) = &node.value else { return None };
    entries.iter().find(|entry| entry.key == key).map(|entry| &entry.node)
}

fn item(node: &Node, index: usize) -> Option<&Node> {
    let Value::List(nodes) = &node.value else { return None };
    nodes.get(index)
}

fn only_states_differ(old: &TableSet, new: &TableSet) -> bool {
    let mut new = new.clone();
    for (new, old) in new.tables.iter_mut().zip(&old.tables) {
        for (new, old) in new.backends.iter_mut().zip(&old.backends) {
            new.state = old.state;
        }
    }
    new.tables == old.tables && new.healthchecks == old.healthchecks
}
