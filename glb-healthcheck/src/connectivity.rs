//! Decides whether this machine itself has lost connectivity. Pure: no clock, no sockets.
//!
//! Connectivity targets are hosts that are independent of the backends, such as the gateways. If
//! none of them replies either, simultaneous check failures say nothing about the backends.

use crate::Moment;

/// The last probe of one connectivity target.
#[derive(Clone, Debug, Default)]
struct LastProbe {
    started: Moment,
    passed: bool,
    /// True if any probe ever passed.
    ever_passed: bool,
    /// True if it is configured by name. Such a target counts from its first probe on; a default
    /// gateway counts once it has replied.
    configured: bool,
    /// True if any probe has ended.
    probed: bool,
}

/// True if this machine has had connectivity since a given moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectivityVerdict {
    /// A target replied to a probe that started since.
    Connected,
    /// All probes that started since have failed, one per target or more.
    Isolated,
    /// Some target has no result of a probe that started since.
    Undecided,
    /// There are no targets to decide by.
    NoTargets,
}

/// The results of all connectivity targets.
#[derive(Clone, Debug, Default)]
pub struct ConnectivityTracker(Vec<LastProbe>);

impl ConnectivityTracker {
    /// Creates a tracker with one target for each item, which says whether it is configured by name.
    #[must_use]
    pub fn new(configured: impl IntoIterator<Item = bool>) -> Self {
        let targets = configured.into_iter();
        Self(targets.map(|configured| LastProbe { configured, ..LastProbe::default() }).collect())
    }

    /// Records the result of a probe.
    pub fn record(&mut self, index: usize, passed: bool, started: Moment) {
        if let Some(last) = self.0.get_mut(index) {
            last.ever_passed |= passed;
            // A timeout can arrive after the reply to a later probe.
            if last.probed && started < last.started {
                return;
            }
            *last = LastProbe { started, passed, probed: true, ..last.clone() };
        }
    }

    /// Decides about the time since `since`.
    #[must_use]
    pub fn verdict(&self, since: Moment) -> ConnectivityVerdict {
        let counting =
            || self.0.iter().filter(|last| last.configured || last.ever_passed || !last.probed);
        if counting().next().is_none() {
            return ConnectivityVerdict::NoTargets;
        }
        let fresh = |last: &&LastProbe| last.probed && last.started >= since;
        if counting().filter(fresh).any(|last| last.passed) {
            ConnectivityVerdict::Connected
        } else if counting().all(|last| fresh(&last)) {
            ConnectivityVerdict::Isolated
        } else {
            ConnectivityVerdict::Undecided
        }
    }

    /// Returns whether each target replied to its last probe.
    pub fn passing(&self) -> impl Iterator<Item = bool> {
        self.0.iter().map(|last| last.passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> Moment {
        Moment::from_secs(second)
    }

    #[test]
    fn only_probes_since_the_failure_count() {
        let mut tracker = ConnectivityTracker::new([true, true]);
        assert_eq!(tracker.verdict(at(0)), ConnectivityVerdict::Undecided);
        tracker.record(0, false, at(1));
        assert_eq!(tracker.verdict(at(0)), ConnectivityVerdict::Undecided);
        tracker.record(1, true, at(1));
        assert_eq!(tracker.verdict(at(1)), ConnectivityVerdict::Connected);
        assert_eq!(tracker.verdict(at(2)), ConnectivityVerdict::Undecided);
        tracker.record(0, false, at(2));
        tracker.record(1, false, at(3));
        assert_eq!(tracker.verdict(at(2)), ConnectivityVerdict::Isolated);
    }

    #[test]
    fn a_gateway_that_never_replied_is_ignored() {
        let mut tracker = ConnectivityTracker::new([false]);
        tracker.record(0, false, at(1));
        assert_eq!(tracker.verdict(at(0)), ConnectivityVerdict::NoTargets);
        tracker.record(0, true, at(2));
        tracker.record(0, false, at(3));
        assert_eq!(tracker.verdict(at(3)), ConnectivityVerdict::Isolated);
        assert_eq!(ConnectivityTracker::default().verdict(at(0)), ConnectivityVerdict::NoTargets);
    }
}
