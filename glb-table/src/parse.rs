//! From what is written to what is meant, with every mistake on the way.

use std::{collections::HashMap, ops::Range, path::Path};

use crate::{
    LoadError, TableSet,
    diagnostic::{Source, SpannedDiagnostic},
    schema,
    syntax::{self, Entry, Format, Node, Value},
    validate::{self, Places},
};

/// Where a finding goes while a file is read.
#[derive(Default)]
pub(crate) struct Reader {
    pub(crate) errors: Vec<SpannedDiagnostic>,
    pub(crate) warnings: Vec<SpannedDiagnostic>,
    /// Places of keys and seeds, never to be shown.
    pub(crate) secrets: Vec<Range<usize>>,
}

impl Reader {
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

/// A map whose keys are taken out one by one; what is left at the end is unknown.
pub(crate) struct Fields<'n> {
    pub(crate) span: Range<usize>,
    what: &'static str,
    known: &'static [&'static str],
    entries: HashMap<&'n str, &'n Entry>,
}

impl<'n> Fields<'n> {
    /// None (and an error) if the node is not a map.
    pub(crate) fn of(
        reader: &mut Reader,
        node: &'n Node,
        what: &'static str,
        known: &'static [&'static str],
    ) -> Option<Self> {
        let Value::Map(entries) = &node.value else {
            let message = format!("{what} must be a table of keys");
            reader.error(
                &node.span,
                message,
                format!("this is {}", node.value.kind()),
                keys_help(known),
            );
            return None;
        };
        for entry in entries.iter().filter(|entry| !known.contains(&entry.key.as_str())) {
            let message = format!("unknown key `{}` in {what}", shown(&entry.key));
            let near = known
                .iter()
                .map(|name| (strsim::osa_distance(name, &entry.key.to_lowercase()), name))
                .filter(|(distance, name)| *distance <= 1 + name.len() / 4)
                .min();
            let help = match near {
                Some((_, name)) => format!("did you mean `{name}`?"),
                None => keys_help(known),
            };
            reader.error(&entry.key_span, message, "not known here", help);
        }
        let entries = entries.iter().map(|entry| (entry.key.as_str(), entry)).collect();
        Some(Self { span: node.span.clone(), what, known, entries })
    }

    /// The key's value; JSON's `null` stands for itself.
    pub(crate) fn get(&self, key: &str) -> Option<&'n Node> {
        debug_assert!(self.known.contains(&key), "{key} of {}", self.what);
        self.entries.get(key).map(|entry| &entry.node)
    }

    /// The key's value, which must be there.
    pub(crate) fn need(&self, reader: &mut Reader, key: &str, help: &str) -> Option<&'n Node> {
        let node = self.get(key);
        if node.is_none() {
            let message = format!("{} has no `{key}`", self.what);
            reader.error(&head(&self.span), message, format!("`{key}` is missing"), help);
        }
        node
    }
}

/// Only the start of a long place, so that the mark is readable.
fn head(span: &Range<usize>) -> Range<usize> {
    span.start..span.end.min(span.start + 12)
}

fn keys_help(known: &[&str]) -> String {
    format!("known keys are {}", known.join(", "))
}

/// A stranger's text in a message: short, and without control characters.
pub(crate) fn shown(text: &str) -> String {
    let mut out: String = text.chars().take(40).flat_map(char::escape_debug).collect();
    if text.chars().count() > 40 {
        out.push('…');
    }
    out
}

/// The lines that these findings are in.
fn lines_of<'t>(text: &'t str, findings: &[SpannedDiagnostic]) -> Vec<&'t str> {
    let line = |finding: &SpannedDiagnostic| {
        let at = finding.span.start.min(text.len());
        let start = text.as_bytes()[..at]
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |before| before + 1);
        text.get(start..).and_then(|rest| rest.lines().next()).unwrap_or("")
    };
    // A file with more than this many is no table.
    findings.iter().take(100).map(line).collect()
}

/// Reads a whole file.
pub(crate) fn read(path: &Path, form: Format, text: &str) -> Result<TableSet, LoadError> {
    let mut reader = Reader::default();
    let root = syntax::parse(form, text, &mut reader.errors);
    let unread = lines_of(text, &reader.errors);
    let mut set = TableSet { tables: Vec::new(), warnings: Vec::new(), healthchecks: None };
    let mut places = Places::default();
    if let Some(root) = &root {
        schema::file(&mut reader, form, root, &mut set, &mut places);
        validate::set(&mut reader, &set, &places);
    }
    // What seems to be missing may stand in a line that could not be read.
    reader.errors.retain(|finding| {
        let missing = finding.found.strip_prefix('`').and_then(|rest| rest.split_once('`'));
        missing.is_none_or(|(key, _)| !unread.iter().any(|line| line.contains(key)))
    });
    let source = Source::new(path, text, &reader.secrets);
    let problems = |mut findings: Vec<SpannedDiagnostic>| {
        findings.sort_by_key(|finding| finding.span.start);
        findings.into_iter().map(|finding| source.problem(finding)).collect::<Vec<_>>()
    };
    if reader.errors.is_empty() {
        set.warnings = problems(reader.warnings);
        Ok(set)
    } else {
        Err(LoadError::Invalid { path: path.to_owned(), problems: problems(reader.errors) })
    }
}
