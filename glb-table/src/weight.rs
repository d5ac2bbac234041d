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

/// Orders two backends, each a digest and a weight; equal only if both digests and costs are.
#[must_use]
pub fn compare((a, a_weight): (u64, u16), (b, b_weight): (u64, u16)) -> Ordering {
    if a_weight == b_weight {
        return a.cmp(&b);
    }
    let (left, right) =
        (u128::from(cost(a)) * u128::from(b_weight), u128::from(cost(b)) * u128::from(a_weight));
    left.cmp(&right).then(a.cmp(&b))
}
