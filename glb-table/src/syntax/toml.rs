//! Parses TOML. The parser continues after an error, so that one run reports all errors.

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{Entry, Node, Value};
use crate::diagnostic::SpannedDiagnostic;

pub(super) fn parse(text: &str, findings: &mut Vec<SpannedDiagnostic>) -> Node {
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        findings.push(SpannedDiagnostic::new(
            &span,
            "this is not TOML",
            error.message(),
            "see https://toml.io for the syntax",
        ));
    }
    let span = table.span();
    Node { span, value: map(table.into_inner()) }
}

fn map(table: DeTable<'_>) -> Value {
    let mut entries: Vec<Entry> = table
        .into_iter()
        .map(|(key, value)| Entry {
            key_span: key.span(),
            key: key.into_inner().into_owned(),
            node: node(value),
        })
        .collect();
    // The parser sorts keys by name, and errors must be in the file's order.
    entries.sort_by_key(|entry| entry.key_span.start);
    Value::Map(entries)
}

fn node(value: Spanned<DeValue<'_>>) -> Node {
    let span = value.span();
    let value = match value.into_inner() {
        DeValue::String(text) => Value::Str(text.into_owned()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::Int(number),
            Err(_) => Value::Other(number.to_string(), "a whole number that is too large"),
        },
        DeValue::Float(number) => Value::Other(number.to_string(), "a number with a fraction"),
        DeValue::Boolean(value) => Value::Bool(value),
        DeValue::Datetime(date) => Value::Other(date.to_string(), "a date"),
        DeValue::Array(list) => Value::List(list.into_iter().map(node).collect()),
        DeValue::Table(table) => map(table),
    };
    Node { span, value }
}
