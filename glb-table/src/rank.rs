//! Ranks the backends in each row.
//!
//! Ranks depend on the seed, the addresses and the weights, not on state or health. They are kept in
//! memory, so that a change of state or health builds new rows without hashing.

use rayon::prelude::*;

use crate::{
    Backend, Key, ROWS,
    simd::{self, MAX_LANES, Vector},
    siphash::{RowLanes, Words},
    weight::{self, Score},
};

/// Number of rows that [`Ranks::best_of`] ranks at once.
pub(crate) const LANES: usize = 4;
/// Number of best backends that are kept for each row. A row is hashed again only if too few of them
/// are usable.
const KEPT: usize = 8;
/// Number of rows of one parallel task.
const CHUNK: usize = 2_048;

/// The best backends of each row by rank, regardless of their state.
#[derive(Clone, Debug)]
pub struct Ranks {
    seed: Key,
    words: Vec<(u16, Words)>,
    weights: Vec<u16>,
    kept: usize,
    order: Vec<u16>,
}

impl Ranks {
    /// Ranks all backends in all rows; computes 65,536 hashes per backend.
    #[must_use]
    pub fn new(seed: Key, backends: &[Backend]) -> Self {
        let mut words: Vec<(u16, Words)> = backends
            .iter()
            .zip(0..)
            .map(|(backend, index)| (index, Words::of(backend.address)))
            .collect();
        // The lower address wins ties of scores, because it comes first.
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

    /// Whether these ranks are valid for this seed and these backends in this order.
    #[must_use]
    pub fn fits(&self, seed: Key, backends: &[Backend]) -> bool {
        self.seed == seed
            && self.weights.len() == backends.len()
            && self
                .words
                .iter()
                .all(|(index, words)| *words == Words::of(backends[usize::from(*index)].address))
            && self.weights.iter().zip(backends).all(|(weight, backend)| *weight == backend.weight)
    }

    /// The number of ranked backends.
    #[must_use]
    pub fn backends(&self) -> usize {
        self.weights.len()
    }

    /// The memory of the ranks in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.order.len() * 2 + self.words.len() * size_of::<(u16, Words)>() + self.weights.len() * 2
    }

    /// The kept backends of a row, best first.
    #[inline]
    pub(crate) fn kept(&self, row: usize) -> &[u16] {
        &self.order[row * self.kept..][..self.kept]
    }

    /// Whether [`Self::kept`] omits backends.
    pub(crate) fn is_partial(&self) -> bool {
        self.kept < self.weights.len()
    }

    /// All backends of a row in order of rank; hashes all of them.
    #[must_use]
    pub fn full(&self, row: u16) -> Vec<u16> {
        let [order, ..] = self.best_of([row; LANES], usize::MAX, |_| true);
        order
    }

