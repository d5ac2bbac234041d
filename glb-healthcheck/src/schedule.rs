//! When which target is probed: each at its own pace, all of them spread over time. Pure.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    time::Duration,
};

use crate::{Moment, check::Pace};

/// First probes go out this far apart, so that a start or reload is no burst.
const FIRST_GAP: Duration = Duration::from_micros(200);
/// Who could not be judged is asked again after this, or a quarter of the interval.
const AGAIN: Duration = Duration::from_millis(250);

/// So long after its timeout a probe has surely ended.
const ENDED: Duration = Duration::from_millis(5);

/// The probes to come.
#[derive(Debug)]
pub struct Schedule {
    heap: BinaryHeap<Reverse<(Moment, u64)>>,
    /// The valid entry of each id; all others in the heap are stale.
    due: HashMap<u64, Moment>,
    dice: Dice,
}

impl Schedule {
    /// An empty schedule. Checkers with different seeds do not march in step.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { heap: BinaryHeap::new(), due: HashMap::new(), dice: Dice(seed) }
    }

    /// Takes in new targets: their first probes go out at once, one shortly after the other.
    pub fn start(&mut self, ids: impl IntoIterator<Item = u64>, now: Moment) {
        let mut at = now;
        for id in ids {
            self.set(id, at);
            at += FIRST_GAP;
        }
    }

    /// Forgets a target.
    pub fn remove(&mut self, id: u64) {
        self.due.remove(&id);
    }

    /// When the next probe is due.
    pub fn wake(&mut self) -> Option<Moment> {
        loop {
            let Reverse((at, id)) = *self.heap.peek()?;
            if self.due.get(&id) == Some(&at) {
                return Some(at);
            }
            self.heap.pop();
        }
    }

    /// A target whose probe is due, and when it was. It must be given its next time.
    pub fn pop(&mut self, now: Moment) -> Option<(u64, Moment)> {
        let at = self.wake().filter(|at| *at <= now)?;
        let Reverse((_, id)) = self.heap.pop()?;
        self.due.remove(&id);
        Some((id, at))
    }

    /// Plans the probe after the first one: anywhere in the length of an interval, so that targets
    /// that came together are spread evenly from now on.
    pub fn spread(&mut self, id: u64, pace: &Pace, now: Moment) {
        let least = pace.interval / 2;
        let at = now + least.max(pace.timeout + ENDED) + pace.interval.mul_f64(self.dice.roll());
        self.set(id, at);
    }

    /// Plans the probe after one that was due at `due`.
    pub fn next(&mut self, id: u64, pace: &Pace, due: Moment, now: Moment) {
        let jitter = f64::from(pace.jitter_percent) / 100.0 * (2.0 * self.dice.roll() - 1.0);
        let at = due + pace.interval.mul_f64(1.0 + jitter);
        // After a standstill of this machine nothing is made up for.
        let at = if at < now { now + pace.interval.mul_f64(self.dice.roll()) } else { at };
        self.set(id, at.max(now + pace.timeout + ENDED));
    }

    /// Plans another probe soon, where the last one said nothing.
    pub fn again(&mut self, id: u64, pace: &Pace, now: Moment) {
        self.set(id, now + AGAIN.min(pace.interval / 4));
    }

    /// Plans the probe after one that failed `latency` after its beginning. What a timeout costs is
    /// made up for by the probes that follow, so that the `fall`-th failure is known `fall` intervals
    /// after a death at the latest, whether nobody answers or somebody refuses.
    pub fn after_failure(&mut self, id: u64, pace: &Pace, latency: Duration, now: Moment) {
        let more = pace.fall.saturating_sub(1);
        if more > 0 && self.due.contains_key(&id) {
            let at = (now + pace.interval).saturating_sub(latency + latency / more);
            self.set(id, at.max(now + ENDED));
        }
    }

    /// Whether a probe that was due at `due` comes so late that its whole interval has gone by: this
    /// machine stood still, and all targets are late together.
    #[must_use]
    pub fn is_stale(pace: &Pace, due: Moment, now: Moment) -> bool {
        now.saturating_sub(due) > pace.interval
    }

    fn set(&mut self, id: u64, at: Moment) {
        self.due.insert(id, at);
        self.heap.push(Reverse((at, id)));
    }
}

/// Splitmix64: evenly spread numbers; nobody's secret depends on them.
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    /// From 0 up to, not including, 1.
    fn roll(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a schedule for so long; returns the moments of all probes by id.
    fn run(ids: u64, pace: &Pace, until: Moment) -> Vec<Vec<Moment>> {
        let mut schedule = Schedule::new(7);
        schedule.start(0..ids, Moment::ZERO);
        let mut probes = vec![Vec::new(); ids as usize];
        while let Some(now) = schedule.wake().filter(|now| *now < until) {
            let (id, due) = schedule.pop(now).unwrap();
            let of: &mut Vec<Moment> = &mut probes[id as usize];
            if of.is_empty() {
                schedule.spread(id, pace, now);
            } else {
                schedule.next(id, pace, due, now);
            }
            of.push(now);
        }
        probes
    }

    #[test]
    fn probes_are_spread_and_none_is_forgotten() {
        let pace = Pace::default();
        let probes = run(1000, &pace, Duration::from_secs(60));
        for of in &probes {
            assert!((28..=32).contains(&of.len()), "{} probes in 60 s", of.len());
            assert!(of[0] < Duration::from_millis(200));
            for pair in of[1..].windows(2) {
                let gap = (pair[1] - pair[0]).as_secs_f64();
                assert!((1.9..=2.1).contains(&gap), "{gap}");
            }
        }
        // From the second interval on no 100 ms hold more than twice their share.
        let mut slots = vec![0; 600];
        for at in probes.iter().flatten() {
            slots[at.as_millis() as usize / 100] += 1;
        }
        assert!(slots[30..].iter().all(|count| *count < 100), "{slots:?}");
    }

    #[test]
    fn a_standstill_is_no_storm() {
        let pace = Pace::default();
        let mut schedule = Schedule::new(7);
        schedule.start(0..1000, Moment::ZERO);
        let now = Duration::from_secs(100);
        let mut late = 0;
        while let Some((id, due)) = schedule.pop(now) {
            assert!(Schedule::is_stale(&pace, due, now));
            schedule.next(id, &pace, due, now);
            late += 1;
        }
        assert_eq!(late, 1000);
        let soon = schedule.due.values().filter(|at| **at < now + Duration::from_millis(100));
        assert!(soon.count() < 100);
    }

    #[test]
    fn a_plan_replaces_the_one_before() {
        let pace = Pace::default();
        let mut schedule = Schedule::new(7);
        schedule.start([1, 2], Moment::ZERO);
        schedule.again(1, &pace, Duration::from_secs(9));
        schedule.remove(2);
        assert_eq!(schedule.pop(Duration::from_secs(9)), None);
        assert_eq!(schedule.wake(), Some(Duration::from_millis(9250)));
    }
}
