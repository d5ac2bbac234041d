//! From single results to a judgement of one target, without flapping. Pure.

use std::time::Duration;

use crate::Moment;

/// How many results turn a judgement, and how long who failed is held down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// So many passes in a row make it up.
    pub rise: u32,
    /// So many failures in a row make it down.
    pub fall: u32,
    /// After a failure it stays down for at least this; twice as long after each next failure.
    pub hold: Duration,
    /// It is never held down for longer.
    pub hold_max: Duration,
    /// Who has been up for so long starts from `hold` again.
    pub forgive: Duration,
}

/// What a target is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// No result yet, and nothing known from before.
    Unknown,
    /// Can take connections.
    Up,
    /// Cannot.
    Down,
}

/// The judgement of one target.
#[derive(Clone, Debug)]
pub struct Judge {
    standing: Standing,
    since: Moment,
    /// Results in a row that speak against the standing.
    against: u32,
    /// How often it failed lately: the next hold is `hold` doubled so many times.
    level: u32,
    held_until: Moment,
    transitions: u64,
    flaps: u64,
}

impl Judge {
    /// Nothing is known: the first result decides.
    #[must_use]
    pub fn new(now: Moment) -> Self {
        Self {
            standing: Standing::Unknown,
            since: now,
            against: 0,
            level: 0,
            held_until: Moment::ZERO,
            transitions: 0,
            flaps: 0,
        }
    }

    /// What a former checker has written stands until rise or fall overturns it.
    #[must_use]
    pub fn resumed(up: bool, now: Moment) -> Self {
        Self { standing: if up { Standing::Up } else { Standing::Down }, ..Self::new(now) }
    }

    /// What it is taken for.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// Since when.
    #[must_use]
    pub fn since(&self) -> Moment {
        self.since
    }

    /// Until when it stays down whatever it answers.
    #[must_use]
    pub fn held_until(&self) -> Moment {
        self.held_until
    }

    /// How often it has changed between up and down.
    #[must_use]
    pub fn transitions(&self) -> u64 {
        self.transitions
    }

    /// How often it failed before its last failure was forgiven.
    #[must_use]
    pub fn flaps(&self) -> u64 {
        self.flaps
    }

    /// Results in a row that speak against the standing.
    #[must_use]
    pub fn against(&self) -> u32 {
        self.against
    }

    /// Forgets results that speak against the standing: they said nothing about the target.
    pub fn forget_streak(&mut self) {
        self.against = 0;
    }

    /// Whether one more failure turns it down.
    #[must_use]
    pub fn is_last_chance(&self, rules: &Rules) -> bool {
        self.standing == Standing::Up && self.against + 1 >= rules.fall
    }

    /// Takes a result. Returns the standing that was left if it changed.
    pub fn take(&mut self, rules: &Rules, passed: bool, now: Moment) -> Option<Standing> {
        let before = self.standing;
        match (before, passed) {
            (Standing::Unknown, true) => self.change(Standing::Up, now),
            // Nothing was given to it yet, so nothing is held against it.
            (Standing::Unknown, false) => self.change(Standing::Down, now),
            (Standing::Up, true) | (Standing::Down, false) => self.against = 0,
            (Standing::Up, false) => {
                self.against += 1;
                if self.against >= rules.fall {
                    self.fail(rules, now);
                }
            }
            (Standing::Down, true) => {
                self.against = self.against.saturating_add(1);
                if self.against >= rules.rise && now >= self.held_until {
                    self.transitions += 1;
                    self.change(Standing::Up, now);
                }
            }
        }
        (self.standing != before).then_some(before)
    }

    fn fail(&mut self, rules: &Rules, now: Moment) {
        // Being up since the start or since a former checker is not a return.
        let returned = self.transitions > 0;
        if returned && now.saturating_sub(self.since) < rules.forgive {
            self.level = self.level.saturating_add(1);
            self.flaps += 1;
        } else {
            self.level = 0;
        }
        let factor = 1_u32.checked_shl(self.level).unwrap_or(u32::MAX);
        let hold = rules.hold.saturating_mul(factor).min(rules.hold_max);
        self.held_until = now + hold;
        self.transitions += 1;
        self.change(Standing::Down, now);
    }

    fn change(&mut self, to: Standing, now: Moment) {
        self.standing = to;
        self.since = now;
        self.against = 0;
    }
}

#[cfg(test)]
mod tests;
