//! A target's last results, two bits each.

use std::fmt;

/// A result, as it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// It passed.
    Pass,
    /// It failed.
    Fail,
    /// Nothing could be said.
    Unsure,
}

/// The last 32 results.
#[derive(Clone, Copy, Debug, Default)]
pub struct History(u64);

impl History {
    /// Adds a result.
    pub fn push(&mut self, mark: Mark) {
        let bits = match mark {
            Mark::Pass => 1,
            Mark::Fail => 2,
            Mark::Unsure => 3,
        };
        self.0 = self.0 << 2 | bits;
    }
}

/// A strip, the last result at the right: `.` passed, `X` failed, `?` said nothing.
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
