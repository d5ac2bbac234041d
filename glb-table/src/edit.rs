//! Changing single values of a table file and nothing else: comments, order and spaces stay.

use std::{net::IpAddr, path::Path};

use crate::{
    Format, LoadError, State, TableSet, parse_bytes,
    syntax::{self, Node, Value},
};

/// Why a file was not edited.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// The file is not valid as it is.
    #[error(transparent)]
    Invalid(#[from] LoadError),
    /// No table has the backend.
    #[error("{file} has no backend {address}{}; its backends are {known}", in_table(table.as_deref()))]
    NoBackend {
        /// The file.
        file: String,
        /// Who was looked for.
        address: IpAddr,
        /// In this table only.
        table: Option<String>,
        /// Who there is.
        known: String,
    },
    /// No table has the name.
    #[error("{file} has no table \"{table}\"; its tables are {known}")]
    NoTable {
        /// The file.
        file: String,
        /// What was looked for.
        table: String,
        /// What there is.
        known: String,
    },
    /// What comes out would not be valid. The file is as it was.
    #[error("the change would make the table invalid: {0}")]
    Result(LoadError),
}

fn in_table(table: Option<&str>) -> String {
    table.map(|table| format!(" in table \"{table}\"")).unwrap_or_default()
}

/// What was changed.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Change {
    /// In which table.
    pub table: String,
    /// Whose state.
    pub backend: IpAddr,
    /// Its state before.
    pub from: State,
    /// Its state now.
    pub to: State,
}

/// The text with the state of a backend changed, in all tables that have it or in one of them, and
/// what changed (nothing, if all was so before). The result is checked.
///
/// # Errors
/// The text is not valid before or after, or has no such backend or table.
pub fn set_state(
    path: &Path,
    text: &str,
    address: IpAddr,
    state: State,
    table: Option<&str>,
) -> Result<(String, Vec<Change>), EditError> {
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
    // A valid file has these places, in the order of the model.
    let root = syntax::parse(form, text, &mut Vec::new());
    let mut out = text.to_owned();
    let mut changes = Vec::new();
    for (t, b) in found.into_iter().rev() {
        let backend = &old.tables[t].backends[b];
        let node = root.as_ref().and_then(|root| state_of(root, t, b));
        if let Some(node) = node.filter(|_| backend.state != state) {
            out.replace_range(node.span.clone(), &format!("\"{state}\""));
            let table = old.tables[t].name.clone();
            changes.push(Change { table, backend: address, from: backend.state, to: state });
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
