//! Builds the rows of tables, and reuses earlier results to avoid hashing.

use std::sync::Arc;

use crate::{Key, Ranks, Rows, Table, TableSet};

/// A table with its rows. Copies share the rows.
#[derive(Clone, Debug)]
pub struct BuiltTable {
    /// The table.
    pub table: Table,
    /// The rows.
    pub rows: Arc<Rows>,
    /// The rows that the alternative hash selects from, if the table has an alternative hash or seed.
    pub alternative: Option<Arc<Rows>>,
}

impl BuiltTable {
    /// Whether the other table has the same rows, because everything that they depend on is equal.
    #[must_use]
    pub fn has_rows_of(&self, table: &Table) -> bool {
        let of = |table: &Table| (table.seed, table.alt_seed, table.hops, table.order);
        of(&self.table) == of(table)
            && self.table.has_alternative() == table.has_alternative()
            && self.table.backends.len() == table.backends.len()
            && self.table.backends.iter().zip(&table.backends).all(|(old, new)| {
                (old.address, old.state, old.healthy, old.weight, &old.zone)
                    == (new.address, new.state, new.healthy, new.weight, &new.zone)
            })
    }
}

/// Builds table sets and remembers the last result. Unchanged tables keep their rows; tables that
/// changed in state or health only are built without hashing.
#[derive(Debug, Default)]
pub struct RowCache {
    ranks: Vec<Ranks>,
    last: Vec<BuiltTable>,
}

impl RowCache {
    /// Builds the rows of all tables of a set.
    #[must_use]
    pub fn build(&mut self, set: &TableSet) -> Vec<BuiltTable> {
        let mut old = std::mem::take(&mut self.ranks);
        let last = std::mem::take(&mut self.last);
        let mut kept = vec![false; last.len()];
        for table in &set.tables {
            let known = last.iter().position(|built| built.table.name == table.name);
            let same = known.filter(|at| !kept[*at] && last[*at].has_rows_of(table));
            let built = match same {
                Some(at) => {
                    kept[at] = true;
                    self.keep_ranks(table, &mut old);
                    BuiltTable { table: table.clone(), ..last[at].clone() }
                }
                None => self.table(table, &mut old),
            };
            self.last.push(built);
        }
        self.last.clone()
    }

    fn keep_ranks(&mut self, table: &Table, old: &mut Vec<Ranks>) {
        for seed in std::iter::once(table.seed).chain(table.alt_seed) {
            let known = old.iter().position(|ranks| ranks.fits(seed, &table.backends));
            self.ranks.extend(known.map(|at| old.swap_remove(at)));
        }
    }

    fn table(&mut self, table: &Table, old: &mut Vec<Ranks>) -> BuiltTable {
        let rows = Arc::new(self.rows(table, table.seed, old));
        let alternative = match table.alt_seed {
            Some(seed) => Some(Arc::new(self.rows(table, seed, old))),
            None => table.has_alternative().then(|| Arc::clone(&rows)),
        };
        BuiltTable { table: table.clone(), rows, alternative }
    }

    fn rows(&mut self, table: &Table, seed: Key, old: &mut Vec<Ranks>) -> Rows {
        let known = old.iter().position(|ranks| ranks.fits(seed, &table.backends));
        let ranks = match known {
            Some(at) => old.swap_remove(at),
            None => Ranks::new(seed, &table.backends),
        };
        let rows = table.rows_from(&ranks);
        self.ranks.push(ranks);
        rows
    }

    /// The memory of the kept ranks in bytes. Rows are shared with the built tables and not counted.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.ranks.iter().map(Ranks::bytes).sum()
    }
}
