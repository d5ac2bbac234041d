//! Weighted rendezvous hashing in integers, with the same result on every machine.
//!
//! A backend with weight `w` and digest `d` has the score `cost(d) / w`; the smallest score ranks first.
//! Here
//! `cost(d)` is `-log2(1 - d / 2^64)` in units of 2^-48. Scores are compared exactly, as
//! fractions, by cross-multiplication. The smaller `d` wins ties, then the smaller address. `cost` is
//! monotonic, so equal weights give the order of `d`, which is GLB's order.

use std::cmp::Ordering;

use crate::simd::MAX_LANES;

/// Number of binary digits after the point.
const FRACTION: u32 = 48;

/// `-log2(1 - digest / 2^64)` in units of 2^-48: from 0 to 64·2^48.
///
/// With `u = 2^64 - digest` (from 1 to 2^64) it is `64·2^48 - L`, where `L` is `log2(u)` cut off
/// after 48 binary digits, found by squaring: `x` is `u` shifted until its top bit is bit 63; 48
/// times, `x` becomes the whole part of `x·x / 2^63`; if that is 2^64 or more the next digit of `L`
/// is 1 and `x` is halved (rounded down), else it is 0.
#[must_use]
pub fn cost(digest: u64) -> u64 {
    if digest == 0 {
        return 0;
    }
    let u = digest.wrapping_neg();
    let whole = u64::from(63 - u.leading_zeros());
    let mut x = u << u.leading_zeros();
    let mut log = whole;
    for _ in 0..FRACTION {
        let square = (u128::from(x) * u128::from(x)) >> 63;
        let digit = (square >> 64) as u64;
        log = log << 1 | digit;
        x = (square >> digit) as u64;
    }
    (64 << FRACTION) - log
}

/// The score of a backend in one row; its order is the order of rank. Two scores are equal only if
/// digest and weight are.
#[derive(Clone, Copy, Debug)]
pub struct Score {
    /// The digest as a number.
    pub digest: u64,
    /// The weight, at least 1.
    pub weight: u16,
}

