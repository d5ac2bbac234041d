//! What the watcher sees: lines that stay, and one that changes.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

/// Where the output is not a terminal, the changing line is printed this often.
const PLAIN_EVERY: Duration = Duration::from_secs(2);

/// Writes to stdout.
#[derive(Debug)]
pub(super) struct Screen {
    terminal: bool,
    live: bool,
    printed: Option<Instant>,
    begun: Instant,
}

impl Screen {
    pub(super) fn new() -> Self {
        Self {
            terminal: io::stdout().is_terminal(),
            live: false,
            printed: None,
            begun: Instant::now(),
        }
    }

    /// A line that stays, with the time since the beginning.
    pub(super) fn say(&mut self, line: &str) {
        self.clear();
        println!("{:6.1} s  {line}", self.begun.elapsed().as_secs_f64());
    }

    /// A text that stays, as it is.
    pub(super) fn print(&mut self, text: &str) {
        self.clear();
        println!("{text}");
    }

    /// A line that replaces the last one of its kind.
    pub(super) fn live(&mut self, line: &str) {
        if self.terminal {
            // Without wrapping, so that one line stays one line in a narrow window.
            print!("\r\x1b[2K\x1b[?7l          {line}\x1b[?7h");
            // A closed terminal is noticed by the signal that comes with it.
            io::stdout().flush().ok();
            self.live = true;
        } else if self.printed.is_none_or(|at| at.elapsed() >= PLAIN_EVERY) {
            println!("{:6.1} s    {line}", self.begun.elapsed().as_secs_f64());
            self.printed = Some(Instant::now());
        }
    }

    fn clear(&mut self) {
        if std::mem::take(&mut self.live) {
            print!("\r\x1b[2K");
            io::stdout().flush().ok();
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.clear();
    }
}
