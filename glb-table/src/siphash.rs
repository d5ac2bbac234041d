//! SipHash-2-4 of the messages that rank backends, for several rows in parallel.
//!
//! A score hashes the row seed and then the backend's address. The first block is computed once per
//! row, so a backend costs six rounds instead of eight.

use std::net::IpAddr;

use crate::simd::{MAX_LANES, Vector};

/// The SipHash message words of an address, which follow the row seed. IPv4 needs one block, which also
/// holds the message length (12); IPv6 needs two blocks and one with the length (24).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Words {
    V4(u64),
    V6([u64; 2]),
}

impl Words {
    pub(crate) fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => {
                Self::V4(u64::from(u32::from_le_bytes(address.octets())) | 12 << 56)
            }
            IpAddr::V6(address) => {
                let word = u128::from_le_bytes(address.octets());
                Self::V6([word as u64, (word >> 64) as u64])
            }
        }
    }
}

/// The SipHash state of each lane.
type State<V> = [V; 4];

#[inline(always)]
fn start<V: Vector>(key: [u64; 2]) -> State<V> {
    [
        V::splat(key[0] ^ 0x736f_6d65_7073_6575),
        V::splat(key[1] ^ 0x646f_7261_6e64_6f6d),
        V::splat(key[0] ^ 0x6c79_6765_6e65_7261),
        V::splat(key[1] ^ 0x7465_6462_7974_6573),
    ]
}

#[inline(always)]
fn round<V: Vector>([v0, v1, v2, v3]: State<V>) -> State<V> {
    let (v0, v1) = left_half(v0, v1);
    right_half([v0, v1, v2, v3])
}

/// The half of a round that does not depend on `v3`, and so not on the message.
#[inline(always)]
fn left_half<V: Vector>(v0: V, v1: V) -> (V, V) {
    let v0 = v0.add(v1);
    let v1 = v1.rotate::<13>().xor(v0);
    (v0.rotate::<32>(), v1)
}

/// The other half of a round.
#[inline(always)]
fn right_half<V: Vector>([v0, v1, v2, v3]: State<V>) -> State<V> {
    let v2 = v2.add(v3);
    let v3 = v3.rotate::<16>().xor(v2);
    let v0 = v0.add(v3);
    let v3 = v3.rotate::<21>().xor(v0);
    let v2 = v2.add(v1);
    let v1 = v1.rotate::<17>().xor(v2);
    [v0, v1, v2.rotate::<32>(), v3]
}

#[inline(always)]
fn block<V: Vector>([v0, v1, v2, v3]: State<V>, word: V) -> State<V> {
    let [v0, v1, v2, v3] = round(round([v0, v1, v2, v3.xor(word)]));
    [v0.xor(word), v1, v2, v3]
}

#[inline(always)]
fn finish<V: Vector>([v0, v1, v2, v3]: State<V>) -> V {
    let [v0, v1, v2, v3] = round(round(round([v0, v1, v2.xor(V::splat(0xff)), v3])));
    // The last round, without the terms that cancel out: v0 is also in the new v3.
    let (v0, v1) = left_half(v0, v1);
    let v2 = v2.add(v3);
    let v3 = v3.rotate::<16>().xor(v2);
    let v2 = v2.add(v1);
    let _ = v0;
    v1.rotate::<17>().xor(v3.rotate::<21>()).xor(v2).xor(v2.rotate::<32>())
}

/// Several rows in parallel, after their row seeds were hashed.
#[derive(Clone, Copy)]
pub(crate) struct RowLanes<V> {
    /// The state after the row seed's block, with `v0` and `v1` half a round further.
    state: State<V>,
    /// `v0` and `v1` before that half round.
    plain: [V; 2],
}

impl<V: Vector> RowLanes<V> {
    /// Hashes the row seeds. Rows beyond the vector's lanes are ignored.
    #[inline(always)]
    pub(crate) fn new(seed: [u64; 2], rows: &[u64; MAX_LANES]) -> Self {
        let [v0, v1, v2, v3] = block(start(seed), row_seeds(seed, rows));
        let (half0, half1) = left_half(v0, v1);
        Self { state: [half0, half1, v2, v3], plain: [v0, v1] }
    }

