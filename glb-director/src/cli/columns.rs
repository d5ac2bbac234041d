//! Text tables.

/// Aligns rows under a header; `alignment` has `<` or `>` for each column.
pub(super) fn columns<const N: usize>(
    head: [&str; N],
    alignment: &str,
    rows: impl Iterator<Item = [String; N]>,
) -> String {
    let rows: Vec<[String; N]> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..N).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for ((cell, width), align) in row.iter().zip(&widths).zip(alignment.chars()) {
            if !line.is_empty() {
                line.push_str("  ");
            }
            line += &match align {
                '>' => format!("{cell:>width$}"),
                _ => format!("{cell:<width$}"),
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["x".to_owned(), "10".to_owned()], ["long".to_owned(), "7".to_owned()]];
        let text = columns(["A", "N"], "<>", rows.into_iter());
        assert_eq!(text, "A      N\nx     10\nlong   7\n");
    }
}
