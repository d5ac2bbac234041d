//! Reading a daemon's configuration file, with errors that say where and what, and never show a key
//! that stands in the wrong file.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;

/// Largest configuration file, in bytes.
const MAX: u64 = 1 << 20;

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not TOML, or a field is wrong.
    #[error("{}, line {line}, column {column}: {message}{snippet}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1, in characters.
        column: usize,
        /// What is wrong.
        message: String,
        /// The line, indented on a line of its own; empty if it may hold a secret.
        snippet: String,
    },
}

/// Reads the TOML file at `path`.
///
/// # Errors
/// When it is no regular file, cannot be read, or says something wrong.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, FileError> {
    parse(&text(path)?, path)
}

/// Reads the text of the file at `path`.
///
/// # Errors
/// When it is no regular file, is longer than a configuration can be, is no text, or cannot be read.
pub fn text(path: &Path) -> Result<String, FileError> {
    regular(path).map_err(|source| FileError::Read { path: path.to_owned(), source })
}

/// Reads TOML text that came from `path`.
///
/// # Errors
/// When it says something wrong.
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
            message: with_nearest(error.message().trim_end()),
            snippet: if may_hold_a_secret(line) {
                String::new()
            } else {
                format!("\n  {}", line.trim())
            },
        }
    })
}

/// A message about an unknown name, with the known one that is most like it.
fn with_nearest(message: &str) -> String {
    let closest_name = || {
        let rest = message.strip_prefix("unknown ")?;
        let (_, rest) = rest.split_once('`')?;
        let (unknown, rest) = rest.split_once('`')?;
        // What is expected stands between backticks, one name or several.
        let known = rest.split('`').skip(1).step_by(2);
        closest_name(unknown, known)
    };
    match closest_name() {
        Some(name) => format!("{message}; did you mean `{name}`?"),
        None => message.to_owned(),
    }
}

/// The known name that is most like this one, if one is.
#[must_use]
pub fn closest_name<'k>(
    unknown: &str,
    known: impl IntoIterator<Item = &'k str>,
) -> Option<&'k str> {
    let lower = unknown.to_lowercase();
    // A third of the letters may be wrong, and two of a short word.
    let limit = (unknown.chars().count() / 3).max(2);
    known
        .into_iter()
        .map(|name| (strsim::osa_distance(name, &lower), name))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, name)| name)
}

/// A table's keys are 32 hex digits.
fn may_hold_a_secret(line: &str) -> bool {
    let digits = line.split(|c: char| !c.is_ascii_hexdigit());
    line.contains("hash_key")
        || line.contains("seed")
        || digits.into_iter().any(|run| run.len() >= 32)
}

fn regular(path: &Path) -> io::Result<String> {
    let wrong = |text: String| io::Error::new(io::ErrorKind::InvalidInput, text);
    // Asked before it is opened: opening a pipe would wait for a writer.
    let found = fs::metadata(path)?;
    if !found.is_file() {
        return Err(wrong("it is not a regular file".into()));
    }
    if found.len() > MAX {
        return Err(wrong(format!("it has {} bytes; at most {MAX} are read", found.len())));
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
    fn errors_say_where_and_show_the_line() {
        let text = error("# one\nnumbr = 1\n");
        let near = "did you mean `number`?";
        for words in ["/etc/x.toml, line 2, column 1", "numbr", near, "\n  numbr = 1"] {
            assert!(text.contains(words), "{words:?} is missing in: {text}");
        }
    }

    #[test]
    fn the_nearest_name_is_near() {
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
        assert_eq!(with_nearest("unknown field `colour`, expected `x` or `y`").find("mean"), None);
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
    fn what_is_no_text_file_is_refused_at_once() {
        let folder = std::env::temp_dir();
        let error = read::<Sample>(&folder).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
        let error = read::<Sample>(Path::new("/dev/null")).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
    }
}
