//! Timestamps that a later process can compare with its own, even if the calendar was set meanwhile.

use std::{
    fs,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// A moment by the boot-time clock and by the calendar. Two moments of one boot are compared by the
/// former, moments of different boots by the latter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BootTimestamp {
    boot: String,
    since_boot: u64,
    calendar: u64,
}

impl BootTimestamp {
    pub(super) fn now() -> Self {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let calendar = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            boot: boot.trim().to_owned(),
            since_boot: since_boot().as_secs(),
            calendar: calendar.as_secs(),
        }
    }

    /// Seconds from this moment to `now`; 0 if the calendar was set back.
    pub(super) fn seconds_until(&self, now: &Self) -> u64 {
        if self.boot == now.boot {
            now.since_boot.saturating_sub(self.since_boot)
        } else {
            now.calendar.saturating_sub(self.calendar)
        }
    }
}

/// Time since boot, independent of this process's time namespace: a recreated container may have
/// another offset.
pub(super) fn since_boot() -> Duration {
    let here = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    let offsets = fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default();
    let offset = boottime_offset(&offsets).unwrap_or_default();
    let machine = i128::try_from(here.as_nanos()).unwrap_or(i128::MAX) - offset;
    Duration::from_nanos(u64::try_from(machine.max(0)).unwrap_or(u64::MAX))
}

/// The offset of this time namespace's boot-time clock, in nanoseconds.
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
    fn elapsed_time_uses_boottime() {
        let at = |boot: &str, since_boot, calendar| BootTimestamp {
            boot: boot.to_owned(),
            since_boot,
            calendar,
        };
        // The calendar was set ahead by a year, or back, within one boot.
        assert_eq!(at("a", 10, 1_000).seconds_until(&at("a", 70, 40_000_000)), 60);
        assert_eq!(at("a", 10, 1_000).seconds_until(&at("a", 70, 5)), 60);
        // After a reboot only the calendar can tell, and a calendar that was set back counts as 0.
        assert_eq!(at("a", 10_000, 1_000).seconds_until(&at("b", 5, 1_500)), 500);
        assert_eq!(at("a", 10_000, 1_000).seconds_until(&at("b", 5, 900)), 0);
    }

    #[test]
    fn the_time_namespace_offset_is_parsed() {
        let offsets = "monotonic       -3600         5\nboottime        86400  10\n";
        assert_eq!(boottime_offset(offsets), Some(86_400_000_000_010));
        assert_eq!(boottime_offset("boottime -1 999999999\n"), Some(-1));
        assert_eq!(boottime_offset(""), None);
    }
}
