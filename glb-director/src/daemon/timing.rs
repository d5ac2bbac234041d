//! How long each step of a reload took.

use std::time::Instant;

use serde::{Deserialize, Serialize};

/// What a request for a change led to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// The generation in force now.
    pub generation: u64,
    /// Whether it is another one than before.
    pub changed: bool,
    /// Largest share of a table's established flows that the change can break, from 0 to 1.
    pub at_risk: f64,
    /// What should be known about it; empty if nothing.
    pub warning: String,
    /// From its beginning to the new generation in force, in milliseconds.
    pub milliseconds: f64,
    /// What that consisted of: names of steps and milliseconds.
    pub steps: Vec<(String, f64)>,
}

/// A stop watch.
#[derive(Debug)]
pub(super) struct Steps {
    begun: Instant,
    last: Instant,
    steps: Vec<(String, f64)>,
}

impl Steps {
    pub(super) fn begin() -> Self {
        let now = Instant::now();
        Self { begun: now, last: now, steps: Vec::new() }
    }

    /// A step has ended.
    pub(super) fn done(&mut self, name: &str) {
        let now = Instant::now();
        self.steps.push((name.to_owned(), (now - self.last).as_secs_f64() * 1e3));
        self.last = now;
    }

    /// All has ended.
    pub(super) fn end(self, generation: u64) -> Done {
        let milliseconds = (self.last - self.begun).as_secs_f64() * 1e3;
        Done { generation, changed: true, milliseconds, steps: self.steps, ..Done::default() }
    }
}