impl Ord for Score {
    fn cmp(&self, other: &Self) -> Ordering {
        if self.weight == other.weight {
            return self.digest.cmp(&other.digest);
        }
        let left = u128::from(cost(self.digest)) * u128::from(other.weight);
        let right = u128::from(cost(other.digest)) * u128::from(self.weight);
        left.cmp(&right).then(self.digest.cmp(&other.digest))
    }
}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Score {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Score {}

/// Upper bound of the error of an estimated cost (the error is below 2^-46).
pub(crate) const ERROR: f64 = 1.0 / (1_u64 << 45) as f64;

/// Estimates several scores, `-log2(1 - digest / 2^64) / weight`, without branches. Uses exactly rounded
/// IEEE operations only, so the result is the same on every machine.
#[inline(always)]
pub(crate) fn estimates(digests: &[u64; MAX_LANES], inverse_weight: f64) -> [f64; MAX_LANES] {
    const ONE: u64 = 1.0_f64.to_bits();
    const TWO_TO_52: f64 = (1_u64 << 52) as f64;
    let mut out = [0.0; MAX_LANES];
    for (out, digest) in out.iter_mut().zip(digests) {
        // 2^64 - digest, from 1 to 2^64, rounded once.
        let rest = !digest;
        let high = f64::from_bits(TWO_TO_52.to_bits() | rest >> 32) - TWO_TO_52;
        let low = f64::from_bits(TWO_TO_52.to_bits() | rest & 0xffff_ffff) - TWO_TO_52;
        let u = high * 4_294_967_296.0 + (low + 1.0);
        let bits = u.to_bits();
        // The exponent as a number, and the mantissa from 1 to 2.
        let exponent = f64::from_bits(TWO_TO_52.to_bits() | bits >> 52) - (TWO_TO_52 + 1023.0);
        let m = f64::from_bits(ONE | bits & ((1 << 52) - 1));
        // ln(m / sqrt 2) = 2 artanh(z), with z at most 0.172 either way.
        let z = (m - std::f64::consts::SQRT_2) / (m + std::f64::consts::SQRT_2);
        let z2 = z * z;
        let mut sum = 1.0 / 17.0;
        for odd in [15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
            sum = sum * z2 + 1.0 / odd;
        }
        let log2 = exponent - 63.5 + 2.0 * std::f64::consts::LOG2_E * z * sum;
        // Rounding must not give a negative number, whose bits would have another order.
        *out = (-log2).max(0.0) * inverse_weight;
    }
    out
}

/// Whether two neighbouring estimates of a row may be in the wrong order. `error` is [`ERROR`] divided by
/// the smallest weight.
#[inline(always)]
pub(crate) fn is_unsure(lower: f64, upper: f64, error: f64) -> bool {
    upper - lower <= 2.0 * error + upper * 1e-12
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors in docs/table.md.
    const VECTORS: [(u64, u64); 9] = [
        (0, 0),
        (1, 1),
        (0x0000_0001_0000_0000, 94_549),
        (0x0001_0000_0000_0000, 6_196_375_294),
        (0x0123_4567_89ab_cdef, 1_808_833_961_988),
        (0x1000_0000_0000_0000, 26_207_967_432_636),
        (0x8000_0000_0000_0000, 1 << 48),
        (0xc000_0000_0000_0000, 2 << 48),
        (u64::MAX, 64 << 48),
    ];

    #[test]
    fn costs_equal_the_documented_vectors() {
        for (digest, expected) in VECTORS {
            assert_eq!(cost(digest), expected, "{digest:#018x}");
        }
    }

    fn random(state: &mut u64) -> u64 {
        *state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let x = *state ^ *state >> 33;
        x.wrapping_mul(0xff51_afd7_ed55_8ccd)
    }

    #[test]
    fn the_cost_is_monotonic_and_close_to_the_logarithm() {
        let mut state = 1;
        for _ in 0..20_000 {
            let digest = random(&mut state) >> (random(&mut state) % 64);
            assert!(cost(digest) <= cost(digest.saturating_add(1)), "{digest}");
            let exact = -(-(digest as f64) / 2f64.powi(64)).ln_1p() / std::f64::consts::LN_2;
            if digest < u64::MAX - (1 << 20) {
                let ours = cost(digest) as f64 / 2f64.powi(48);
                assert!(
                    (ours - exact).abs() <= 2f64.powi(-47) + exact * 1e-9,
                    "{digest} {ours} {exact}"
                );
                let about = estimates(&[digest; MAX_LANES], 1.0)[0];
                assert!((about - exact).abs() <= ERROR, "{digest} {about} {exact}");
            }
        }
    }

    #[test]
    fn sure_estimates_have_the_exact_order() {
        let mut state = 2;
        let mut sure = 0;
        for round in 0..20_000 {
            let (a, mut b) =
                (random(&mut state) >> (round % 30), random(&mut state) >> (round % 30));
            let (wa, wb) = (random(&mut state) as u16 | 1, random(&mut state) as u16 | 1);
            if round % 2 == 0 {
                // Digests with nearly equal scores.
                b = ((u128::from(a) * u128::from(wb) / u128::from(wa)).min(u128::from(u64::MAX)))
                    as u64;
            }
            let about =
                |digest, weight| estimates(&[digest; MAX_LANES], 1.0 / f64::from(weight))[0];
            let (mut low, mut high) = ((about(a, wa), a, wa), (about(b, wb), b, wb));
            if low.0 > high.0 {
                std::mem::swap(&mut low, &mut high);
            }
            if !is_unsure(low.0, high.0, ERROR / f64::from(wa.min(wb))) {
                let score = |(_, digest, weight)| Score { digest, weight };
                assert!(score(low) < score(high), "{low:?} {high:?}");
                sure += 1;
            }
        }
        assert!(sure > 9_000, "{sure}");
    }
}
