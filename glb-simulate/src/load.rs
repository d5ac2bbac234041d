//! How evenly load is spread over backends, compared with what hashing alone would give.

use serde::Serialize;

use glb_table::{BuiltTable, ROWS};

/// The spread of the backends' loads, in units of each backend's fair share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    /// The largest load.
    pub max: f64,
    /// The standard deviation of the loads.
    pub deviation: f64,
    /// The standard deviation that hashing alone gives on average.
    pub expected_deviation: f64,
    /// The largest load that hashing alone gives on average (an approximation).
    pub expected_max: f64,
}

/// The load of those backends of a table that take new connections.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Load {
    /// The table's name.
    pub table: String,
    /// The number of these backends.
    pub backends: usize,
    /// The spread of rows in which each is the first hop.
    pub rows: Spread,
    /// The spread of flows.
    pub flows: Spread,
}

/// Computes the load of one table; `flows_of` gives the number of flows of the table's n-th backend.
pub(crate) fn load_of(built: &BuiltTable, flows_of: impl Fn(usize) -> u64) -> Load {
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
    let flows: Vec<u64> = serving.iter().map(|place| flows_of(*place)).collect();
    let all = flows.iter().sum::<u64>() as f64;
    Load {
        table: built.table.name.clone(),
        backends: serving.len(),
        rows: spread(&rows, &weights, 1.0 / ROWS as f64),
        // Two throws: rows are hashed to backends, and flows to rows.
        flows: spread(&flows, &weights, 1.0 / ROWS as f64 + 1.0 / all.max(1.0)),
    }
}

/// Computes a spread. `noise` is the sum, over the throws, of 1 / the number of things thrown.
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
        expected_max: 1.0 + expected * expected_largest(loads.len()),
    }
}

/// The mean of the largest of `n` normal numbers, by Blom's formula: the quantile of
/// (n − 0.375) / (n + 0.25), approximated as in Abramowitz and Stegun 26.2.23.
fn expected_largest(n: usize) -> f64 {
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
        // The square root of the noise, for two backends of equal weight.
        assert!((odd.expected_deviation - 0.1).abs() < 1e-9, "{odd:?}");
        assert_eq!(spread(&[0, 0], &[1.0, 1.0], 0.01), Spread::default());
    }

    #[test]
    fn the_expected_largest_matches_published_tables() {
        for (n, mean) in [(2, 0.564), (10, 1.539), (100, 2.508), (200, 2.746)] {
            assert!((expected_largest(n) - mean).abs() < 0.03, "{n}: {}", expected_largest(n));
        }
    }
}
