//! The probe schedule: when each target is probed next, with jitter and an even spread. Pure: no clock.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    time::Duration,
};

use crate::{Moment, check::Settings};

/// Distance between first probes, so that a start or reload causes no burst.
const FIRST_GAP: Duration = Duration::from_micros(200);
/// Longest delay before the retry of an inconclusive probe; short intervals use a quarter of theirs.
const RETRY_DELAY: Duration = Duration::from_millis(250);

/// Margin after its timeout at which a probe has ended for certain.
const END_MARGIN: Duration = Duration::from_millis(5);

/// The times of all future probes.
#[derive(Debug)]
pub struct Schedule {
    heap: BinaryHeap<Reverse<(Moment, u64)>>,
    /// The valid time of each target; other entries of the heap are stale.
    due: HashMap<u64, Moment>,
    random: SplitMix64,
}

impl Schedule {
    /// Creates an empty schedule. Different seeds keep checkers from probing in step.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { heap: BinaryHeap::new(), due: HashMap::new(), random: SplitMix64(seed) }
    }

    /// Schedules the first probes of new targets: now, one shortly after the other.
    pub fn start(&mut self, ids: impl IntoIterator<Item = u64>, now: Moment) {
        let mut at = now;
        for id in ids {
            self.set(id, at);
            at += FIRST_GAP;
        }
    }

    /// Removes a target.
    pub fn remove(&mut self, id: u64) {
        self.due.remove(&id);
    }

    /// Returns when the next probe is due.
    pub fn next_due(&mut self) -> Option<Moment> {
        loop {
            let Reverse((at, id)) = *self.heap.peek()?;
            if self.due.get(&id) == Some(&at) {
                return Some(at);
            }
            self.heap.pop();
        }
    }

    /// Removes and returns a target whose probe is due, and when it was due. The caller schedules its
    /// next probe.
    pub fn pop(&mut self, now: Moment) -> Option<(u64, Moment)> {
        let at = self.next_due().filter(|at| *at <= now)?;
        let Reverse((_, id)) = self.heap.pop()?;
        self.due.remove(&id);
        Some((id, at))
    }

    /// Schedules the second probe at a random point of an interval. This spreads targets that were
    /// added together.
    pub fn schedule_second(&mut self, id: u64, settings: &Settings, now: Moment) {
        let least = settings.interval / 2;
        let at = now
            + least.max(settings.timeout + END_MARGIN)
            + settings.interval.mul_f64(self.random.next_fraction());
        self.set(id, at);
    }

    /// Schedules the probe after one that was due at `due`.
    pub fn schedule_next(&mut self, id: u64, settings: &Settings, due: Moment, now: Moment) {
        let jitter =
            f64::from(settings.jitter_percent) / 100.0 * (2.0 * self.random.next_fraction() - 1.0);
        let at = due + settings.interval.mul_f64(1.0 + jitter);
        // Probes that were missed while this machine was suspended are not repeated.
        let at = if at < now {
            now + settings.interval.mul_f64(self.random.next_fraction())
        } else {
            at
        };
        self.set(id, at.max(now + settings.timeout + END_MARGIN));
    }

    /// Schedules a retry soon after an inconclusive probe.
    pub fn schedule_retry(&mut self, id: u64, settings: &Settings, now: Moment) {
        self.set(id, now + RETRY_DELAY.min(settings.interval / 4));
    }

    /// Schedules the probe after one that failed `latency` after its start. The following probes come
    /// earlier to make up for a timeout. So the `fall`-th failure comes at most `fall` intervals after
    /// a backend stops, whether it refuses connections or stays silent.
    pub fn schedule_after_failure(
        &mut self,
        id: u64,
        settings: &Settings,
        latency: Duration,
        now: Moment,
    ) {
        let more = settings.fall.saturating_sub(1);
        if more > 0 && self.due.contains_key(&id) {
            let at = (now + settings.interval).saturating_sub(latency + latency / more);
            self.set(id, at.max(now + END_MARGIN));
        }
    }

    /// Returns whether a probe is more than one interval late: this machine was suspended or overloaded, and
    /// all targets are late together.
    #[must_use]
    pub fn is_stale(settings: &Settings, due: Moment, now: Moment) -> bool {
        now.saturating_sub(due) > settings.interval
    }

    fn set(&mut self, id: u64, at: Moment) {
        self.due.insert(id, at);
        self.heap.push(Reverse((at, id)));
    }
}

/// The SplitMix64 generator, which is not for cryptography.
#[derive(Debug)]
struct SplitMix64(u64);

impl SplitMix64 {
    /// Returns a number from 0 up to, but not including, 1.
    fn next_fraction(&mut self) -> f64 {
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

    /// Runs a schedule until a moment; returns the times of all probes by target.
    fn run(ids: u64, settings: &Settings, until: Moment) -> Vec<Vec<Moment>> {
        let mut schedule = Schedule::new(7);
        schedule.start(0..ids, Moment::ZERO);
        let mut probes = vec![Vec::new(); ids as usize];
        while let Some(now) = schedule.next_due().filter(|now| *now < until) {
            let (id, due) = schedule.pop(now).unwrap();
            let of: &mut Vec<Moment> = &mut probes[id as usize];
            if of.is_empty() {
                schedule.schedule_second(id, settings, now);
            } else {
                schedule.schedule_next(id, settings, due, now);
            }
            of.push(now);
        }
        probes
    }

    #[test]
    fn probes_are_spread_evenly_and_keep_their_interval() {
        let settings = Settings::default();
        let probes = run(1000, &settings, Duration::from_secs(60));
        for of in &probes {
            assert!((28..=32).contains(&of.len()), "{} probes in 60 s", of.len());
            assert!(of[0] < Duration::from_millis(200));
            for pair in of[1..].windows(2) {
                let gap = (pair[1] - pair[0]).as_secs_f64();
                assert!((1.9..=2.1).contains(&gap), "{gap}");
            }
        }
        // From the second interval on no 100 ms hold_down more than twice their share.
        let mut slots = vec![0; 600];
        for at in probes.iter().flatten() {
            slots[at.as_millis() as usize / 100] += 1;
        }
        assert!(slots[30..].iter().all(|count| *count < 100), "{slots:?}");
    }

    #[test]
    fn missed_probes_are_not_made_up_for() {
        let settings = Settings::default();
        let mut schedule = Schedule::new(7);
        schedule.start(0..1000, Moment::ZERO);
        let now = Duration::from_secs(100);
        let mut late = 0;
        while let Some((id, due)) = schedule.pop(now) {
            assert!(Schedule::is_stale(&settings, due, now));
            schedule.schedule_next(id, &settings, due, now);
            late += 1;
        }
        assert_eq!(late, 1000);
        let soon = schedule.due.values().filter(|at| **at < now + Duration::from_millis(100));
        assert!(soon.count() < 100);
    }

    #[test]
    fn rescheduling_replaces_the_previous_time() {
        let settings = Settings::default();
        let mut schedule = Schedule::new(7);
        schedule.start([1, 2], Moment::ZERO);
        schedule.schedule_retry(1, &settings, Duration::from_secs(9));
        schedule.remove(2);
        assert_eq!(schedule.pop(Duration::from_secs(9)), None);
        assert_eq!(schedule.next_due(), Some(Duration::from_millis(9250)));
    }
}
