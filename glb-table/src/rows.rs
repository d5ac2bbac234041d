//! The 65,536 rows of a table: for each, who gets the packet first and who may be asked next.

use rayon::prelude::*;

use crate::{
    Backend, Order, ROWS, State, Table,
    rank::{LANES, Ranks},
};

/// Rows that one task works on.
const CHUNK: usize = 4_096;
/// How many are ranked again in a row where too few of the kept ones are usable.
const AGAIN: usize = 32;

/// All rows of a table, each as indices into its backends, best first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Hops of every row: what the table asks for, or fewer if fewer backends are usable.
    pub hops: usize,
    indices: Vec<u16>,
}

impl Rows {
    /// Row `index` (0 to 65,535), first hop first.
    #[must_use]
    pub fn row(&self, index: usize) -> &[u16] {
        &self.indices[index * self.hops..][..self.hops]
    }

    /// All rows one after the other, `hops` indices for each.
    #[must_use]
    pub fn as_flat(&self) -> &[u16] {
        &self.indices
    }

    /// Rows in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u16]> {
        // A table without a usable backend has rows of no hops.
        (0..ROWS).map(|index| self.row(index))
    }

    /// Rows that stand somewhere else, for instance in a GLBD file.
    #[must_use]
    pub fn from_flat(hops: usize, indices: Vec<u16>) -> Option<Self> {
        (indices.len() == hops * ROWS).then_some(Self { hops, indices })
    }
}

impl Table {
    /// Who ranks before whom in each row; to be kept while only state and health change.
    #[must_use]
    pub fn ranks(&self) -> Ranks {
        Ranks::new(self.seed, &self.backends)
    }

    /// The rows.
    #[must_use]
    pub fn rows(&self) -> Rows {
        self.rows_from(&self.ranks())
    }

    /// The rows that the alternative hash leads to: the same ones, or those of `alt_seed`.
    #[must_use]
    pub fn alternative_rows(&self) -> Option<Rows> {
        match self.alt_seed {
            Some(seed) => Some(self.rows_from(&Ranks::new(seed, &self.backends))),
            None => self.has_alternative().then(|| self.rows()),
        }
    }

    /// The rows, from ranks of a table with the same seed, addresses and weights in the same order.
    #[must_use]
    pub fn rows_from(&self, ranks: &Ranks) -> Rows {
        let chooser = Chooser::new(self);
        let hops = chooser.hops;
        let mut indices = vec![0; ROWS * hops];
        if hops > 0 {
            indices.par_chunks_mut(CHUNK * hops).enumerate().for_each(|(chunk, out)| {
                chooser.chunk(ranks, chunk * CHUNK, out);
            });
        }
        Rows { hops, indices }
    }

    /// The hops of one row from its backends in order of rank: chosen, then put in order. `None` if
    /// `ranked` leaves out who is needed.
    #[must_use]
    pub fn choose(&self, ranked: &[u16], is_all: bool) -> Option<Vec<u16>> {
        let chooser = Chooser::new(self);
        let mut out = vec![0; chooser.hops];
        chooser.choose(ranked, is_all, &mut out).then_some(out)
    }
}

/// What a row's hops are chosen by.
struct Chooser<'t> {
    table: &'t Table,
    hops: usize,
    usable: Vec<bool>,
    class: Vec<u8>,
    /// Numbers of the zones, and whether there are any.
    zone: Vec<u16>,
    zoned: bool,
}

/// 0: takes new connections. 1: lives, but takes none. 2: is down.
fn class(backend: &Backend) -> u8 {
    match (backend.healthy, backend.state) {
        (true, State::Active | State::Filling) => 0,
        (true, _) => 1,
        (false, _) => 2,
    }
}

impl<'t> Chooser<'t> {
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

    fn chunk(&self, ranks: &Ranks, first: usize, out: &mut [u16]) {
        let mut short = Vec::new();
        for (row, out) in out.chunks_exact_mut(self.hops).enumerate() {
            if !self.choose(ranks.kept(first + row), !ranks.is_partial(), out) {
                short.push(row);
            }
        }
        // Few enough usable backends are kept for these: they are ranked again, the usable ones only.
        for rows in short.chunks(LANES) {
            let lanes = std::array::from_fn(|l| (first + rows[l.min(rows.len() - 1)]) as u16);
            let usable = |index: u16| self.usable[usize::from(index)];
            let best = ranks.best_of(lanes, AGAIN, usable);
            for (row, best) in rows.iter().zip(&best) {
                let out = &mut out[row * self.hops..][..self.hops];
                if !self.choose(best, best.len() < AGAIN, out) {
                    // A zone of which nobody is among the best.
                    let all = ranks.full((first + row) as u16);
                    let found = self.choose(&all, true, out);
                    debug_assert!(found, "nobody is missing in a full order");
                }
            }
        }
    }

    /// False if who is needed may be among those left out of `ranked`.
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
        self.put_in_order(out);
        true
    }

    #[inline]
    fn put_in_order(&self, row: &mut [u16]) {
        let class = |index: u16| self.class[usize::from(index)];
        if self.table.hops > 2 {
            // Insertion keeps the rank within a class; there are at most four.
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
                // GLB looks at the second's state only, and only for "active" (faults T1 and T2).
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
