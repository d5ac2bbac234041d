//! The `min_healthy` limit: how many backends of a table stay healthy although their checks fail.

use crate::Moment;

/// The number of active and filling backends of each table that always stay healthy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MinHealthy {
    /// A number of backends.
    Count(usize),
    /// A percentage of the backends, rounded up.
    Percent(u8),
    /// No limit: every failing backend becomes unhealthy.
    #[default]
    None,
}

impl MinHealthy {
    fn count(self, backends: usize) -> usize {
        match self {
            Self::Count(count) => count.min(backends),
            Self::Percent(percent) => (backends * usize::from(percent)).div_ceil(100),
            Self::None => 0,
        }
    }
}

/// The health of a backend that may receive new connections.
#[derive(Clone, Copy, Debug)]
pub struct BackendHealth {
    /// True if all its checks pass.
    pub healthy: bool,
    /// When the first of its failing checks failed.
    pub unhealthy_since: Moment,
}

/// Decides which backends are written as healthy. Below the limit the backends that failed last stay
/// healthy: they are the most likely to work. If all backends are unhealthy, all are written as such,
/// and rows keep their rank order.
#[must_use]
pub fn select_healthy(backends: &[BackendHealth], min_healthy: MinHealthy) -> Vec<bool> {
    let mut healthy: Vec<bool> = backends.iter().map(|backend| backend.healthy).collect();
    let healthy_count = healthy.iter().filter(|healthy| **healthy).count();
    if healthy_count == 0 {
        return healthy;
    }
    let mut unhealthy: Vec<usize> =
        (0..backends.len()).filter(|index| !backends[*index].healthy).collect();
    unhealthy.sort_by_key(|index| std::cmp::Reverse((backends[*index].unhealthy_since, *index)));
    for index in
        unhealthy.into_iter().take(min_healthy.count(backends.len()).saturating_sub(healthy_count))
    {
        healthy[index] = true;
    }
    healthy
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn backend(unhealthy_since: Option<u64>) -> BackendHealth {
        let since = Moment::from_secs(unhealthy_since.unwrap_or(0));
        BackendHealth { healthy: unhealthy_since.is_none(), unhealthy_since: since }
    }

    #[test]
    fn the_backends_that_failed_last_stay_healthy() {
        let backends = [None, Some(3), Some(9), Some(5)].map(backend);
        assert_eq!(select_healthy(&backends, MinHealthy::None), [true, false, false, false]);
        assert_eq!(select_healthy(&backends, MinHealthy::Count(2)), [true, false, true, false]);
        assert_eq!(select_healthy(&backends, MinHealthy::Percent(51)), [true, false, true, true]);
        assert_eq!(select_healthy(&backends, MinHealthy::Count(9)), [true; 4]);
        let all_down = [Some(1), Some(2)].map(backend);
        assert_eq!(select_healthy(&all_down, MinHealthy::Count(1)), [false, false]);
    }

    proptest! {
        #[test]
        fn a_healthy_backend_stays_healthy(
            downs in prop::collection::vec(prop::option::of(0..100_u64), 1..20),
            percent in 0..=100_u8,
        ) {
            let backends: Vec<_> = downs.into_iter().map(backend).collect();
            let kept = select_healthy(&backends, MinHealthy::Percent(percent));
            for (backend, healthy) in backends.iter().zip(&kept) {
                prop_assert!(!backend.healthy || *healthy);
            }
            let healthy_count = backends.iter().filter(|backend| backend.healthy).count();
            let healthy = kept.iter().filter(|healthy| **healthy).count();
            let min_healthy = MinHealthy::Percent(percent).count(backends.len());
            prop_assert_eq!(healthy, if healthy_count == 0 { 0 } else { healthy_count.max(min_healthy) });
        }
    }
}
