//! The demo's output: permanent lines, and one line that is updated in place.

use std::{
    io::{self, Write},
    time::{Duration, Instant},
};

/// The print interval of the changing line when the output is not a terminal.
const PLAIN_EVERY: Duration = Duration::from_secs(2);

/// The demo's output.
pub(super) struct Screen<'a> {
    out: &'a mut dyn Write,
    terminal: bool,
    live: bool,
    printed: Option<Instant>,
    begun: Instant,
}

impl<'a> Screen<'a> {
    pub(super) fn new(out: &'a mut dyn Write, terminal: bool) -> Self {
        Self { out, terminal, live: false, printed: None, begun: Instant::now() }
    }

    /// Prints a permanent line with the elapsed time.
    pub(super) fn say(&mut self, line: &str) -> io::Result<()> {
        let seconds = self.begun.elapsed().as_secs_f64();
        self.print(&format!("{seconds:6.1} s  {line}"))
    }

    /// Prints a permanent text without changes.
    pub(super) fn print(&mut self, text: &str) -> io::Result<()> {
        self.clear()?;
        writeln!(self.out, "{text}")
    }

    /// Replaces the progress line.
    pub(super) fn live(&mut self, line: &str) -> io::Result<()> {
        if self.terminal {
            // Line wrapping is off, so that the line stays one line in a narrow window.
            write!(self.out, "\r\x1b[2K\x1b[?7l          {line}\x1b[?7h")?;
            self.live = true;
            self.out.flush()?;
        } else if self.printed.is_none_or(|at| at.elapsed() >= PLAIN_EVERY) {
            self.say(&format!("  {line}"))?;
            self.printed = Some(Instant::now());
        }
        Ok(())
    }

    fn clear(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.live) {
            write!(self.out, "\r\x1b[2K")?;
        }
        self.out.flush()
    }
}

impl Drop for Screen<'_> {
    fn drop(&mut self) {
        // A closed output is not an error here.
        self.clear().ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(terminal: bool) -> String {
        let mut out = Vec::new();
        let mut screen = Screen::new(&mut out, terminal);
        screen.live("one").unwrap();
        screen.live("two").unwrap();
        screen.print("three").unwrap();
        drop(screen);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn progress_line_is_rare_without_a_terminal() {
        assert_eq!(shown(false), "   0.0 s    one\nthree\n");
    }

    #[test]
    fn terminal_keeps_only_permanent_lines() {
        let shown = shown(true);
        assert!(shown.contains("one") && shown.ends_with("\r\x1b[2Kthree\n"), "{shown:?}");
    }
}
