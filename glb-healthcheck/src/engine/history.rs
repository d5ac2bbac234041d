//! The last results of a target, two bits each.

use std::fmt;

/// A result in the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// The probe passed.
    Pass,
    /// The probe failed.
    Fail,
    /// The probe failed because of this machine, not of the target.
    Inconclusive,
}

/// The last 32 results.
#[derive(Clone, Copy, Debug, Default)]
pub struct History(u64);

impl History {
    /// Appends a result.
    pub fn push(&mut self, mark: Mark) {
        let bits = match mark {
            Mark::Pass => 1,
            Mark::Fail => 2,
            Mark::Inconclusive => 3,
        };
        self.0 = self.0 << 2 | bits;
    }
}

/// Formats one character for each result, the newest at the right: `.` passed, `X` failed, `?`
/// inconclusive.
impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for place in (0..32).rev() {
            match self.0 >> (2 * place) & 3 {
                0 => {}
                1 => f.write_str(".")?,
                2 => f.write_str("X")?,
                _ => f.write_str("?")?,
            }
        }
        Ok(())
    }
}
