//! Random flow lifetimes: most are short, some are very long.

use serde::Serialize;

use crate::random::Random;

/// A bounded Pareto distribution of lifetimes, in seconds.
///
/// A flow that has lived for a time t, between `min` and `max`, lives on to 2t with a probability of
/// about 2^−`pareto_alpha`. All functions use `libm`, so results are the same on every machine.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Lifetimes {
    /// The shortest lifetime, above 0.
    pub min: f64,
    /// The longest lifetime, above `min`.
    pub max: f64,
    /// The shape, above 0. The smaller it is, the more flows live long.
    pub pareto_alpha: f64,
}

impl Lifetimes {
    /// The share of flows that live longer than `age` seconds.
    #[must_use]
    pub fn survival(&self, age: f64) -> f64 {
        if age <= self.min {
            1.0
        } else if age >= self.max {
            0.0
        } else {
            (libm::pow(age / self.min, -self.pareto_alpha) - self.unbounded_rest())
                / (1.0 - self.unbounded_rest())
        }
    }

    /// The mean lifetime, in seconds.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.survival_integral(self.max)
    }

    /// Of the flows that are alive at one moment, the share that began less than `age` seconds ago.
    #[must_use]
    pub fn share_younger_than(&self, age: f64) -> f64 {
        self.survival_integral(age.min(self.max)) / self.mean()
    }

    /// The remaining lifetime of flows that are alive at one moment and began less than `young`
    /// seconds ago.
    pub(crate) fn remaining(self, young: f64) -> RemainingLifetime {
        let young = young.min(self.max);
        let (end, level, falling) =
            (self.unbounded_rest(), young.min(self.min), self.power_integral(young));
        RemainingLifetime { lifetimes: self, end, level, falling }
    }

    /// The share of flows that would live longer than `max` if there were no bound.
    fn unbounded_rest(&self) -> f64 {
        libm::pow(self.max / self.min, -self.pareto_alpha)
    }

    /// The integral of [`Self::survival`] from 0 to `age`.
    fn survival_integral(&self, age: f64) -> f64 {
        if age <= self.min {
            return age;
        }
        let end = self.unbounded_rest();
        self.min + (self.power_integral(age) - end * (age - self.min)) / (1.0 - end)
    }

    /// The integral of (x / min)^−alpha from `min` to `age`.
    fn power_integral(&self, age: f64) -> f64 {
        let times = (age / self.min).max(1.0);
        self.min
            * match self.is_alpha_one() {
                true => libm::log(times),
                false => {
                    (libm::pow(times, 1.0 - self.pareto_alpha) - 1.0) / (1.0 - self.pareto_alpha)
                }
            }
    }

    /// The age at which [`Self::power_integral`] is `rest`, both in units of `min`.
    fn inverse_power_integral(&self, rest: f64) -> f64 {
        match self.is_alpha_one() {
            true => libm::exp(rest),
            false => {
                libm::pow(1.0 + rest * (1.0 - self.pareto_alpha), 1.0 / (1.0 - self.pareto_alpha))
            }
        }
    }

    /// Whether `pareto_alpha` is 1, where the integral is a logarithm.
    fn is_alpha_one(&self) -> bool {
        (self.pareto_alpha - 1.0).abs() < 1e-9
    }
}

/// The distribution of remaining lifetimes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RemainingLifetime {
    lifetimes: Lifetimes,
    end: f64,
    /// The integral of the density of ages, below `min` (`level`) and above it (`falling`).
    level: f64,
    falling: f64,
}

impl RemainingLifetime {
    /// Draws a remaining lifetime in seconds.
    pub(crate) fn draw(&self, random: &mut Random) -> f64 {
        let (Lifetimes { min, pareto_alpha: alpha, .. }, end) = (self.lifetimes, self.end);
        // The age is drawn from the unbounded distribution, which can be inverted; ages that the
        // bound forbids are rejected. `survival` is the unbounded probability to reach that age.
        let (age, survival) = loop {
            let place = random.share() * (self.level + self.falling);
            if place <= self.level {
                break (place, 1.0);
            }
            let times = self.lifetimes.inverse_power_integral((place - self.level) / min);
            let survival = libm::pow(times, -alpha);
            if random.share() * (1.0 - end) <= 1.0 - end / survival {
                break (min * times, survival);
            }
        };
        let then = random.share() * (survival - end) + end;
        (min * libm::pow(then, -1.0 / alpha) - age).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawn_lifetimes_follow_the_formulas() {
        for tail in [0.5, 1.0, 1.3, 2.5] {
            let lifetimes = Lifetimes { min: 2.0, max: 5_000.0, pareto_alpha: tail };
            for young in [1.0, 60.0, 5_000.0] {
                // The definition: flows begin evenly over `young` seconds; count those still alive.
                let mut random = Random::new(7, 1);
                let limits = [1.0, 10.0, 100.0, 1_000.0];
                let mut expected = [0_u32; 4];
                let mut alive = 0;
                for _ in 0..400_000 {
                    let age = random.share() * young;
                    let share = random.share() * (1.0 - lifetimes.unbounded_rest())
                        + lifetimes.unbounded_rest();
                    let life = 2.0 * libm::pow(share, -1.0 / tail);
                    alive += u32::from(life > age);
                    for (count, limit) in expected.iter_mut().zip(limits) {
                        *count += u32::from(life - age > limit);
                    }
                }
                let share = f64::from(alive) / 400_000.0;
                let formula = lifetimes.share_younger_than(young) * lifetimes.mean() / young;
                assert!((share - formula).abs() < 0.005, "{tail} {young}: {share} {formula}");
                let drawn = lifetimes.remaining(young);
                let mut found = [0_u32; 4];
                for _ in 0..100_000 {
                    let left = drawn.draw(&mut random);
                    assert!((0.0..=5_000.0).contains(&left));
                    for (count, limit) in found.iter_mut().zip(limits) {
                        *count += u32::from(left > limit);
                    }
                }
                for (found, expected) in found.iter().zip(expected) {
                    let shares =
                        (f64::from(*found) / 1e5, f64::from(expected) / f64::from(alive.max(1)));
                    // Four standard deviations of the smaller sample.
                    let error = 4.0 * (0.25 / f64::from(alive.min(100_000))).sqrt();
                    assert!((shares.0 - shares.1).abs() < error, "{tail} {young}: {shares:?}");
                }
            }
        }
    }

    #[test]
    fn mean_and_survival_have_the_known_values() {
        let lifetimes = Lifetimes { min: 1.0, max: 86_400.0, pareto_alpha: 1.0 };
        assert!((lifetimes.mean() - 11.367).abs() < 0.001, "{}", lifetimes.mean());
        assert!((lifetimes.survival(100.0) - 0.01).abs() < 0.000_02);
        assert_eq!((lifetimes.survival(0.5), lifetimes.survival(86_400.0)), (1.0, 0.0));
        assert_eq!(
            (lifetimes.share_younger_than(0.0), lifetimes.share_younger_than(1e9)),
            (0.0, 1.0)
        );
    }
}
