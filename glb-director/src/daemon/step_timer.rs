//! Measures how long each step of an activation takes.

use std::time::Instant;

/// A stopwatch with named laps.
#[derive(Debug)]
pub(super) struct StepTimer {
    started: Instant,
    last: Instant,
    steps: Vec<(String, f64)>,
}

impl StepTimer {
    pub(super) fn start() -> Self {
        let now = Instant::now();
        Self { started: now, last: now, steps: Vec::new() }
    }

    /// Ends the step `name`, which began with the end of the step before.
    pub(super) fn step(&mut self, name: &str) {
        let now = Instant::now();
        self.steps.push((name.to_owned(), (now - self.last).as_secs_f64() * 1e3));
        self.last = now;
    }

    /// The milliseconds from the start to the end of the last step.
    pub(super) fn milliseconds(&self) -> f64 {
        (self.last - self.started).as_secs_f64() * 1e3
    }

    /// The steps, each with its milliseconds.
    pub(super) fn into_steps(self) -> Vec<(String, f64)> {
        self.steps
    }
}
