//! Counts the rows that a table change affects.

use std::{net::IpAddr, path::Path};

use anyhow::{Context, Result};
use glb_table::{Format, Table, parse_bytes};

use crate::table::TableFile;

/// The rows that differ between two tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowDiff {
    /// The number of rows with different hops or a different order.
    pub(crate) any: u64,
    /// The number of rows with a different first hop.
    pub(crate) first: u64,
}

impl RowDiff {
    pub(crate) fn between(before: &TableFile, after: &TableFile) -> Result<Self> {
        let (before, after) = (parsed(before)?, parsed(after)?);
        let (old, new) = (before.rows(), after.rows());
        let mut moved = Self { any: 0, first: 0 };
        for (old, new) in old.iter().zip(new.iter()) {
            let (old, new) = (addresses(&before, old), addresses(&after, new));
            moved.any += u64::from(old != new);
            moved.first += u64::from(old.first() != new.first());
        }
        Ok(moved)
    }
}

fn addresses(table: &Table, row: &[u16]) -> Vec<Option<IpAddr>> {
    let address = |index: &u16| table.backends.get(usize::from(*index)).map(|b| b.address);
    row.iter().map(address).collect()
}

fn parsed(file: &TableFile) -> Result<Table> {
    let path = Path::new("table.toml");
    let set = parse_bytes(path, Format::Toml, file.toml()?.as_bytes())?;
    set.tables.into_iter().next().context("a file without a table")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        plan::{Node, Plan},
        table::State,
    };

    #[test]
    fn drain_changes_rows_where_the_backend_is_first() {
        let active = TableFile::new(&Plan::new("x"));
        let mut draining = active.clone();
        draining.set_state(Node::Backend(2), State::Draining);
        let moved = RowDiff::between(&active, &draining).unwrap();
        assert_eq!(moved.any, moved.first);
        assert!((21_000..22_700).contains(&moved.first), "{moved:?}");
        assert_eq!(RowDiff::between(&active, &active).unwrap(), RowDiff { any: 0, first: 0 });
    }
}
