//! Who ranks before whom in each row.
//!
//! Ranks depend on the seed, the addresses and the weights alone: neither state nor health moves
//! them. So they are kept, and a change of state or health makes new rows without a hash.

use rayon::prelude::*;

use crate::{
    Backend, Key, ROWS,
    simd::{self, MAX_LANES, Vector},
    siphash::{RowLanes, Words},
    weight::Score,
};

/// Rows that are ranked as a whole at once.
pub(crate) const LANES: usize = 4;
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
        let [order, ..] = self.best_of([row; LANES], usize::MAX, |_| true);
        order
    }

    /// In several rows at once, the best `most` of those backends that `wanted` names, by rank.
    pub(crate) fn best_of(
        &self,
        rows: [u16; LANES],
        most: usize,
        wanted: impl Fn(u16) -> bool,
    ) -> [Vec<u16>; LANES] {
        let wide: [u64; MAX_LANES] = std::array::from_fn(|l| u64::from(rows[l % LANES]));
        let lanes = RowLanes::<simd::Portable>::new(self.seed.words(), &wide);
        // Ties go to who comes first in `words`, that is to the lower address.
        let mut scored: [Vec<(Score, u32)>; LANES] = Default::default();
        for (place, (index, words)) in
            (0..).zip(&self.words).filter(|(_, (index, _))| wanted(*index))
        {
            let mut scores = [0; MAX_LANES];
            lanes.scores(*words).store(&mut scores);
            for (scored, score) in scored.iter_mut().zip(scores) {
                scored.push((Score::new(score, self.weights[usize::from(*index)]), place));
            }
        }
        scored.map(|mut scored| {
            if most < scored.len() {
                scored.select_nth_unstable(most);
                scored.truncate(most);
            }
            scored.sort_unstable();
            scored.into_iter().map(|(_, place)| self.words[place as usize].0).collect()
        })
    }

    fn is_weighted(&self) -> bool {
        self.weights.iter().any(|weight| *weight != self.weights[0])
    }

    fn rank_chunk(&self, first: u32, out: &mut [u16]) {
        self.best(first, out);
    }

    #[cfg(target_arch = "x86_64")]
    fn best(&self, first: u32, out: &mut [u16]) {
        if has_avx512() {
            // SAFETY: the processor has both features, as was asked just now.
            unsafe { best_avx512(self, first, out) }
        } else if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2, as was asked just now.
            unsafe { best_avx2(self, first, out) }
        } else {
            best_of_all::<simd::Portable>(self, first, out);
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn best(&self, first: u32, out: &mut [u16]) {
        best_of_all::<simd::Portable>(self, first, out);
    }
}

/// Whether the processor has what [`simd::x86::Avx512`] needs.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_avx512() -> bool {
    std::arch::is_x86_feature_detected!("avx512f")
        && std::arch::is_x86_feature_detected!("avx512bw")
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn best_avx2(ranks: &Ranks, first: u32, out: &mut [u16]) {
    best_of_all::<simd::x86::Avx2>(ranks, first, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn best_avx512(ranks: &Ranks, first: u32, out: &mut [u16]) {
    best_of_all::<simd::x86::Avx512>(ranks, first, out);
}

#[inline(always)]
fn best_of_all<V: Vector>(ranks: &Ranks, first: u32, out: &mut [u16]) {
    if ranks.is_weighted() {
        return best_weighted::<V>(ranks, first, out);
    }
    let (seed, words) = (ranks.seed.words(), &ranks.words[..]);
    // One constant for each size lets the compiler keep all candidates in registers.
    match words.len() {
        0 => {}
        1 => best::<V, 1>(seed, words, first, out),
        2 => best::<V, 2>(seed, words, first, out),
        3 => best::<V, 3>(seed, words, first, out),
        4 => best::<V, 4>(seed, words, first, out),
        5 => best::<V, 5>(seed, words, first, out),
        6 => best::<V, 6>(seed, words, first, out),
        7 => best::<V, 7>(seed, words, first, out),
        _ => best::<V, KEPT>(seed, words, first, out),
    }
}

/// The `K` best of rows `first`…, `K` indices for each row.
#[inline(always)]
fn best<V: Vector, const K: usize>(
    seed: [u64; 2],
    words: &[(u16, Words)],
    first: u32,
    out: &mut [u16],
) {
    let top_bit = V::splat(1 << 63);
    for (group, out) in out.chunks_exact_mut(V::LANES * K).enumerate() {
        let row = u64::from(first) + (group * V::LANES) as u64;
        let lanes = RowLanes::<V>::new(seed, &std::array::from_fn(|l| row + l as u64));
        // Vectors are compared as signed numbers, so the top bit of each score is flipped.
        let mut kept = [(V::splat(i64::MAX as u64), V::splat(0)); K];
        for (index, words) in words {
            let score = lanes.scores(*words).xor(top_bit);
            if !score.any_less(kept[K - 1].0) {
                continue;
            }
            let mut candidate = (score, V::splat(u64::from(*index)));
            for kept in &mut kept {
                V::sort_pair(kept, &mut candidate);
            }
        }
        for (k, (_, indices)) in kept.into_iter().enumerate() {
            let mut lanes = [0; MAX_LANES];
            indices.store(&mut lanes);
            for (out, index) in out.chunks_exact_mut(K).zip(lanes) {
                out[k] = index as u16;
            }
        }
    }
}

/// As [`best`], with weights: only the hash is done side by side.
#[inline(always)]
fn best_weighted<V: Vector>(ranks: &Ranks, first: u32, out: &mut [u16]) {
    let inverse: Vec<f64> = ranks.weights.iter().map(|weight| 1.0 / f64::from(*weight)).collect();
    let mut best: [Vec<(Score, u16)>; MAX_LANES] =
        std::array::from_fn(|_| Vec::with_capacity(ranks.kept + 1));
    for (group, out) in out.chunks_exact_mut(V::LANES * ranks.kept).enumerate() {
        let row = u64::from(first) + (group * V::LANES) as u64;
        let lanes =
            RowLanes::<V>::new(ranks.seed.words(), &std::array::from_fn(|l| row + l as u64));
        for (index, words) in &ranks.words {
            let mut digests = [0; MAX_LANES];
            lanes.scores(*words).store(&mut digests);
            let (inverse, weight) =
                (inverse[usize::from(*index)], ranks.weights[usize::from(*index)]);
            for (digest, best) in digests.into_iter().take(V::LANES).zip(&mut best) {
                let full = best.len() == ranks.kept;
                if full && best[ranks.kept - 1].0.is_surely_below(digest, inverse) {
                    continue;
                }
                let score = Score::new(digest, weight);
                // Equal ones stay before: they have the lower address.
                let place = best
                    .iter()
                    .rposition(|(there, _)| *there <= score)
                    .map_or(0, |before| before + 1);
                if place < ranks.kept {
                    if full {
                        best.truncate(ranks.kept - 1);
                    }
                    best.insert(place, (score, *index));
                }
            }
        }
        for (best, out) in best.iter_mut().zip(out.chunks_exact_mut(ranks.kept)) {
            for ((_, index), out) in best.drain(..).zip(out) {
                *out = index;
            }
        }
    }
}