    /// For several rows at once, the best `most` of the backends that `wanted` selects, best first.
    pub(crate) fn best_of(
        &self,
        rows: [u16; LANES],
        most: usize,
        wanted: impl Fn(u16) -> bool,
    ) -> [Vec<u16>; LANES] {
        let wide: [u64; MAX_LANES] = std::array::from_fn(|l| u64::from(rows[l % LANES]));
        let lanes = RowLanes::<simd::Portable>::new(self.seed.words(), &wide);
        // `words` is sorted by address, so the lower address wins ties.
        let mut scored: [Vec<(Score, u32)>; LANES] = Default::default();
        for (place, (index, words)) in
            (0..).zip(&self.words).filter(|(_, (index, _))| wanted(*index))
        {
            let mut scores = [0; MAX_LANES];
            lanes.scores(*words).store(&mut scores);
            for (scored, score) in scored.iter_mut().zip(scores) {
                scored.push((
                    Score { digest: score, weight: self.weights[usize::from(*index)] },
                    place,
                ));
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
            // SAFETY: the processor has both features, as checked above.
            unsafe { best_avx512(self, first, out) }
        } else if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2, as checked above.
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

/// Whether the processor has the features that [`simd::x86::Avx512`] needs.
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
    // A constant size lets the compiler keep all candidates in registers.
    match (ranks.words.len(), ranks.is_weighted()) {
        (0, _) => {}
        (1, _) => best::<V, 1, false>(ranks, first, out),
        (2, false) => best::<V, 2, false>(ranks, first, out),
        (3, false) => best::<V, 3, false>(ranks, first, out),
        (4, false) => best::<V, 4, false>(ranks, first, out),
        (5, false) => best::<V, 5, false>(ranks, first, out),
        (6, false) => best::<V, 6, false>(ranks, first, out),
        (7, false) => best::<V, 7, false>(ranks, first, out),
        (_, false) => best::<V, KEPT, false>(ranks, first, out),
        (2, true) => best::<V, 2, true>(ranks, first, out),
        (3, true) => best::<V, 3, true>(ranks, first, out),
        (4, true) => best::<V, 4, true>(ranks, first, out),
        (5, true) => best::<V, 5, true>(ranks, first, out),
        (6, true) => best::<V, 6, true>(ranks, first, out),
        (7, true) => best::<V, 7, true>(ranks, first, out),
        (8, true) => best::<V, 8, true>(ranks, first, out),
        // One more than is kept, to see whether the last kept one is certainly before it.
        (_, true) => best::<V, { KEPT + 1 }, true>(ranks, first, out),
    }
}

/// Writes the `K` best backends of each row to `out`, starting with row `first`; `out` holds
/// `ranks.kept` per row.
///
/// With weights the scores are estimates. A row with two scores that are too close is ranked again
/// exactly.
#[inline(always)]
fn best<V: Vector, const K: usize, const WEIGHTED: bool>(
    ranks: &Ranks,
    first: u32,
    out: &mut [u16],
) {
    let inverse: Vec<f64> = match WEIGHTED {
        true => ranks
            .words
            .iter()
            .map(|(index, _)| 1.0 / f64::from(ranks.weights[usize::from(*index)]))
            .collect(),
        false => Vec::new(),
    };
    let error = weight::ERROR * inverse.iter().fold(0.0, |most, inverse| inverse.max(most));
    let top_bit = V::splat(1 << 63);
    for (group, out) in out.chunks_exact_mut(V::LANES * ranks.kept).enumerate() {
        let row = u64::from(first) + (group * V::LANES) as u64;
        let lanes =
            RowLanes::<V>::new(ranks.seed.words(), &std::array::from_fn(|l| row + l as u64));
        let mut best = [(V::splat(i64::MAX as u64), V::splat(0)); K];
        for (place, (index, words)) in ranks.words.iter().enumerate() {
            let digests = lanes.scores(*words);
            let score = if WEIGHTED {
                let mut lanes = [0; MAX_LANES];
                digests.store(&mut lanes);
                // Positive floating-point numbers have the order of their bits.
                V::load(&weight::estimates(&lanes, inverse[place]).map(f64::to_bits))
            } else {
                // Vectors compare as signed numbers, so flip the top bit.
                digests.xor(top_bit)
            };
            if !score.any_less(best[K - 1].0) {
                continue;
            }
            let mut candidate = (score, V::splat(u64::from(*index)));
            for best in &mut best {
                V::sort_pair(best, &mut candidate);
            }
        }
        for (k, (_, indices)) in best.iter().take(ranks.kept).enumerate() {
            let mut lanes = [0; MAX_LANES];
            indices.store(&mut lanes);
            for (out, index) in out.chunks_exact_mut(ranks.kept).zip(lanes) {
                out[k] = index as u16;
            }
        }
        if WEIGHTED {
            let mut scores = [[0; MAX_LANES]; K];
            for ((score, _), out) in best.into_iter().zip(&mut scores) {
                score.store(out);
            }
            for (l, out) in out.chunks_exact_mut(ranks.kept).enumerate() {
                let score = |k: usize| f64::from_bits(scores[k][l]);
                if (1..K).any(|k| weight::is_unsure(score(k - 1), score(k), error)) {
                    let [order, ..] =
                        ranks.best_of([(row as usize + l) as u16; LANES], ranks.kept, |_| true);
                    out.copy_from_slice(&order);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    #[test]
    fn all_vector_types_give_the_same_ranks() {
        for (backends, weights) in
            [(1, 1), (2, 3), (5, 1), (5, 3), (8, 3), (9, 1), (9, 4), (40, 1), (40, 7)]
        {
            let backend = |n: u32| Backend {
                weight: 1 + (n % weights) as u16,
                ..Backend::new(IpAddr::from(Ipv4Addr::from(0x0a00_0000 + n)))
            };
            let backends: Vec<Backend> = (0..backends).map(backend).collect();
            let ranks = Ranks::new(Key::new([9; 16]), &backends);
            let mut out = vec![0; CHUNK * ranks.kept];
            best_of_all::<simd::Portable>(&ranks, CHUNK as u32, &mut out);
            assert_eq!(out, ranks.order[CHUNK * ranks.kept..][..out.len()], "portable");
            #[cfg(target_arch = "x86_64")]
            if std::arch::is_x86_feature_detected!("avx2") {
                out.fill(0);
                // SAFETY: the processor has AVX2, as checked above.
                unsafe { best_avx2(&ranks, CHUNK as u32, &mut out) };
                assert_eq!(out, ranks.order[CHUNK * ranks.kept..][..out.len()], "avx2");
            }
            for row in [0, 1, 77, 65_535] {
                assert_eq!(
                    ranks.kept(usize::from(row)),
                    &ranks.full(row)[..ranks.kept],
                    "one by one"
                );
            }
        }
    }
}