    /// The scores of a backend in these rows: digests as big-endian numbers; the lowest ranks first.
    #[inline(always)]
    pub(crate) fn scores(&self, address: Words) -> V {
        let [half0, half1, v2, v3] = self.state;
        let state = match address {
            Words::V4(word) => {
                let word = V::splat(word);
                let [v0, v1, v2, v3] = round(right_half([half0, half1, v2, v3.xor(word)]));
                [v0.xor(word), v1, v2, v3]
            }
            Words::V6([low, high]) => {
                let state = block([self.plain[0], self.plain[1], v2, v3], V::splat(low));
                block(block(state, V::splat(high)), V::splat(24 << 56))
            }
        };
        finish(state).swap_bytes()
    }
}

/// The row seeds: SipHash of each row's index as four big-endian bytes, as a little-endian word.
#[inline(always)]
fn row_seeds<V: Vector>(seed: [u64; 2], rows: &[u64; MAX_LANES]) -> V {
    let words = rows.map(|row| u64::from((row as u32).swap_bytes()) | 4 << 56);
    finish(block(start(seed), V::load(&words)))
}

#[cfg(test)]
mod tests {
    use std::hash::Hasher;

    use super::*;

    fn reference(key: [u64; 2], message: &[u8]) -> u64 {
        let mut hasher = siphasher::sip::SipHasher24::new_with_keys(key[0], key[1]);
        hasher.write(message);
        hasher.finish()
    }

    /// A function that computes the scores with one vector type.
    type Scores = fn([u64; 2], &[u64; MAX_LANES], Words) -> ([u64; MAX_LANES], [u64; MAX_LANES]);

    #[inline(always)]
    fn scores<V: Vector>(
        seed: [u64; 2],
        rows: &[u64; MAX_LANES],
        words: Words,
    ) -> ([u64; MAX_LANES], [u64; MAX_LANES]) {
        let mut out = ([0; MAX_LANES], [0; MAX_LANES]);
        row_seeds::<V>(seed, rows).store(&mut out.0);
        RowLanes::<V>::new(seed, rows).scores(words).store(&mut out.1);
        out
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn scores_avx2(
        seed: [u64; 2],
        rows: &[u64; MAX_LANES],
        words: Words,
    ) -> ([u64; MAX_LANES], [u64; MAX_LANES]) {
        scores::<crate::simd::x86::Avx2>(seed, rows, words)
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn scores_avx512(
        seed: [u64; 2],
        rows: &[u64; MAX_LANES],
        words: Words,
    ) -> ([u64; MAX_LANES], [u64; MAX_LANES]) {
        scores::<crate::simd::x86::Avx512>(seed, rows, words)
    }

    fn check(lanes: usize, name: &str, hash: Scores) {
        let mut random = 0x1234_5678_9abc_def0_u64;
        let mut next = || {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            random ^ random >> 29
        };
        for _ in 0..200 {
            let seed = [next(), next()];
            let rows: [u64; MAX_LANES] = std::array::from_fn(|_| next() & 0xffff);
            let v4 = IpAddr::from((next() as u32).to_be_bytes());
            let v6 = IpAddr::from((u128::from(next()) << 64 | u128::from(next())).to_be_bytes());
            for address in [v4, v6] {
                let (row_seeds, scores) = hash(seed, &rows, Words::of(address));
                for l in 0..lanes {
                    let row_seed = reference(seed, &(rows[l] as u32).to_be_bytes()).to_le_bytes();
                    assert_eq!(row_seeds[l].to_le_bytes(), row_seed, "{name}");
                    let mut message = row_seed.to_vec();
                    match address {
                        IpAddr::V4(address) => message.extend(address.octets()),
                        IpAddr::V6(address) => message.extend(address.octets()),
                    }
                    let digest = reference(seed, &message).to_le_bytes();
                    assert_eq!(scores[l], u64::from_be_bytes(digest), "{name}");
                }
            }
        }
    }

    #[test]
    fn all_vector_types_equal_the_siphasher_crate() {
        use crate::simd::Portable;
        check(Portable::LANES, "portable", scores::<Portable>);
        #[cfg(target_arch = "x86_64")]
        {
            if std::arch::is_x86_feature_detected!("avx2") {
                // SAFETY: the processor has the features, as checked above.
                check(4, "avx2", |seed, rows, words| unsafe { scores_avx2(seed, rows, words) });
            }
            if crate::rank::has_avx512() {
                // SAFETY: the processor has the features, as checked above.
                check(8, "avx512", |seed, rows, words| unsafe { scores_avx512(seed, rows, words) });
            }
        }
    }
}
