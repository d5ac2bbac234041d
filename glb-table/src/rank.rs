//! Who ranks before whom in each row.
//!
//! Ranks depend on the seed, the addresses and the weights alone: neither state nor health moves
//! them. So they are kept, and a change of state or health makes new rows without a hash.

use rayon::prelude::*;

use crate::{
    Backend, Key, ROWS,
    siphash::{RowLanes, Words},
    weight,
};

/// Rows hashed side by side: two vectors of AVX2, one of AVX-512.
pub(crate) const LANES: usize = 8;
/// How many backends of each row are kept in order of rank. A row needs the hashes again only if
/// fewer usable ones than it has hops are among them.
const KEPT: usize = 8;
/// Rows that one task works on.
const CHUNK: usize = 2_048;

/// The best backends of each row by rank, whatever their state.
#[derive(Clone, Debug)]
pub struct Ranks {
    seed: Key,
    words: Vec<(u16, Words)>,
    weights: Vec<u16>,
    kept: usize,
    order: Vec<u16>,
}

impl Ranks {
    /// Ranks all backends in all rows. Takes as long as hashing 65,536 times the number of backends.
    #[must_use]
    pub fn new(seed: Key, backends: &[Backend]) -> Self {
        let mut words: Vec<(u16, Words)> = backends
            .iter()
            .zip(0..)
            .map(|(backend, index)| (index, Words::of(backend.address)))
            .collect();
        // Ties of scores go to the lower address: who comes first keeps the place.
        words.sort_by_key(|(index, _)| backends[usize::from(*index)].address);
        let weights = backends.iter().map(|backend| backend.weight).collect();
        let kept = backends.len().min(KEPT);
        let mut ranks = Self { seed, words, weights, kept, order: vec![0; ROWS * kept] };
        let mut order = std::mem::take(&mut ranks.order);
        if kept > 0 {
            order.par_chunks_mut(CHUNK * kept).enumerate().for_each(|(chunk, out)| {
                ranks.rank_chunk((chunk * CHUNK) as u32, out);
            });
        }
        ranks.order = order;
        ranks
    }

    /// How many backends are ranked.
    #[must_use]
    pub fn backends(&self) -> usize {
        self.weights.len()
    }

    /// Bytes of memory that the ranks take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.order.len() * 2 + self.words.len() * size_of::<(u16, Words)>() + self.weights.len() * 2
    }

    /// The best backends of a row, best first: all of them, or as many as are kept.
    #[inline]
    pub(crate) fn kept(&self, row: usize) -> &[u16] {
        &self.order[row * self.kept..][..self.kept]
    }

    /// Whether [`Self::kept`] leaves backends out.
    pub(crate) fn is_partial(&self) -> bool {
        self.kept < self.weights.len()
    }

    /// All backends in order of rank in one row; hashes them all.
    #[must_use]
    pub fn full(&self, row: u16) -> Vec<u16> {
        let mut orders = self.full_lanes([row; 1]);
        std::mem::take(&mut orders[0])
    }

    /// All backends in order of rank, in several rows at once.
    pub(crate) fn full_lanes<const L: usize>(&self, rows: [u16; L]) -> [Vec<u16>; L] {
        let lanes = RowLanes::new(self.seed.words(), &rows.map(u32::from));
        let mut scored: [Vec<(u64, u16)>; L] =
            std::array::from_fn(|_| Vec::with_capacity(self.words.len()));
        for (index, words) in &self.words {
            for (scored, score) in scored.iter_mut().zip(lanes.scores(*words)) {
                scored.push((score, *index));
            }
        }
        scored.map(|mut scored| {
            // Stable, and the words are sorted by address.
            if self.is_weighted() {
                scored.sort_by(|a, b| weight::compare(self.weighted(*a), self.weighted(*b)));
            } else {
                scored.sort_by_key(|(score, _)| *score);
            }
            scored.into_iter().map(|(_, index)| index).collect()
        })
    }

    fn is_weighted(&self) -> bool {
        self.weights.iter().any(|weight| *weight != self.weights[0])
    }

    fn weighted(&self, (score, index): (u64, u16)) -> (u64, u16) {
        (score, self.weights[usize::from(index)])
    }

    fn rank_chunk(&self, first: u32, out: &mut [u16]) {
        if self.is_weighted() {
            for (group, out) in out.chunks_exact_mut(LANES * self.kept).enumerate() {
                let row = first + (group * LANES) as u32;
                let orders = self
                    .full_lanes(std::array::from_fn::<u16, LANES, _>(|l| (row + l as u32) as u16));
                for (order, out) in orders.iter().zip(out.chunks_exact_mut(self.kept)) {
                    out.copy_from_slice(&order[..self.kept]);
                }
            }
            return;
        }
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2, as was asked just now.
            unsafe { best_avx2(self.seed.words(), &self.words, first, out) };
            return;
        }
        best_any(self.seed.words(), &self.words, first, out);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn best_avx2(seed: [u64; 2], words: &[(u16, Words)], first: u32, out: &mut [u16]) {
    best_any(seed, words, first, out);
}

#[inline(always)]
fn best_any(seed: [u64; 2], words: &[(u16, Words)], first: u32, out: &mut [u16]) {
    // One constant for each size lets the compiler keep all candidates in registers.
    match words.len() {
        0 => {}
        1 => best::<1>(seed, words, first, out),
        2 => best::<2>(seed, words, first, out),
        3 => best::<3>(seed, words, first, out),
        4 => best::<4>(seed, words, first, out),
        5 => best::<5>(seed, words, first, out),
        6 => best::<6>(seed, words, first, out),
        7 => best::<7>(seed, words, first, out),
        _ => best::<KEPT>(seed, words, first, out),
    }
}

/// The `K` best of rows `first`…, `K` indices for each row.
#[inline(always)]
fn best<const K: usize>(seed: [u64; 2], words: &[(u16, Words)], first: u32, out: &mut [u16]) {
    for (group, out) in out.chunks_exact_mut(LANES * K).enumerate() {
        let row = first + (group * LANES) as u32;
        let lanes = RowLanes::<LANES>::new(seed, &std::array::from_fn(|l| row + l as u32));
        // Signed, because AVX2 compares nothing else: the top bit is flipped.
        let mut scores = [[i64::MAX; LANES]; K];
        let mut indices = [[0_i64; LANES]; K];
        for (index, words) in words {
            let mut score = lanes.scores(*words).map(|score| (score ^ 1 << 63) as i64);
            if (0..LANES).all(|l| score[l] >= scores[K - 1][l]) {
                continue;
            }
            let mut index = [i64::from(*index); LANES];
            for k in 0..K {
                for l in 0..LANES {
                    let better = score[l] < scores[k][l];
                    let (old_score, old_index) = (scores[k][l], indices[k][l]);
                    scores[k][l] = if better { score[l] } else { old_score };
                    indices[k][l] = if better { index[l] } else { old_index };
                    score[l] = if better { old_score } else { score[l] };
                    index[l] = if better { old_index } else { index[l] };
                }
            }
        }
        for (l, out) in out.chunks_exact_mut(K).enumerate() {
            for (out, indices) in out.iter_mut().zip(&indices) {
                *out = indices[l] as u16;
            }
        }
    }
}
