//! The 65,536 rows of a table. A row lists the hops of its flows: the first hop takes new flows, the
//! others are asked for flows that the first does not know.

use rayon::prelude::*;

use crate::{
    Backend, Order, ROWS, State, Table,
    rank::{LANES, Ranks},
};

/// Number of rows of one parallel task.
const CHUNK: usize = 4_096;
/// Number of backends that are ranked again in a row with too few usable kept ones.
const AGAIN: usize = 32;

/// All rows of a table, each as indices into its backends, best first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Number of hops of every row: what the table asks for, or fewer if fewer backends are usable.
    pub hops: usize,
    indices: Vec<u16>,
}

impl Rows {
    /// The hops of row `index` (0 to 65,535), first hop first.
    #[must_use]
    pub fn row(&self, index: usize) -> &[u16] {
        &self.indices[index * self.hops..][..self.hops]
    }

    /// The hops of all rows in one slice, `hops` indices per row.
    #[must_use]
    pub fn as_flat(&self) -> &[u16] {
        &self.indices
    }

    /// Iterates over all rows.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u16]> {
        // `chunks_exact` cannot be used: rows have no hops if no backend is usable.
        (0..ROWS).map(|index| self.row(index))
    }

    /// Rows from a flat list of indices, for instance of a GLBD file.
    #[must_use]
    pub fn from_flat(hops: usize, indices: Vec<u16>) -> Option<Self> {
        (indices.len() == hops * ROWS).then_some(Self { hops, indices })
    }
}

impl Table {
    /// Ranks the backends. The ranks stay valid while only state and health change.
    #[must_use]
    pub fn ranks(&self) -> Ranks {
        Ranks::new(self.seed, &self.backends)
    }

    /// Builds the rows.
    #[must_use]
    pub fn rows(&self) -> Rows {
        self.rows_from(&self.ranks())
    }

    /// Builds the rows that the alternative hash selects from: those of `alt_seed`, or the main rows.
    #[must_use]
    pub fn alternative_rows(&self) -> Option<Rows> {
        match self.alt_seed {
            Some(seed) => Some(self.rows_from(&Ranks::new(seed, &self.backends))),
            None => self.has_alternative().then(|| self.rows()),
        }
    }

    /// Builds the rows from ranks that [fit](Ranks::fits) this table.
    #[must_use]
    pub fn rows_from(&self, ranks: &Ranks) -> Rows {
        let chooser = HopChooser::new(self);
        let hops = chooser.hops;
        let mut indices = vec![0; ROWS * hops];
        if hops > 0 {
            indices.par_chunks_mut(CHUNK * hops).enumerate().for_each(|(chunk, out)| {
                chooser.chunk(ranks, chunk * CHUNK, out);
            });
        }
        Rows { hops, indices }
    }

    /// Chooses the hops of a row from its backends in order of rank, and orders them. `None` if `ranked`
    /// is incomplete (`is_all` is false) and a needed backend may be missing.
    #[must_use]
    pub fn choose(&self, ranked: &[u16], is_all: bool) -> Option<Vec<u16>> {
        let chooser = HopChooser::new(self);
        let mut out = vec![0; chooser.hops];
        chooser.choose(ranked, is_all, &mut out).then_some(out)
    }
}

/// Chooses the hops of rows.
struct HopChooser<'t> {
    table: &'t Table,
    hops: usize,
    usable: Vec<bool>,
    /// For each backend its class, see [`class`].
    class: Vec<u8>,
    /// For each backend the number of its zone.
    zone: Vec<u16>,
    /// The last hop must be in another zone.
    zoned: bool,
}

/// The class of a backend in the order of hops: 0 takes new connections, 1 is healthy but takes none, 2
/// is unhealthy.
fn class(backend: &Backend) -> u8 {
    match (backend.healthy, backend.state) {
        (true, State::Active | State::Filling) => 0,
        (true, _) => 1,
        (false, _) => 2,
    }
}

