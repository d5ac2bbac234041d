//! Whether packets of a flow reach its backend by a table's rows.

use super::{FlowHash, alternative_hash, main_hash};
use crate::{BuiltTable, ROWS, Rows, Table};

/// A new table with everything that is asked of it for each holder.
pub(super) struct Asked<'b> {
    pub(super) built: &'b BuiltTable,
    /// The table's indices as the memory's numbers.
    pub(super) numbers: &'b [u32],
    pub(super) main: Reach,
    pub(super) alternative: Option<Reach>,
}

/// For each of the memory's backends, in how many rows of a table it is found; for flows of which
/// only the hash by another key is known, and which may so be in any row.
pub(super) struct Reach {
    found: Vec<usize>,
    /// Of these, rows that have an unhealthy hop after it.
    found_before_dead: Vec<usize>,
    /// Rows with any unhealthy hop.
    dead: usize,
}

/// What happens to a holder's packets in one row, or their shares in any row.
#[derive(Clone, Copy)]
struct Fate {
    /// They reach it.
    found: f64,
    /// They are sent to an unhealthy hop before.
    dead: f64,
}

impl Reach {
    pub(super) fn new(rows: &Rows, table: &Table, numbers: &[u32], known: usize) -> Self {
        let mut reach = Self { found: vec![0; known], found_before_dead: vec![0; known], dead: 0 };
        for row in rows.iter() {
            let healthy = |index: &u16| table.backends[usize::from(*index)].healthy;
            let end = row.iter().position(|index| !healthy(index)).unwrap_or(row.len());
            let has_dead = end < row.len();
            reach.dead += usize::from(has_dead);
            for index in &row[..end] {
                let number = numbers[usize::from(*index)] as usize;
                reach.found[number] += 1;
                reach.found_before_dead[number] += usize::from(has_dead);
            }
        }
        reach
    }

    fn anywhere(&self, holder: u32) -> Fate {
        let holder = holder as usize;
        let share = |rows: usize| rows as f64 / ROWS as f64;
        Fate {
            found: share(self.found[holder]),
            dead: share(self.dead - self.found_before_dead[holder]),
        }
    }
}

impl Asked<'_> {
    fn in_row(&self, rows: &Rows, row: usize, holder: u32) -> Fate {
        for index in rows.row(row) {
            if self.numbers[usize::from(*index)] == holder {
                return Fate { found: 1.0, dead: 0.0 };
            }
            if !self.built.table.backends[usize::from(*index)].healthy {
                return Fate { found: 0.0, dead: 1.0 };
            }
        }
        Fate { found: 0.0, dead: 0.0 }
    }

    /// The share of a holder's flows that are lost, of those that `hash` brought to `row`.
    pub(super) fn lost(&self, hash: FlowHash, row: usize, holder: u32) -> (f64, &'static str) {
        let table = &self.built.table;
        let main = if main_hash(table) == hash {
            self.in_row(&self.built.rows, row, holder)
        } else {
            self.main.anywhere(holder)
        };
        let missed = 1.0 - main.found - main.dead;
        let alternative = match (&self.built.alternative, &self.alternative) {
            (Some(rows), _) if alternative_hash(table) == hash => {
                self.in_row(rows, row, holder).found
            }
            (_, Some(reach)) => reach.anywhere(holder).found,
            _ => 0.0,
        };
        // A sum of shares may miss 1 by a rounding; each is a whole number of 65,536ths, so none does.
        let lost = main.dead + missed * (1.0 - alternative);
        (
            lost,
            if main.dead > 0.0 {
                "an unhealthy hop stands before it"
            } else {
                "it is not among the row's hops"
            },
        )
    }
}
