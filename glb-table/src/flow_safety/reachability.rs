//! Tells whether the packets of a flow counts its backend in a new table.

use super::{FlowHash, alternative_hash, main_hash};
use crate::{BuiltTable, ROWS, Rows, Table};

/// A new table, prepared for the question whether holders can be reached.
pub(super) struct Candidate<'b> {
    pub(super) built: &'b BuiltTable,
    /// For each backend index of the table, its number in the history.
    pub(super) numbers: &'b [u32],
    pub(super) main: RowCounts,
    pub(super) alternative: Option<RowCounts>,
}

/// For each backend of the history, the number of rows in which packets counts it. Used for flows whose
/// row is unknown because they were hashed with another key.
pub(super) struct RowCounts {
    /// Rows in which packets counts the backend.
    found: Vec<usize>,
    /// Rows in which packets counts the backend and an unhealthy hop follows.
    found_before_dead: Vec<usize>,
    /// Rows with an unhealthy hop.
    dead: usize,
}

/// The probabilities of what happens to a packet for a holder.
#[derive(Clone, Copy)]
struct Delivery {
    /// The packet reaches the holder.
    found: f64,
    /// The packet is sent to an unhealthy hop first.
    dead: f64,
}

impl RowCounts {
    pub(super) fn new(rows: &Rows, table: &Table, numbers: &[u32], known: usize) -> Self {
        let mut counts = Self { found: vec![0; known], found_before_dead: vec![0; known], dead: 0 };
        for row in rows.iter() {
            let healthy = |index: &u16| table.backends[usize::from(*index)].healthy;
            let end = row.iter().position(|index| !healthy(index)).unwrap_or(row.len());
            let has_dead = end < row.len();
            counts.dead += usize::from(has_dead);
            for index in &row[..end] {
                let number = numbers[usize::from(*index)] as usize;
                counts.found[number] += 1;
                counts.found_before_dead[number] += usize::from(has_dead);
            }
        }
        counts
    }

    /// The delivery in a random row.
    fn in_random_row(&self, holder: u32) -> Delivery {
        let holder = holder as usize;
        let share = |rows: usize| rows as f64 / ROWS as f64;
        Delivery {
            found: share(self.found[holder]),
            dead: share(self.dead - self.found_before_dead[holder]),
        }
    }
}

impl Candidate<'_> {
    /// The delivery in a given row.
    fn in_row(&self, rows: &Rows, row: usize, holder: u32) -> Delivery {
        for index in rows.row(row) {
            if self.numbers[usize::from(*index)] == holder {
                return Delivery { found: 1.0, dead: 0.0 };
            }
            if !self.built.table.backends[usize::from(*index)].healthy {
                return Delivery { found: 0.0, dead: 1.0 };
            }
        }
        Delivery { found: 0.0, dead: 0.0 }
    }

    /// The share of a holder's flows in `row` of `hash` that break, and the reason.
    pub(super) fn broken_share(
        &self,
        hash: FlowHash,
        row: usize,
        holder: u32,
    ) -> (f64, &'static str) {
        let table = &self.built.table;
        let main = if main_hash(table) == hash {
            self.in_row(&self.built.rows, row, holder)
        } else {
            self.main.in_random_row(holder)
        };
        let missed = 1.0 - main.found - main.dead;
        let alternative = match (&self.built.alternative, &self.alternative) {
            (Some(rows), _) if alternative_hash(table) == hash => {
                self.in_row(rows, row, holder).found
            }
            (_, Some(counts)) => counts.in_random_row(holder).found,
            _ => 0.0,
        };
        // Shares are multiples of 1/65,536, so their sum has no rounding error.
        let lost = main.dead + missed * (1.0 - alternative);
        (
            lost,
            if main.dead > 0.0 {
                "an unhealthy hop comes before it"
            } else {
                "it is not among the row's hops"
            },
        )
    }
}
