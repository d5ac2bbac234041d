//! Shows the progress of a long simulation.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use crate::Progress;

/// A line on standard error that is updated while the simulation runs; on terminals only.
pub(super) struct ProgressLine {
    started: Instant,
    updated: Instant,
    is_shown: bool,
}

impl ProgressLine {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self { started: now, updated: now, is_shown: false }
    }

    pub(super) fn show(&mut self, progress: Progress) {
        if !io::stderr().is_terminal() || self.updated.elapsed() < Duration::from_millis(500) {
            return;
        }
        (self.updated, self.is_shown) = (Instant::now(), true);
        let Progress { done, all, broken } = progress;
        let left = self.started.elapsed().as_secs_f64() / done as f64 * (all - done) as f64;
        let left = super::seconds(left);
        write(&format!("\r\x1b[K{done} of {all} steps, {broken} flows broken, {left} left"));
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        if self.is_shown {
            write("\r\x1b[K");
        }
    }
}

fn write(text: &str) {
    drop(io::stderr().write_all(text.as_bytes()));
}
