//! How evenly load lies on backends, and how evenly it can by chance alone.

use serde::Serialize;

use crate::{BuiltTable, ROWS};

/// How far the backends' loads differ, each in units of its fair share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    /// The largest.
    pub max: f64,
    /// Standard deviation.
    pub deviation: f64,
    /// Standard deviation that hashing alone has in the mean, when nothing is under way.
    pub expected_deviation: f64,
    /// The largest load that hashing alone has in the mean, about.
    pub expected_max: f64,
}

/// The load of a table's backends that take new connections.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Load {
    /// The table's name.
    pub table: String,
    /// How many take new ones.
    pub backends: usize,
    /// Of the rows in which each is first.
    pub rows: Spread,
    /// Of the flows that each holds.
    pub flows: Spread,
}

/// The load of one table; `held` says how many flows the backend at a place of the table has.
pub(super) fn of(built: &BuiltTable, held: impl Fn(usize) -> u64) -> Load {
    let mut first = vec![0_u64; built.table.backends.len()];
    for hop in built.rows.iter().filter_map(|row| row.first()) {
        first[usize::from(*hop)] += 1;
    }
    let serving: Vec<usize> = built
        .table
        .backends
        .iter()
        .enumerate()
        .filter_map(|(place, backend)| backend.takes_new().then_some(place))
        .collect();
    let weights: Vec<f64> =
        serving.iter().map(|place| f64::from(built.table.backends[*place].weight)).collect();
    let rows: Vec<u64> = serving.iter().map(|place| first[*place]).collect();
    let flows: Vec<u64> = serving.iter().map(|place| held(*place)).collect();
    let all = flows.iter().sum::<u64>() as f64;
    Load {
        table: built.table.name.clone(),
        backends: serving.len(),
        rows: spread(&rows, &weights, 1.0 / ROWS as f64),
        // First the rows fall to backends, then the flows into rows.
        flows: spread(&flows, &weights, 1.0 / ROWS as f64 + 1.0 / all.max(1.0)),
    }
}

/// `noise` is the sum of the inverse numbers of things that chance throws.
fn spread(loads: &[u64], weights: &[f64], noise: f64) -> Spread {
    let (all, weight) = (loads.iter().sum::<u64>() as f64, weights.iter().sum::<f64>());
    if loads.is_empty() || all == 0.0 {
        return Spread::default();
    }
    let of_fair: Vec<f64> =
        loads.iter().zip(weights).map(|(load, one)| *load as f64 / (all * one / weight)).collect();
    let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / loads.len() as f64;
    let variance = mean(&mut of_fair.iter().map(|load| (load - 1.0) * (load - 1.0)));
    let expected = mean(&mut weights.iter().map(|one| (weight / one - 1.0) * noise)).sqrt();
    Spread {
        max: of_fair.iter().copied().fold(0.0, f64::max),
        deviation: variance.sqrt(),
        expected_deviation: expected,
        expected_max: 1.0 + expected * largest_of(loads.len()),
    }
}

/// The mean of the largest of so many normal numbers, by Blom's formula: the quantile of
/// (n − 0.375) / (n + 0.25), approximated as in Abramowitz and Stegun 26.2.23.
fn largest_of(n: usize) -> f64 {
    if n < 2 {
        return 0.0;
    }
    let tail = 0.625 / (n as f64 + 0.25);
    let t = (-2.0 * libm::log(tail)).sqrt();
    let over = 2.515_517 + t * (0.802_853 + t * 0.010_328);
    let under = 1.0 + t * (1.432_788 + t * (0.189_269 + t * 0.001_308));
    t - over / under
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_are_in_units_of_the_fair_share() {
        let even = spread(&[10, 20, 30], &[1.0, 2.0, 3.0], 0.01);
        assert!((even.max - 1.0).abs() < 1e-9 && even.deviation < 1e-9, "{even:?}");
        let odd = spread(&[30, 10], &[1.0, 1.0], 0.01);
        assert!((odd.max - 1.5).abs() < 1e-9 && (odd.deviation - 0.5).abs() < 1e-9, "{odd:?}");
        // One over the square root of a hundred throws, for a chance of a half.
        assert!((odd.expected_deviation - 0.1).abs() < 1e-9, "{odd:?}");
        assert_eq!(spread(&[0, 0], &[1.0, 1.0], 0.01), Spread::default());
    }

    #[test]
    fn the_largest_of_many_is_as_in_tables() {
        for (n, mean) in [(2, 0.564), (10, 1.539), (100, 2.508), (200, 2.746)] {
            assert!((largest_of(n) - mean).abs() < 0.03, "{n}: {}", largest_of(n));
        }
    }
}
