//! A file as it is written: values with their places, the same for TOML and JSON.

mod json;
mod toml;

use std::{ops::Range, path::Path};

use crate::diagnostic::SpannedDiagnostic;

/// A value and where it stands in the text.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) span: Range<usize>,
    pub(crate) value: Value,
}

/// What is written, before anybody asks what is meant.
#[derive(Debug)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    /// Any other number or date, as it is written.
    Other(String, &'static str),
    Str(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One key of a map, in the order of the file.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_span: Range<usize>,
    pub(crate) node: Node,
}

impl Value {
    /// What kind of thing this is, for messages.
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

/// The two forms a table is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// This project's own.
    Toml,
    /// GLB's `forwarding_table.json`.
    Json,
}

impl Format {
    /// JSON if the name ends in `.json`, else TOML.
    #[must_use]
    pub fn of_path(path: &Path) -> Self {
        if path.extension().is_some_and(|ext| ext.eq_ignore_ascii_case("json")) {
            Self::Json
        } else {
            Self::Toml
        }
    }
}

/// Reads all that can be read; what cannot goes to `findings`.
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
