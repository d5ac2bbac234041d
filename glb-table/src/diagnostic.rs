//! Diagnostics: what is wrong in a table file, where, and how to mend it.

use std::{
    fmt,
    ops::Range,
    path::{Path, PathBuf},
};

use miette::{
    GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteSpanContents, SourceCode, SourceSpan,
};

/// Largest number of diagnostics that are printed for one file. All of them are kept.
const MAX_PRINTED: usize = 50;
/// Longest snippet in bytes. A longer line, as in minified JSON, is cut around the place.
const MAX_SNIPPET: usize = 160;

/// An error or warning about a place in a table file.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Diagnostic {
    /// The file, as it was named by the caller.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The text of the line, with keys and seeds masked. Long lines are cut around the place.
    pub snippet: String,
    /// What is wrong.
    pub message: String,
    /// What was found at the place.
    pub found: String,
    /// How to mend it.
    pub help: String,
    /// Start and length of the marked text in `snippet`, in bytes.
    #[serde(skip)]
    pub mark: (usize, usize),
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)
    }
}

impl std::error::Error for Diagnostic {}

impl miette::Diagnostic for Diagnostic {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(&self.help))
    }
    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(self)
    }
    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let label = LabeledSpan::new(Some(self.found.clone()), self.mark.0, self.mark.1);
        Some(Box::new(std::iter::once(label)))
    }
}

/// The source is the snippet alone, so that nothing else of the file is ever shown.
impl SourceCode for Diagnostic {
    fn read_span<'a>(
        &'a self,
        _: &SourceSpan,
        _: usize,
        _: usize,
    ) -> Result<Box<dyn miette::SpanContents<'a> + 'a>, miette::MietteError> {
        Ok(Box::new(MietteSpanContents::new_named(
            self.file.clone(),
            self.snippet.as_bytes(),
            SourceSpan::from((0, self.snippet.len())),
            self.line - 1,
            self.column.saturating_sub(1),
            1,
        )))
    }
}

/// A diagnostic before its file is known: a range of the text and the messages.
#[derive(Clone, Debug)]
pub(crate) struct SpannedDiagnostic {
    pub(crate) span: Range<usize>,
    pub(crate) message: String,
    pub(crate) found: String,
    pub(crate) help: String,
}

impl SpannedDiagnostic {
    pub(crate) fn new(
        span: &Range<usize>,
        message: impl Into<String>,
        found: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Self { span: span.clone(), message: message.into(), found: found.into(), help: help.into() }
    }
}

/// The text of a file with its secrets masked.
pub(crate) struct MaskedSource {
    file: String,
    text: String,
    /// Where each line starts.
    lines: Vec<usize>,
}

impl MaskedSource {
    /// Masks the ranges in `secrets`, and every long run of hex digits: in a file that does not parse,
    /// the ranges of keys are unknown.
    pub(crate) fn new(file: &Path, text: &str, secrets: &[Range<usize>]) -> Self {
        let mut bytes = text.as_bytes().to_vec();
        for span in secrets {
            if let Some(secret) = bytes.get_mut(span.clone()) {
                secret
                    .iter_mut()
                    .filter(|b| !matches!(**b, b'"' | b'\'' | b'\n'))
                    .for_each(|b| *b = b'*');
            }
        }
        for run in bytes.split_mut(|b| !b.is_ascii_hexdigit()).filter(|run| run.len() >= 20) {
            run.fill(b'*');
        }
        let lines = std::iter::once(0)
            .chain(
                text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1),
            )
            .collect();
        // Masking a part of a character leaves invalid UTF-8.
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Self { file: file.display().to_string(), text, lines }
    }

    /// The line and column, from 1, of a byte of the text.
    pub(crate) fn place(&self, at: usize) -> (usize, usize) {
        let at = char_start(&self.text, at);
        let line = self.lines.partition_point(|&start| start <= at).max(1);
        let column = self.text[self.lines[line - 1]..at].chars().count() + 1;
        (line, column)
    }

    /// The diagnostic with its file, line, column and snippet.
    pub(crate) fn locate(&self, finding: SpannedDiagnostic) -> Diagnostic {
        let (line, column) = self.place(finding.span.start);
        let start = self.lines[line - 1];
        let whole = self.text[start..].lines().next().unwrap_or("");
        let at = char_start(&self.text, finding.span.start) - start;
        let at = at.min(whole.len());
        let (from, to) = if whole.len() > MAX_SNIPPET {
            (
                char_start(whole, at.saturating_sub(MAX_SNIPPET / 2)),
                char_start(whole, at + MAX_SNIPPET / 2),
            )
        } else {
            (0, whole.len())
        };
        let to = to.max(at);
        let length = finding.span.end.saturating_sub(finding.span.start).clamp(1, (to - at).max(1));
        Diagnostic {
            file: self.file.clone(),
            line,
            column,
            snippet: whole[from..to].to_owned(),
            message: finding.message,
            found: finding.found,
            help: finding.help,
            mark: (at - from, length.min(to - at)),
        }
    }
}

/// The start of the character that contains byte `at`, or the end of the text.
fn char_start(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// Why a table file cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The error.
        source: std::io::Error,
    },
    /// The file is invalid.
    #[error("{}", one_line_each(problems))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// All errors, in the file's order; at least one.
        problems: Vec<Diagnostic>,
    },
}

impl LoadError {
    /// The errors in the file; empty if it could not be read.
    #[must_use]
    pub fn problems(&self) -> &[Diagnostic] {
        match self {
            Self::Io { .. } => &[],
            Self::Invalid { problems, .. } => problems,
        }
    }

    /// Formats all errors with snippets, without an `error:` prefix. Use `color` for terminals.
    #[must_use]
    pub fn render(&self, color: bool) -> String {
        match self {
            Self::Io { .. } => format!("{self}\n"),
            Self::Invalid { path, problems } => {
                let mut out = render(problems, color);
                let count = if problems.len() == 1 {
                    "1 error".to_owned()
                } else {
                    format!("{} errors", problems.len())
                };
                if problems.len() > MAX_PRINTED {
                    out.push_str(&format!("… and {} more\n", problems.len() - MAX_PRINTED));
                }
                out.push_str(&format!("{}: {count}\n", path.display()));
                out
            }
        }
    }
}

/// Formats diagnostics with snippets, at most 50.
#[must_use]
pub fn render(problems: &[Diagnostic], color: bool) -> String {
    let theme = if color { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
    let handler = GraphicalReportHandler::new_themed(theme).with_width(100);
    let mut out = String::new();
    for problem in problems.iter().take(MAX_PRINTED) {
        if handler.render_report(&mut out, problem).is_err() {
            out.push_str(&problem.to_string());
        }
        out.push('\n');
    }
    out
}

/// Formats diagnostics as one line each, for logs.
fn one_line_each(problems: &[Diagnostic]) -> String {
    let mut out = String::new();
    for (i, problem) in problems.iter().take(MAX_PRINTED).enumerate() {
        let newline = if i == 0 { "" } else { "\n" };
        out.push_str(&format!("{newline}{problem} ({}); {}", problem.found, problem.help));
    }
    if problems.len() > MAX_PRINTED {
        out.push_str(&format!("\n… and {} more", problems.len() - MAX_PRINTED));
    }
    out
}
