//! Turns the text of a table file into a table set, and collects all errors on the way.

use std::{collections::HashMap, ops::Range, path::Path};

use crate::{
    LoadError, TableSet,
    diagnostic::{MaskedSource, SpannedDiagnostic},
    schema,
    syntax::{self, Entry, Format, Node, Value},
    validate::{self, SourceRanges},
};

/// Collects errors and warnings while a file is parsed.
#[derive(Default)]
pub(crate) struct Diagnostics {
    pub(crate) errors: Vec<SpannedDiagnostic>,
    pub(crate) warnings: Vec<SpannedDiagnostic>,
    /// The ranges of keys and seeds, which must never be excerpt.
    pub(crate) secrets: Vec<Range<usize>>,
}

impl Diagnostics {
    pub(crate) fn error(
        &mut self,
        span: &Range<usize>,
        message: impl Into<String>,
        found: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.errors.push(SpannedDiagnostic::new(span, message, found, help));
    }

    pub(crate) fn warn(
        &mut self,
        span: &Range<usize>,
        message: impl Into<String>,
        found: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.warnings.push(SpannedDiagnostic::new(span, message, found, help));
    }
}

/// The keys of a map, all of them known.
pub(crate) struct Fields<'n> {
    pub(crate) span: Range<usize>,
    what: &'static str,
    known: &'static [&'static str],
    entries: HashMap<&'n str, &'n Entry>,
}

impl<'n> Fields<'n> {
    /// Reports unknown keys. Returns `None`, with an error, if the node is not a map.
    pub(crate) fn of(
        diagnostics: &mut Diagnostics,
        node: &'n Node,
        what: &'static str,
        known: &'static [&'static str],
    ) -> Option<Self> {
        let Value::Map(entries) = &node.value else {
            let message = format!("{what} must be a table of keys");
            diagnostics.error(
                &node.span,
                message,
                format!("this is {}", node.value.kind()),
                keys_help(known),
            );
            return None;
        };
        for entry in entries.iter().filter(|entry| !known.contains(&entry.key.as_str())) {
            let message = format!("unknown key `{}` in {what}", excerpt(&entry.key));
            let near = known
                .iter()
                .map(|name| (strsim::osa_distance(name, &entry.key.to_lowercase()), name))
                .filter(|(distance, name)| *distance <= 1 + name.len() / 4)
                .min();
            let help = match near {
                Some((_, name)) => format!("did you mean `{name}`?"),
                None => keys_help(known),
            };
            diagnostics.error(&entry.key_span, message, "unknown key", help);
        }
        let entries = entries.iter().map(|entry| (entry.key.as_str(), entry)).collect();
        Some(Self { span: node.span.clone(), what, known, entries })
    }

    /// The value of a key, if it is given. JSON's `null` is a value.
    pub(crate) fn get(&self, key: &str) -> Option<&'n Node> {
        debug_assert!(self.known.contains(&key), "{key} of {}", self.what);
        self.entries.get(key).map(|entry| &entry.node)
    }

    /// The value of a required key; reports an error if it is missing.
    pub(crate) fn need(
        &self,
        diagnostics: &mut Diagnostics,
        key: &str,
        help: &str,
    ) -> Option<&'n Node> {
        let node = self.get(key);
        if node.is_none() {
            let message = format!("{} has no `{key}`", self.what);
            diagnostics.error(&head(&self.span), message, format!("`{key}` is missing"), help);
        }
        node
    }
}

/// The start of a range, so that the mark under a long range stays readable.
fn head(span: &Range<usize>) -> Range<usize> {
    span.start..span.end.min(span.start + 12)
}

fn keys_help(known: &[&str]) -> String {
    format!("known keys are {}", known.join(", "))
}

/// Shortens a text from a file for a message, and escapes control characters.
pub(crate) fn excerpt(text: &str) -> String {
    let mut out: String = text.chars().take(40).flat_map(char::escape_debug).collect();
    if text.chars().count() > 40 {
        out.push('…');
    }
    out
}

/// The lines that contain these diagnostics.
fn lines_of<'t>(text: &'t str, findings: &[SpannedDiagnostic]) -> Vec<&'t str> {
    let line = |finding: &SpannedDiagnostic| {
        let at = finding.span.start.min(text.len());
        let start = text.as_bytes()[..at]
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |before| before + 1);
        text.get(start..).and_then(|rest| rest.lines().next()).unwrap_or("")
    };
    // More syntax errors than this would not help anyone.
    findings.iter().take(100).map(line).collect()
}

/// Parses and validates a whole file.
pub(crate) fn read(path: &Path, form: Format, text: &str) -> Result<TableSet, LoadError> {
    let mut diagnostics = Diagnostics::default();
    let root = syntax::parse(form, text, &mut diagnostics.errors);
    let unread = lines_of(text, &diagnostics.errors);
    let mut set = TableSet { tables: Vec::new(), warnings: Vec::new(), healthchecks: None };
    let mut places = SourceRanges::default();
    if let Some(root) = &root {
        schema::file(&mut diagnostics, form, root, &mut set, &mut places);
        validate::set(&mut diagnostics, &set, &places);
    }
    // A key that seems to be missing may be in a line that could not be parsed.
    diagnostics.errors.retain(|finding| {
        let missing = finding.found.strip_prefix('`').and_then(|rest| rest.split_once('`'));
        missing.is_none_or(|(key, _)| !unread.iter().any(|line| line.contains(key)))
    });
    let source = MaskedSource::new(path, text, &diagnostics.secrets);
    let problems = |mut findings: Vec<SpannedDiagnostic>| {
        findings.sort_by_key(|finding| finding.span.start);
        findings.into_iter().map(|finding| source.locate(finding)).collect::<Vec<_>>()
    };
    if diagnostics.errors.is_empty() {
        set.warnings = problems(diagnostics.warnings);
        Ok(set)
    } else {
        Err(LoadError::Invalid { path: path.to_owned(), problems: problems(diagnostics.errors) })
    }
}
