//! The syntax tree of a table file: values with their ranges in the text, the same for TOML and JSON.

mod json;
mod toml;

use std::{ops::Range, path::Path};

use crate::diagnostic::SpannedDiagnostic;

/// A value with its range in the text.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) span: Range<usize>,
    pub(crate) value: Value,
}

/// A value, before its meaning is checked.
#[derive(Debug)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    /// Any other number or date: its text and a description of its kind.
    Other(String, &'static str),
    Str(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key of a map with its value.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_span: Range<usize>,
    pub(crate) node: Node,
}

impl Value {
    /// The kind of value, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Int(_) => "a whole number",
            Self::Other(_, kind) => kind,
            Self::Str(_) => "a string",
            Self::List(_) => "a list",
            Self::Map(_) => "a table of keys",
        }
    }
}

/// The formats of table files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// This project's own format.
    Toml,
    /// GLB's `forwarding_table.json`.
    Json,
}

impl Format {
    /// The format of a file: JSON if its name ends in `.json`, else TOML.
    #[must_use]
    pub fn of_path(path: &Path) -> Self {
        if path.extension().is_some_and(|ext| ext.eq_ignore_ascii_case("json")) {
            Self::Json
        } else {
            Self::Toml
        }
    }
}

/// Parses as much of the text as possible, and adds syntax errors to `findings`.
pub(crate) fn parse(
    form: Format,
    text: &str,
    findings: &mut Vec<SpannedDiagnostic>,
) -> Option<Node> {
    match form {
        Format::Toml => Some(toml::parse(text, findings)),
        Format::Json => json::parse(text, findings),
    }
}
