//! Checks with their results, and text tables.

use std::fmt::{self, Write as _};

/// An expectation and its result.
#[derive(Clone, Debug)]
pub struct Check {
    /// The expectation, as a sentence.
    pub name: String,
    /// Whether it held.
    pub held: bool,
    /// The observation.
    pub seen: String,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if self.held { "ok    " } else { "FAILED" };
        write!(f, "{mark}  {}", self.name)?;
        if !self.seen.is_empty() {
            write!(f, ": {}", self.seen)?;
        }
        Ok(())
    }
}

/// A text table: each row has a name and one cell per column.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<(String, Vec<String>)>,
}

impl Table {
    pub(crate) fn new(columns: &[&str]) -> Self {
        let columns = columns.iter().map(|&column| column.to_owned()).collect();
        Self { rows: vec![(String::new(), columns)] }
    }

    pub(crate) fn row(&mut self, name: &str, cells: impl IntoIterator<Item = String>) {
        self.rows.push((name.to_owned(), cells.into_iter().collect()));
    }

    /// Adds a row of numbers.
    pub(crate) fn numbers(&mut self, name: &str, cells: impl IntoIterator<Item = u64>) {
        self.row(name, cells.into_iter().map(grouped));
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |text: &String| text.chars().count();
        let name_width = self.rows.iter().map(|(name, _)| count(name)).max().unwrap_or(0);
        let columns = self.rows.iter().map(|(_, cells)| cells.len()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|i| self.rows.iter().filter_map(|(_, c)| c.get(i)).map(count).max().unwrap_or(0))
            .collect();
        for (i, (name, cells)) in self.rows.iter().enumerate() {
            let mut line = format!("  {name:<name_width$}");
            for (cell, width) in cells.iter().zip(&widths) {
                write!(line, "  {cell:>width$}")?;
            }
            writeln!(f, "{}", line.trim_end())?;
            if i == 0 {
                let rule = name_width + widths.iter().map(|width| width + 2).sum::<usize>();
                writeln!(f, "  {}", "-".repeat(rule))?;
            }
        }
        Ok(())
    }
}

/// Formats 1234567 as 1,234,567.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (21_845_123, "21,845,123")]
        {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["a", "bbbb"]);
        table.numbers("packets", [1000, 2]);
        assert_eq!(
            table.to_string(),
            "               a  bbbb\n  --------------------\n  packets  1,000     2\n"
        );
    }
}
