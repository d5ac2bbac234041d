//! A bar chart of broken connections by event, as SVG.

use std::fmt::Write as _;

use anyhow::Result;

use super::{Report, by_name};

const COLOURS: [&str; 4] = ["#b4423c", "#d9923b", "#5b8fb9", "#3f7f5f"];
const WIDTH: usize = 860;
const LABEL: usize = 190;
const BAR: usize = 11;

/// Lists the events of a comparison in the order in which they ran.
pub(crate) fn event_names(reports: &[Report]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for event in reports.iter().flat_map(|report| &report.events) {
        if !names.contains(&event.name) {
            names.push(event.name.clone());
        }
    }
    names
}

/// Draws the chart.
///
/// # Errors
/// Never: writing to a string does not fail.
pub(crate) fn svg(reports: &[Report]) -> Result<String> {
    let names = event_names(reports);
    let columns: Vec<_> = reports.iter().map(|report| by_name(std::iter::once(report))).collect();
    let most = columns.iter().flat_map(|events| events.values().map(|event| event.broken)).max();
    let most = most.unwrap_or(0).max(1);
    let row = BAR * reports.len() + 12;
    let height = 56 + row * names.len();
    let mut to = String::new();
    writeln!(
        to,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\" role=\"img\" \
         aria-label=\"Broken connections by event\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>"
    )?;
    for (number, report) in reports.iter().enumerate() {
        let x = 10 + number * 210;
        let colour = COLOURS[number % COLOURS.len()];
        writeln!(
            to,
            "<rect x=\"{x}\" y=\"12\" width=\"12\" height=\"12\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"22\" fill=\"#222222\">{}</text>",
            x + 18,
            report.mode.name()
        )?;
    }
    for (place, name) in names.iter().enumerate() {
        let top = 44 + place * row;
        writeln!(
            to,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" fill=\"#222222\">{name}</text>",
            LABEL - 8,
            top + row / 2
        )?;
        for (number, events) in columns.iter().enumerate() {
            let y = top + number * BAR;
            let colour = COLOURS[number % COLOURS.len()];
            let (length, word) = match events.get(name) {
                Some(event) => {
                    (event.broken * (WIDTH - LABEL - 60) / most, event.broken.to_string())
                }
                None => (0, "–".to_owned()),
            };
            writeln!(
                to,
                "<rect x=\"{LABEL}\" y=\"{y}\" width=\"{}\" height=\"{}\" fill=\"{colour}\"/>\
                 <text x=\"{}\" y=\"{}\" font-size=\"10\" fill=\"#444444\">{word}</text>",
                length.max(1),
                BAR - 2,
                LABEL + length + 6,
                y + BAR - 3
            )?;
        }
    }
    to.push_str("</svg>\n");
    Ok(to)
}
