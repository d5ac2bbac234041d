//! Reading a daemon's configuration file.
//!
//! Errors name the line, and never show a key that stands in the wrong file.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;

/// The largest accepted configuration file, in bytes.
const MAX: u64 = 1 << 20;

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file is not TOML, or a field is wrong.
    #[error("{}, line {line}, column {column}: {message}{snippet}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1 on.
        line: usize,
        /// The column in characters, from 1 on.
        column: usize,
        /// The fault.
        message: String,
        /// The offending line, indented; empty if it may hold a secret.
        snippet: String,
    },
}

/// Reads and parses the TOML file at `path`.
///
/// # Errors
/// When it is not a regular file, cannot be read, or is not valid.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, FileError> {
    parse(&text(path)?, path)
}

/// Reads the text of the file at `path`.
///
/// # Errors
/// When it is not a regular file, is too long, is not text, or cannot be read.
pub fn text(path: &Path) -> Result<String, FileError> {
    regular(path).map_err(|source| FileError::Read { path: path.to_owned(), source })
}

/// Parses TOML text that came from `path`.
///
/// # Errors
/// When it is not valid.
pub fn parse<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T, FileError> {
    toml::from_str(text).map_err(|error: toml::de::Error| {
        let at = error.span().map_or(0, |span| span.start.min(text.len()));
        let before = text.get(..at).unwrap_or_default();
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = text.get(start..).unwrap_or_default().lines().next().unwrap_or_default();
        FileError::Syntax {
            path: path.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before.get(start..).unwrap_or_default().chars().count() + 1,
            message: with_suggestion(error.message().trim_end()),
            snippet: if may_hold_a_secret(line) {
                String::new()
            } else {
                format!("\n  {}", line.trim())
            },
        }
    })
}

/// Adds the closest known name to a message about an unknown one.
fn with_suggestion(message: &str) -> String {
    let closest_name = || {
        let rest = message.strip_prefix("unknown ")?;
        let (_, rest) = rest.split_once('`')?;
        let (unknown, rest) = rest.split_once('`')?;
        // The expected names stand between backticks.
        let known = rest.split('`').skip(1).step_by(2);
        closest_name(unknown, known)
    };
    match closest_name() {
        Some(name) => format!("{message}; did you mean `{name}`?"),
        None => message.to_owned(),
    }
}

/// Returns the known name that is closest to this one, if one is close enough.
#[must_use]
pub fn closest_name<'k>(
    unknown: &str,
    known: impl IntoIterator<Item = &'k str>,
) -> Option<&'k str> {
    let lower = unknown.to_lowercase();
    // A third of the letters may differ, and two in a short word.
    let limit = (unknown.chars().count() / 3).max(2);
    known
        .into_iter()
        .map(|name| (strsim::osa_distance(name, &lower), name))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, name)| name)
}

/// Returns whether a line may hold a key: a table's keys are 32 hex digits.
fn may_hold_a_secret(line: &str) -> bool {
    let digits = line.split(|c: char| !c.is_ascii_hexdigit());
    line.contains("hash_key")
        || line.contains("seed")
        || digits.into_iter().any(|run| run.len() >= 32)
}

fn regular(path: &Path) -> io::Result<String> {
    let wrong = |text: String| io::Error::new(io::ErrorKind::InvalidInput, text);
    // Checked before it is opened: opening a FIFO would block.
    let found = fs::metadata(path)?;
    if !found.is_file() {
        return Err(wrong("it is not a regular file".into()));
    }
    if found.len() > MAX {
        return Err(wrong(format!("it has {} bytes; the limit is {MAX}", found.len())));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX).read_to_end(&mut bytes)?;
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..valid].iter().filter(|byte| **byte == b'\n').count() + 1;
        wrong(format!("line {line} (byte {valid}) is not UTF-8 text"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        #[expect(dead_code, reason = "only read from text")]
        number: u8,
    }

    fn error(text: &str) -> String {
        parse::<Sample>(text, Path::new("/etc/x.toml")).unwrap_err().to_string()
    }

    #[test]
    fn errors_name_the_line_and_show_it() {
        let text = error("# one\nnumbr = 1\n");
        let near = "did you mean `number`?";
        for words in ["/etc/x.toml, line 2, column 1", "numbr", near, "\n  numbr = 1"] {
            assert!(text.contains(words), "{words:?} is missing in: {text}");
        }
    }

    #[test]
    fn closest_name_accepts_small_differences_only() {
        let known = ["interfaces", "metrics", "outer_source_ipv4", "pin"];
        for (unknown, name) in [
            ("interface", Some("interfaces")),
            ("Metrics", Some("metrics")),
            ("outer_source", None),
            ("outer_sorce_ipv4", Some("outer_source_ipv4")),
            ("pni", Some("pin")),
            ("colour", None),
        ] {
            assert_eq!(closest_name(unknown, known), name, "{unknown}");
        }
        assert_eq!(
            with_suggestion("unknown field `colour`, expected `x` or `y`").find("mean"),
            None
        );
    }

    #[test]
    fn keys_in_the_wrong_file_are_not_shown() {
        let key = "00112233445566778899aabbccddeeff";
        for line in [
            format!("hash_key = \"{key}\""),
            format!("{{\"tables\": [{{\"x\": \"{key}\"}}]}}"),
            "seed = \"zz\"".to_owned(),
        ] {
            let text = error(&line);
            assert!(!text.contains(key) && !text.contains("zz"), "{text}");
            assert!(text.contains("line 1"), "{text}");
        }
    }

    #[test]
    fn only_regular_files_are_read() {
        let folder = std::env::temp_dir();
        let error = read::<Sample>(&folder).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
        let error = read::<Sample>(Path::new("/dev/null")).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
    }
}
