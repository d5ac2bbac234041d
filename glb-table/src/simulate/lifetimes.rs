//! How long flows live: mostly short, some very long.

use serde::Serialize;

use super::random::Random;

/// A bounded Pareto distribution: no flow lives shorter than `shortest` or longer than `longest`, and
/// of those in between a flow that has lived for t lives on to 2t with a chance of about 2^−tail.
///
/// Computed with `libm`, so the same on every machine.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Lifetimes {
    /// In seconds, above 0.
    pub shortest: f64,
    /// In seconds, above `shortest`.
    pub longest: f64,
    /// The exponent, above 0; the smaller, the more live long.
    pub tail: f64,
}

impl Lifetimes {
    /// The share of all flows that live longer than `age` seconds.
    #[must_use]
    pub fn outlive(&self, age: f64) -> f64 {
        if age <= self.shortest {
            1.0
        } else if age >= self.longest {
            0.0
        } else {
            (libm::pow(age / self.shortest, -self.tail) - self.end()) / (1.0 - self.end())
        }
    }

    /// How long a flow lives in the mean, in seconds.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.outlived(self.longest)
    }

    /// Of the flows that live at one moment, the share that began less than `age` seconds before.
    #[must_use]
    pub fn younger(&self, age: f64) -> f64 {
        self.outlived(age.min(self.longest)) / self.mean()
    }

    /// Draws how long flows still live that are picked among those that live at one moment and began
    /// less than `young` seconds before.
    pub(super) fn left(self, young: f64) -> Left {
        let young = young.min(self.longest);
        let (end, level, falling) =
            (self.end(), young.min(self.shortest), self.power_outlived(young));
        Left { lifetimes: self, end, level, falling }
    }

    /// What would outlive `longest` without a bound.
    fn end(&self) -> f64 {
        libm::pow(self.longest / self.shortest, -self.tail)
    }

    /// The integral of [`Self::outlive`] from 0 to `age`.
    fn outlived(&self, age: f64) -> f64 {
        if age <= self.shortest {
            return age;
        }
        let end = self.end();
        self.shortest + (self.power_outlived(age) - end * (age - self.shortest)) / (1.0 - end)
    }

    /// The integral of (x / shortest)^−tail from `shortest` to `age`.
    fn power_outlived(&self, age: f64) -> f64 {
        let times = (age / self.shortest).max(1.0);
        self.shortest
            * match self.is_one() {
                true => libm::log(times),
                false => (libm::pow(times, 1.0 - self.tail) - 1.0) / (1.0 - self.tail),
            }
    }

    /// Where that integral, in units of `shortest`, is `rest`; in the same units.
    fn power_age(&self, rest: f64) -> f64 {
        match self.is_one() {
            true => libm::exp(rest),
            false => libm::pow(1.0 + rest * (1.0 - self.tail), 1.0 / (1.0 - self.tail)),
        }
    }

    fn is_one(&self) -> bool {
        (self.tail - 1.0).abs() < 1e-9
    }
}

/// How long flows of some age still live.
#[derive(Clone, Copy, Debug)]
pub(super) struct Left {
    lifetimes: Lifetimes,
    end: f64,
    /// The integral of the density of ages, up to the shortest life and from there on.
    level: f64,
    falling: f64,
}

impl Left {
    /// In seconds.
    pub(super) fn draw(&self, random: &mut Random) -> f64 {
        let (Lifetimes { shortest, tail, .. }, end) = (self.lifetimes, self.end);
        // Its age: by the unbounded distribution first, which can be inverted. What the bound takes
        // away is rejected, which is little but near the bound. `now` is the unbounded chance to get
        // so old.
        let (age, now) = loop {
            let place = random.share() * (self.level + self.falling);
            if place <= self.level {
                break (place, 1.0);
            }
            let times = self.lifetimes.power_age((place - self.level) / shortest);
            let now = libm::pow(times, -tail);
            if random.share() * (1.0 - end) <= 1.0 - end / now {
                break (shortest * times, now);
            }
        };
        let then = random.share() * (now - end) + end;
        (shortest * libm::pow(then, -1.0 / tail) - age).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drawn_is_as_the_formulas_say() {
        for tail in [0.5, 1.0, 1.3, 2.5] {
            let lifetimes = Lifetimes { shortest: 2.0, longest: 5_000.0, tail };
            for young in [1.0, 60.0, 5_000.0] {
                // By the definition: flows that begin evenly over `young` seconds, those that live on.
                let mut random = Random::new(7, 1);
                let limits = [1.0, 10.0, 100.0, 1_000.0];
                let mut expected = [0_u32; 4];
                let mut alive = 0;
                for _ in 0..400_000 {
                    let age = random.share() * young;
                    let share = random.share() * (1.0 - lifetimes.end()) + lifetimes.end();
                    let life = 2.0 * libm::pow(share, -1.0 / tail);
                    alive += u32::from(life > age);
                    for (count, limit) in expected.iter_mut().zip(limits) {
                        *count += u32::from(life - age > limit);
                    }
                }
                let share = f64::from(alive) / 400_000.0;
                let formula = lifetimes.younger(young) * lifetimes.mean() / young;
                assert!((share - formula).abs() < 0.005, "{tail} {young}: {share} {formula}");
                let drawn = lifetimes.left(young);
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
    fn the_mean_and_the_tail_are_known() {
        let lifetimes = Lifetimes { shortest: 1.0, longest: 86_400.0, tail: 1.0 };
        assert!((lifetimes.mean() - 11.367).abs() < 0.001, "{}", lifetimes.mean());
        assert!((lifetimes.outlive(100.0) - 0.01).abs() < 0.000_02);
        assert_eq!((lifetimes.outlive(0.5), lifetimes.outlive(86_400.0)), (1.0, 0.0));
        assert_eq!((lifetimes.younger(0.0), lifetimes.younger(1e9)), (0.0, 1.0));
    }
}
