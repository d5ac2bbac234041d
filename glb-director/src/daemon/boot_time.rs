//! A moment that a later process finds again, whatever clocks were set meanwhile.

use std::{
    fs,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// A moment by the clock that goes on through sleep and is never set, as long as it is the same
/// machine's same life; else by the calendar.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Moment {
    boot: String,
    since_boot: u64,
    calendar: u64,
}

impl Moment {
    pub(super) fn now() -> Self {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let calendar = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            boot: boot.trim().to_owned(),
            since_boot: since_boot().as_secs(),
            calendar: calendar.as_secs(),
        }
    }

    /// Seconds from this moment to that one; a clock that was set back says that none have passed.
    pub(super) fn until(&self, now: &Self) -> u64 {
        if self.boot == now.boot {
            now.since_boot.saturating_sub(self.since_boot)
        } else {
            now.calendar.saturating_sub(self.calendar)
        }
    }
}

/// Time since the machine's start, the same in every time namespace: a container that is made anew may
/// count from another beginning.
pub(super) fn since_boot() -> Duration {
    let here = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    let offsets = fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default();
    let offset = boottime_offset(&offsets).unwrap_or_default();
    let machine = i128::try_from(here.as_nanos()).unwrap_or(i128::MAX) - offset;
    Duration::from_nanos(u64::try_from(machine.max(0)).unwrap_or(u64::MAX))
}

/// What this namespace adds to the machine's clock, in nanoseconds.
fn boottime_offset(offsets: &str) -> Option<i128> {
    let line = offsets.lines().find_map(|line| line.strip_prefix("boottime"))?;
    let mut numbers = line.split_whitespace().map(str::parse::<i128>);
    let (seconds, nanoseconds) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some(seconds * 1_000_000_000 + nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_between_two_daemons_is_by_the_clock_that_nobody_sets() {
        let at = |boot: &str, since_boot, calendar| Moment {
            boot: boot.to_owned(),
            since_boot,
            calendar,
        };
        // The calendar was set a year ahead, or back, while the machine ran on.
        assert_eq!(at("a", 10, 1_000).until(&at("a", 70, 40_000_000)), 60);
        assert_eq!(at("a", 10, 1_000).until(&at("a", 70, 5)), 60);
        // Another life of the machine: only the calendar tells, and it does not go back.
        assert_eq!(at("a", 10_000, 1_000).until(&at("b", 5, 1_500)), 500);
        assert_eq!(at("a", 10_000, 1_000).until(&at("b", 5, 900)), 0);
    }

    #[test]
    fn what_a_namespace_adds_is_known() {
        let offsets = "monotonic       -3600         5\nboottime        86400  10\n";
        assert_eq!(boottime_offset(offsets), Some(86_400_000_000_010));
        assert_eq!(boottime_offset("boottime -1 999999999\n"), Some(-1));
        assert_eq!(boottime_offset(""), None);
    }
}