impl<'t> HopChooser<'t> {
    fn new(table: &'t Table) -> Self {
        let mut zones: Vec<&str> =
            table.backends.iter().map(|backend| backend.zone.as_str()).collect();
        zones.sort_unstable();
        zones.dedup();
        let zone =
            |backend: &Backend| zones.partition_point(|zone| *zone < backend.zone.as_str()) as u16;
        Self {
            table,
            hops: table.usable().min(usize::from(table.hops)),
            usable: table.backends.iter().map(Backend::is_usable).collect(),
            class: table.backends.iter().map(class).collect(),
            zone: table.backends.iter().map(zone).collect(),
            zoned: table.hops >= 3 && zones.len() > 1,
        }
    }

    /// Chooses the hops of consecutive rows, starting with row `first`.
    fn chunk(&self, ranks: &Ranks, first: usize, out: &mut [u16]) {
        let mut short = Vec::new();
        for (row, out) in out.chunks_exact_mut(self.hops).enumerate() {
            if !self.choose(ranks.kept(first + row), !ranks.is_partial(), out) {
                short.push(row);
            }
        }
        // Too few of the kept backends are usable in these rows: rank the usable ones again.
        for rows in short.chunks(LANES) {
            let lanes = std::array::from_fn(|l| (first + rows[l.min(rows.len() - 1)]) as u16);
            let usable = |index: u16| self.usable[usize::from(index)];
            let best = ranks.best_of(lanes, AGAIN, usable);
            for (row, best) in rows.iter().zip(&best) {
                let out = &mut out[row * self.hops..][..self.hops];
                if !self.choose(best, best.len() < AGAIN, out) {
                    // No backend of another zone is among the best ones.
                    let all = ranks.full((first + row) as u16);
                    let found = self.choose(&all, true, out);
                    debug_assert!(found, "a full ranking has all backends");
                }
            }
        }
    }

    /// Chooses the hops of one row; false if a needed backend may be missing in `ranked`.
    #[inline]
    fn choose(&self, ranked: &[u16], is_all: bool, out: &mut [u16]) -> bool {
        let mut usable = ranked.iter().copied().filter(|index| self.usable[usize::from(*index)]);
        let by_rank = if self.zoned && out.len() == usize::from(self.table.hops) {
            out.len() - 1
        } else {
            out.len()
        };
        for out in &mut out[..by_rank] {
            match usable.next() {
                Some(index) => *out = index,
                None => return false,
            }
        }
        if by_rank < out.len() {
            let zone = |index: u16| self.zone[usize::from(index)];
            let next = usable.clone().next();
            let other = usable
                .find(|index| out[..by_rank].iter().all(|there| zone(*there) != zone(*index)));
            out[by_rank] = match (other, next) {
                (Some(other), _) => other,
                (None, Some(next)) if is_all => next,
                _ => return false,
            };
        }
        self.sort_hops(out);
        true
    }

    #[inline]
    /// Orders the hops by the table's rule.
    fn sort_hops(&self, row: &mut [u16]) {
        let class = |index: u16| self.class[usize::from(index)];
        if self.table.hops > 2 {
            // Insertion sort is stable, and there are at most four hops.
            for end in 1..row.len() {
                let mut at = end;
                while at > 0 && class(row[at - 1]) > class(row[at]) {
                    row.swap(at - 1, at);
                    at -= 1;
                }
            }
        } else if let [first, second] = row {
            let swap = match self.table.order {
                Order::HealthyFirst => class(*first) > 0 && class(*second) == 0,
                // GLB checks only whether the second is "active" (faults T1 and T2 in
                // docs/glb-faults.md).
                Order::Glb => {
                    class(*first) > 0
                        && self.table.backends[usize::from(*second)].state == State::Active
                }
            };
            if swap {
                std::mem::swap(first, second);
            }
        }
    }
}
