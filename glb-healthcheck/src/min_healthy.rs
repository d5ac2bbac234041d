//! The least number of backends of a table that stay healthy. Pure.

use crate::Moment;

/// How many of a table's backends may not be taken out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Floor {
    /// So many.
    Count(usize),
    /// So many of a hundred, rounded up.
    Percent(u8),
    /// None: who is dead is taken out.
    #[default]
    None,
}

impl Floor {
    fn of(self, backends: usize) -> usize {
        match self {
            Self::Count(count) => count.min(backends),
            Self::Percent(percent) => (backends * usize::from(percent)).div_ceil(100),
            Self::None => 0,
        }
    }
}

/// A backend that could take connections.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    /// Whether all its checks pass.
    pub up: bool,
    /// Since when not.
    pub down_since: Moment,
}

/// Who is to be written healthy. Below the floor those who failed last stay, being the likeliest to
/// live. If nobody is up at all, nobody is preferred: then the order of a row is by rank alone, and
/// no dead backend is put before another.
#[must_use]
pub fn keep(members: &[Member], floor: Floor) -> Vec<bool> {
    let mut healthy: Vec<bool> = members.iter().map(|member| member.up).collect();
    let up = healthy.iter().filter(|up| **up).count();
    if up == 0 {
        return healthy;
    }
    let mut down: Vec<usize> = (0..members.len()).filter(|index| !members[*index].up).collect();
    down.sort_by_key(|index| std::cmp::Reverse((members[*index].down_since, *index)));
    for index in down.into_iter().take(floor.of(members.len()).saturating_sub(up)) {
        healthy[index] = true;
    }
    healthy
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn member(down_since: Option<u64>) -> Member {
        let since = Moment::from_secs(down_since.unwrap_or(0));
        Member { up: down_since.is_none(), down_since: since }
    }

    #[test]
    fn who_failed_last_stays() {
        let members = [None, Some(3), Some(9), Some(5)].map(member);
        assert_eq!(keep(&members, Floor::None), [true, false, false, false]);
        assert_eq!(keep(&members, Floor::Count(2)), [true, false, true, false]);
        assert_eq!(keep(&members, Floor::Percent(51)), [true, false, true, true]);
        assert_eq!(keep(&members, Floor::Count(9)), [true; 4]);
        let all_down = [Some(1), Some(2)].map(member);
        assert_eq!(keep(&all_down, Floor::Count(1)), [false, false]);
    }

    proptest! {
        #[test]
        fn a_live_one_is_never_taken_out(
            downs in prop::collection::vec(prop::option::of(0..100_u64), 1..20),
            percent in 0..=100_u8,
        ) {
            let members: Vec<_> = downs.into_iter().map(member).collect();
            let kept = keep(&members, Floor::Percent(percent));
            for (member, healthy) in members.iter().zip(&kept) {
                prop_assert!(!member.up || *healthy);
            }
            let up = members.iter().filter(|member| member.up).count();
            let healthy = kept.iter().filter(|healthy| **healthy).count();
            let floor = Floor::Percent(percent).of(members.len());
            prop_assert_eq!(healthy, if up == 0 { 0 } else { up.max(floor) });
        }
    }
}
