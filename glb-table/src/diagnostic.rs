//! What is wrong with a table file, where, and what would be right.

use std::{
    fmt,
    ops::Range,
    path::{Path, PathBuf},
};

use miette::{
    GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteSpanContents, SourceCode, SourceSpan,
};

/// No more of one file's problems are printed at once; all of them are kept.
const PRINTED: usize = 50;
/// A longer line (JSON is often one line) is shown only around the place.
const SNIPPET: usize = 160;

/// One thing that is wrong (or, as a warning, doubtful) in a file.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Diagnostic {
    /// The file, as it was named by the caller.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The line, keys and seeds hidden, cut around the place if it is long.
    pub snippet: String,
    /// What is wrong.
    pub message: String,
    /// What stands at the place.
    pub found: String,
    /// What would be right.
    pub help: String,
    /// Where the marked text starts in `snippet`, in bytes, and its length there.
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

/// The snippet is all of the source that is ever shown.
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

/// Problems without their file: a place in the text and the words.
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

/// A file's text with what is secret in it painted over, and where its lines start.
pub(crate) struct Source {
    file: String,
    text: String,
    lines: Vec<usize>,
}

impl Source {
    /// `secrets` are the places of keys and seeds; besides them any long run of hex digits is
    /// hidden, since in a file that does not parse nobody knows what is a key.
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
        // Painting over part of a character leaves bytes that are no text.
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Self { file: file.display().to_string(), text, lines }
    }

    /// Line and column, from 1, of a byte of the text.
    pub(crate) fn place(&self, at: usize) -> (usize, usize) {
        let at = floor(&self.text, at);
        let line = self.lines.partition_point(|&start| start <= at).max(1);
        let column = self.text[self.lines[line - 1]..at].chars().count() + 1;
        (line, column)
    }

    pub(crate) fn problem(&self, finding: SpannedDiagnostic) -> Diagnostic {
        let (line, column) = self.place(finding.span.start);
        let start = self.lines[line - 1];
        let whole = self.text[start..].lines().next().unwrap_or("");
        let at = floor(&self.text, finding.span.start) - start;
        let at = at.min(whole.len());
        let (from, to) = if whole.len() > SNIPPET {
            (floor(whole, at.saturating_sub(SNIPPET / 2)), floor(whole, at + SNIPPET / 2))
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

/// The start of the character that byte `at` is part of, or the text's end.
fn floor(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// A table file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The file was read and says something wrong; every problem in it, in the file's order.
    #[error("{}", listed(problems))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// At least one.
        problems: Vec<Diagnostic>,
    },
}

impl LoadError {
    /// What is wrong in the file; empty if it could not be read.
    #[must_use]
    pub fn problems(&self) -> &[Diagnostic] {
        match self {
            Self::Io { .. } => &[],
            Self::Invalid { problems, .. } => problems,
        }
    }

    /// The whole report with snippets, for people; that it is an error, the caller says. `color` if
    /// it goes to a terminal.
    #[must_use]
    pub fn render(&self, color: bool) -> String {
        match self {
            Self::Io { .. } => format!("{self}\n"),
            Self::Invalid { path, problems } => {
                let mut out = render(problems, color);
                let many = if problems.len() == 1 {
                    "1 error".to_owned()
                } else {
                    format!("{} errors", problems.len())
                };
                if problems.len() > PRINTED {
                    out.push_str(&format!("… and {} more\n", problems.len() - PRINTED));
                }
                out.push_str(&format!("{}: {many}\n", path.display()));
                out
            }
        }
    }
}

/// Problems (or warnings) with their snippets, for people; no more than 50 of them.
#[must_use]
pub fn render(problems: &[Diagnostic], color: bool) -> String {
    let theme = if color { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
    let handler = GraphicalReportHandler::new_themed(theme).with_width(100);
    let mut out = String::new();
    for problem in problems.iter().take(PRINTED) {
        if handler.render_report(&mut out, problem).is_err() {
            out.push_str(&problem.to_string());
        }
        out.push('\n');
    }
    out
}

/// One line for each problem, for logs.
fn listed(problems: &[Diagnostic]) -> String {
    let mut out = String::new();
    for (i, problem) in problems.iter().take(PRINTED).enumerate() {
        let newline = if i == 0 { "" } else { "\n" };
        out.push_str(&format!("{newline}{problem} ({}); {}", problem.found, problem.help));
    }
    if problems.len() > PRINTED {
        out.push_str(&format!("\n… and {} more", problems.len() - PRINTED));
    }
    out
}
