//! Text tables and percentages, as the command lines print them.

/// Aligns rows in columns, indented by two spaces. The columns in `numbers` are aligned to the right.
#[must_use]
pub fn columns(rows: &[Vec<String>], numbers: &[usize]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let mut widths = vec![0; count];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in rows {
        let start = text.len();
        text.push(' ');
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            text.push(' ');
            let padding = width - cell.chars().count();
            let is_number = numbers.contains(&column);
            text.extend(std::iter::repeat_n(' ', if is_number { padding } else { 0 }));
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', if is_number { 0 } else { padding }));
            text.push(' ');
        }
        text.truncate(start + text[start..].trim_end().len());
        text.push('\n');
    }
    text
}

/// Formats a share from 0 to 1 as a percentage; a share above 0 is never shown as 0.
#[must_use]
pub fn percent(share: f64) -> String {
    match share * 100.0 {
        0.0 => "0%".into(),
        share if share < 0.01 => "<0.01%".into(),
        share => format!("{share:.2}%"),
    }
}

/// Formats a count with its noun: `1 bind`, `3 binds`.
#[must_use]
pub fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let rows = [row(["name", "rows"]), row(["a", "7"])];
        assert_eq!(columns(&rows, &[1]), "  name  rows\n  a        7\n");
        assert_eq!(columns(&rows, &[]), "  name  rows\n  a     7\n");
    }

    #[test]
    fn a_small_share_is_not_shown_as_nothing() {
        assert_eq!([0.0, 0.000_01, 0.25].map(percent), ["0%", "<0.01%", "25.00%"]);
    }
}
