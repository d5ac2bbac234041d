//! Whether this checker itself is cut off. Pure.
//!
//! The checker's own control targets tell: if none of them answers either, a mass of failures says
//! nothing about the backends.

use crate::Moment;

/// What is known of one control target.
#[derive(Clone, Debug, Default)]
struct Last {
    /// Of the last probe.
    started: Moment,
    passed: bool,
    /// Whether it ever passed.
    ever: bool,
    /// Asked for by name: then it counts from the first probe on.
    explicit: bool,
    any: bool,
}

/// What the control targets say about a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// One answered a probe that began since then: this machine is connected.
    Connected,
    /// All that count failed in probes that began since then.
    CutOff,
    /// Not all have been asked since then.
    Open,
    /// There are none that could tell.
    Nobody,
}

/// All control targets.
#[derive(Clone, Debug, Default)]
pub struct Controls(Vec<Last>);

impl Controls {
    /// So many controls; who is explicit counts even if it never answered.
    #[must_use]
    pub fn new(explicit: impl IntoIterator<Item = bool>) -> Self {
        Self(explicit.into_iter().map(|explicit| Last { explicit, ..Last::default() }).collect())
    }

    /// Takes the result of a probe.
    pub fn take(&mut self, index: usize, passed: bool, started: Moment) {
        if let Some(last) = self.0.get_mut(index) {
            let ever = last.ever || passed;
            last.ever = ever;
            // A timeout may come in after the answer to a later probe.
            if last.any && started < last.started {
                return;
            }
            let explicit = last.explicit;
            *last = Last { started, passed, ever, explicit, any: true };
        }
    }

    /// What they say about the time since `since`.
    #[must_use]
    pub fn word(&self, since: Moment) -> Word {
        let counting = || self.0.iter().filter(|last| last.explicit || last.ever || !last.any);
        if counting().next().is_none() {
            return Word::Nobody;
        }
        let fresh = |last: &&Last| last.any && last.started >= since;
        if counting().filter(fresh).any(|last| last.passed) {
            Word::Connected
        } else if counting().all(|last| fresh(&last)) {
            Word::CutOff
        } else {
            Word::Open
        }
    }

    /// Whether each answered its last probe.
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
    fn only_fresh_words_count() {
        let mut controls = Controls::new([true, true]);
        assert_eq!(controls.word(at(0)), Word::Open);
        controls.take(0, false, at(1));
        assert_eq!(controls.word(at(0)), Word::Open);
        controls.take(1, true, at(1));
        assert_eq!(controls.word(at(1)), Word::Connected);
        assert_eq!(controls.word(at(2)), Word::Open);
        controls.take(0, false, at(2));
        controls.take(1, false, at(3));
        assert_eq!(controls.word(at(2)), Word::CutOff);
    }

    #[test]
    fn a_gateway_that_never_answered_says_nothing() {
        let mut controls = Controls::new([false]);
        controls.take(0, false, at(1));
        assert_eq!(controls.word(at(0)), Word::Nobody);
        controls.take(0, true, at(2));
        controls.take(0, false, at(3));
        assert_eq!(controls.word(at(3)), Word::CutOff);
        assert_eq!(Controls::default().word(at(0)), Word::Nobody);
    }
}
