//! The health state of one target: rise, fall, hold-down and flap counting. Pure: no clock.

use std::time::Duration;

use crate::Moment;

/// How many results change a target's health, and how long a failed target is held down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthRules {
    /// Consecutive passes that make it healthy.
    pub rise: u32,
    /// Consecutive failures that make it unhealthy.
    pub fall: u32,
    /// Shortest time that it stays unhealthy; doubled with each flap.
    pub hold_down: Duration,
    /// Upper limit of the doubled hold-down.
    pub hold_down_max: Duration,
    /// A failure later than this after the return to healthy is not a flap.
    pub flap_reset: Duration,
}

/// The health of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// No result yet, and no earlier output to start from.
    Unknown,
    /// Its checks pass.
    Healthy,
    /// Its checks fail.
    Unhealthy,
}

/// The health state of one target.
#[derive(Clone, Debug)]
pub struct HealthState {
    health: Health,
    since: Moment,
    /// Consecutive results that contradict `health`.
    contrary: u32,
    /// Flaps without a reset between them: how many times the next hold-down is doubled.
    level: u32,
    held_until: Moment,
    transitions: u64,
    flaps: u64,
}

impl HealthState {
    /// Creates an unknown state; the first result decides it.
    #[must_use]
    pub fn new(now: Moment) -> Self {
        Self {
            health: Health::Unknown,
            since: now,
            contrary: 0,
            level: 0,
            held_until: Moment::ZERO,
            transitions: 0,
            flaps: 0,
        }
    }

    /// Starts from the health that an earlier process has written. It stays until `rise` or `fall`
    /// results contradict it.
    #[must_use]
    pub fn resume(healthy: bool, now: Moment) -> Self {
        let health = if healthy { Health::Healthy } else { Health::Unhealthy };
        Self { health, ..Self::new(now) }
    }

    /// The current health.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health
    }

    /// When the health last changed.
    #[must_use]
    pub fn since(&self) -> Moment {
        self.since
    }

    /// When the hold-down ends; until then passes do not make it healthy.
    #[must_use]
    pub fn held_until(&self) -> Moment {
        self.held_until
    }

    /// Changes between healthy and unhealthy so far.
    #[must_use]
    pub fn transitions(&self) -> u64 {
        self.transitions
    }

    /// Failures so far that came within [`HealthRules::flap_reset`] of a return.
    #[must_use]
    pub fn flaps(&self) -> u64 {
        self.flaps
    }

    /// Discards results that contradict the health: the checker's own fault caused them.
    pub fn reset_contrary(&mut self) {
        self.contrary = 0;
    }

    /// Returns whether one more failure makes it unhealthy.
    #[must_use]
    pub fn is_last_chance(&self, rules: &HealthRules) -> bool {
        self.health == Health::Healthy && self.contrary + 1 >= rules.fall
    }

    /// Records a result. Returns the previous health if it changed.
    pub fn record(&mut self, rules: &HealthRules, passed: bool, now: Moment) -> Option<Health> {
        let before = self.health;
        match (before, passed) {
            (Health::Unknown, true) => self.change(Health::Healthy, now),
            // No hold-down: the target never received connections.
            (Health::Unknown, false) => self.change(Health::Unhealthy, now),
            (Health::Healthy, true) | (Health::Unhealthy, false) => self.contrary = 0,
            (Health::Healthy, false) => {
                self.contrary += 1;
                if self.contrary >= rules.fall {
                    self.fail(rules, now);
                }
            }
            (Health::Unhealthy, true) => {
                self.contrary = self.contrary.saturating_add(1);
                if self.contrary >= rules.rise && now >= self.held_until {
                    self.transitions += 1;
                    self.change(Health::Healthy, now);
                }
            }
        }
        (self.health != before).then_some(before)
    }

    fn fail(&mut self, rules: &HealthRules, now: Moment) {
        // A target that was healthy from the start has not returned.
        let returned = self.transitions > 0;
        if returned && now.saturating_sub(self.since) < rules.flap_reset {
            self.level = self.level.saturating_add(1);
            self.flaps += 1;
        } else {
            self.level = 0;
        }
        let factor = 1_u32.checked_shl(self.level).unwrap_or(u32::MAX);
        let hold_down = rules.hold_down.saturating_mul(factor).min(rules.hold_down_max);
        self.held_until = now + hold_down;
        self.transitions += 1;
        self.change(Health::Unhealthy, now);
    }

    fn change(&mut self, to: Health, now: Moment) {
        self.health = to;
        self.since = now;
        self.contrary = 0;
    }
}

#[cfg(test)]
mod tests;
