//! Tables with their rows, built with as little hashing as possible.

use crate::{Key, Ranks, Rows, Table, TableSet};

/// A table and all that a director needs of it.
#[derive(Clone, Debug)]
pub struct Built {
    /// The table.
    pub table: Table,
    /// Its rows.
    pub rows: Rows,
    /// The rows whose hops follow, if the table has an alternative hash or seed.
    pub alternative: Option<Rows>,
}

/// Keeps the ranks of the tables it built last: what has changed only in state and health is built
/// without hashing.
#[derive(Debug, Default)]
pub struct Builder {
    ranks: Vec<Ranks>,
}

impl Builder {
    /// Builds every table of a set.
    #[must_use]
    pub fn build(&mut self, set: &TableSet) -> Vec<Built> {
        let mut old = std::mem::take(&mut self.ranks);
        let built = set.tables.iter().map(|table| self.table(table, &mut old)).collect();
        drop(old);
        built
    }

    fn table(&mut self, table: &Table, old: &mut Vec<Ranks>) -> Built {
        let rows = self.rows(table, table.seed, old);
        let alternative = match table.alt_seed {
            Some(seed) => Some(self.rows(table, seed, old)),
            None => table.has_alternative().then(|| rows.clone()),
        };
        Built { table: table.clone(), rows, alternative }
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

    /// Bytes of memory that the kept ranks take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.ranks.iter().map(Ranks::bytes).sum()
    }
}
