//! Weighted rendezvous in whole numbers, the same on every machine.
//!
//! A backend of weight `w` with digest `d` has the score `cost(d) / w`, smallest first, where
//! `cost(d)` is `-log2(1 - d / 2^64)` in units of 2^-48. Scores are compared as fractions, exactly,
//! by multiplying crosswise; ties go to the smaller `d`, then to the smaller address. `cost` never
//! falls as `d` grows, so equal weights give the order of `d`, which is GLB's.

use std::cmp::Ordering;

/// Binary digits after the point.
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

/// One backend's score in one row.
#[derive(Clone, Copy, Debug)]
pub struct Score {
    digest: u64,
    weight: u16,
    /// About `-log2(1 - digest / 2^64) / weight`. Only tells scores apart that are further from each
    /// other than its error ([`CLOSE`]); all others are compared exactly.
    about: f64,
}

/// Estimates nearer to each other than this share of their sum decide nothing. Their error is below
/// 10^-9 of the value, for they use nothing but IEEE's exactly rounded operations.
const CLOSE: f64 = 1e-6;

impl Score {
    /// The score of a backend of this weight (at least 1) with this digest.
    #[must_use]
    #[inline]
    pub fn new(digest: u64, weight: u16) -> Self {
        Self { digest, weight, about: estimate(digest) / f64::from(weight) }
    }

    /// Whether a backend's score is surely above this one: a quick look before [`Self::new`].
    #[must_use]
    #[inline]
    pub(crate) fn is_surely_below(&self, digest: u64, inverse_weight: f64) -> bool {
        // -log2(1 - x) is at least x / ln 2.
        share(digest) * std::f64::consts::LOG2_E * inverse_weight > self.about * (1.0 + CLOSE)
    }
}

/// `digest / 2^64`.
#[inline]
fn share(digest: u64) -> f64 {
    digest as f64 * (1.0 / 18_446_744_073_709_551_616.0)
}

/// `-log2(1 - digest / 2^64)` but for 10^-9 of itself.
#[inline]
fn estimate(digest: u64) -> f64 {
    if digest > 1 << 63 {
        // Where the series below gets slow; the best of a row are hardly ever here.
        return cost(digest) as f64 * (1.0 / (1_u64 << FRACTION) as f64);
    }
    // -ln(1 - x) = 2 artanh(z) with z = x / (2 - x), here at most a third.
    let x = share(digest);
    let z = x / (2.0 - x);
    let z2 = z * z;
    let mut sum = 0.0;
    for odd in [17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0_f64] {
        sum = sum * z2 + 1.0 / odd;
    }
    2.0 * z * sum * std::f64::consts::LOG2_E
}

impl Ord for Score {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        if self.weight == other.weight {
            return self.digest.cmp(&other.digest);
        }
        let difference = self.about - other.about;
        if difference.abs() > CLOSE * (self.about + other.about) {
            return if difference < 0.0 { Ordering::Less } else { Ordering::Greater };
        }
        compare((self.digest, self.weight), (other.digest, other.weight))
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

/// Orders two backends, each a digest and a weight, exactly. Equal only if nothing but the address
/// tells them apart.
#[must_use]
pub fn compare((a, a_weight): (u64, u16), (b, b_weight): (u64, u16)) -> Ordering {
    let left = u128::from(cost(a)) * u128::from(b_weight);
    let right = u128::from(cost(b)) * u128::from(a_weight);
    left.cmp(&right).then(a.cmp(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written into docs/table.md too.
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
    fn costs_are_the_documented_ones() {
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
    fn the_cost_never_falls_and_is_the_logarithm() {
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
                let about = estimate(digest);
                assert!((about - exact).abs() <= exact * 1e-9, "{digest} {about} {exact}");
            }
        }
    }

    #[test]
    fn estimates_never_change_the_order() {
        let mut state = 2;
        for round in 0..20_000 {
            let (a, mut b) =
                (random(&mut state) >> (round % 20), random(&mut state) >> (round % 20));
            let (wa, wb) = (random(&mut state) as u16 | 1, random(&mut state) as u16 | 1);
            if round % 2 == 0 {
                // Digests whose scores all but tie.
                b = ((u128::from(a) * u128::from(wb) / u128::from(wa)).min(u128::from(u64::MAX)))
                    as u64;
            }
            let expected = if wa == wb { a.cmp(&b) } else { compare((a, wa), (b, wb)) };
            assert_eq!(Score::new(a, wa).cmp(&Score::new(b, wb)), expected);
        }
    }
}
