//! The mark of a table file that `glb-healthcheck` writes: the input that operators edit, and a digest
//! that shows whether another program has changed the file.
//!
//! In TOML the mark is a comment in the first line, in JSON the value of the key `written_by`:
//!
//! ```
//! use std::path::Path;
//!
//! use glb_table::{Format, write_mark};
//!
//! let text = write_mark::add(Format::Toml, "tables = []\n", Path::new("/etc/glb/table.src.toml"));
//! let mark = write_mark::read(Format::Toml, &text).unwrap();
//! assert_eq!(mark.input, Path::new("/etc/glb/table.src.toml"));
//! assert!(mark.intact);
//! let changed = write_mark::read(Format::Toml, &text.replace("[]", "[1]")).unwrap();
//! assert!(!changed.intact);
//! ```

use std::path::{Path, PathBuf};

use crate::Format;

/// The key of the mark in JSON.
pub const JSON_KEY: &str = "written_by";

const BEFORE_INPUT: &str = "glb-healthcheck from ";
const AFTER_INPUT: &str = "; edit that file, changes here are overwritten (digest ";
const END: &str = ")";
const TOML_START: &str = "# Written by ";
/// Hexadecimal digits of the digest.
const DIGITS: usize = 16;

/// The mark of a table file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The file that operators edit.
    pub input: PathBuf,
    /// Whether the file is as the checker wrote it.
    pub intact: bool,
}

/// Adds a mark to a table's text. A mark that the text already has is replaced.
#[must_use]
pub fn add(format: Format, text: &str, input: &Path) -> String {
    let text = remove(format, text);
    // Control characters would end the comment's line.
    let input: String = input.display().to_string().chars().filter(|c| !c.is_control()).collect();
    let zeros = "0".repeat(DIGITS);
    let sentence = format!("{BEFORE_INPUT}{input}{AFTER_INPUT}{zeros}{END}");
    let unsigned = match format {
        Format::Toml => format!("{TOML_START}{sentence}\n{text}"),
        Format::Json => {
            let Some(start) = text.find('{').map(|brace| brace + 1) else { return text };
            let value = serde_json::Value::from(sentence);
            format!("{}\"{JSON_KEY}\": {value}, {}", &text[..start], text[start..].trim_start())
        }
    };
    match digest_place(&unsigned) {
        Some(at) => {
            let digest = format!("{:016x}", digest(&unsigned));
            format!("{}{digest}{}", &unsigned[..at], &unsigned[at + DIGITS..])
        }
        None => unsigned,
    }
}

/// Reads the mark of a table's text, if it has one.
#[must_use]
pub fn read(format: Format, text: &str) -> Option<Mark> {
    let sentence = sentence(format, text)?;
    let (input, digits) = sentence.strip_prefix(BEFORE_INPUT)?.rsplit_once(AFTER_INPUT)?;
    let written = u64::from_str_radix(digits.strip_suffix(END)?, 16).ok();
    let at = digest_place(text)?;
    let unsigned = format!("{}{}{}", &text[..at], "0".repeat(DIGITS), text.get(at + DIGITS..)?);
    Some(Mark { input: input.into(), intact: written == Some(digest(&unsigned)) })
}

fn sentence(format: Format, text: &str) -> Option<String> {
    match format {
        Format::Toml => text.lines().next()?.strip_prefix(TOML_START).map(str::to_owned),
        Format::Json => {
            let (_, value) = json_mark(text)?;
            serde_json::from_str(value).ok()
        }
    }
}

/// Returns where a JSON text's mark starts, and its value, if the mark is the first key.
fn json_mark(text: &str) -> Option<(usize, &str)> {
    let start = text.find('{')? + 1;
    let rest = text[start..].strip_prefix(&format!("\"{JSON_KEY}\": "))?;
    // The sentence's path may contain escaped quotes.
    let mut escaped = false;
    let end = rest.char_indices().skip(1).find(|(_, letter)| {
        let ends = *letter == '"' && !escaped;
        escaped = *letter == '\\' && !escaped;
        ends
    })?;
    Some((start, &rest[..=end.0]))
}

fn remove(format: Format, text: &str) -> String {
    if sentence(format, text).is_none_or(|sentence| !sentence.starts_with(BEFORE_INPUT)) {
        return text.to_owned();
    }
    match format {
        Format::Toml => text.split_once('\n').map_or("", |(_, rest)| rest).to_owned(),
        Format::Json => match json_mark(text) {
            Some((start, value)) => {
                let end = start + JSON_KEY.len() + 4 + value.len();
                let rest = text[end..].trim_start().trim_start_matches(',').trim_start();
                format!("{}{rest}", &text[..start])
            }
            None => text.to_owned(),
        },
    }
}

/// Returns where the digest's digits are.
fn digest_place(text: &str) -> Option<usize> {
    let at = text.find(AFTER_INPUT)? + AFTER_INPUT.len();
    let digits = text.get(at..at + DIGITS)?;
    digits.bytes().all(|byte| byte.is_ascii_hexdigit()).then_some(at)
}

/// FNV-1a: it detects changes by accident or by hand, not by an attacker.
fn digest(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str = "{\n  \"tables\": [{\"name\": \"a\"}]}";
    const TOML: &str = "# a comment\n[[tables]]\nname = \"a\"\n";

    #[test]
    fn marks_are_read_back_and_show_changes() {
        for (format, text) in [(Format::Json, JSON), (Format::Toml, TOML)] {
            assert_eq!(read(format, text), None);
            for input in ["/etc/glb/a b.toml", "/etc/\"q\\uote\"/x"] {
                let marked = add(format, text, Path::new(input));
                let mark = Mark { input: input.into(), intact: true };
                assert_eq!(read(format, &marked), Some(mark), "{marked}");
                let changed = marked.replace("\"a\"", "\"b\"");
                assert!(!read(format, &changed).unwrap().intact);
                // A second mark replaces the first one.
                assert_eq!(add(format, &marked, Path::new(input)), marked);
            }
        }
    }

    #[test]
    fn marked_json_is_still_json() {
        let marked = add(Format::Json, JSON, Path::new("/in.json"));
        let value: serde_json::Value = serde_json::from_str(&marked).unwrap();
        assert_eq!(value["tables"][0]["name"], "a");
        assert!(value[JSON_KEY].as_str().unwrap().starts_with("glb-healthcheck from /in.json;"));
    }

    #[test]
    fn damaged_marks_are_not_marks() {
        let marked = add(Format::Toml, TOML, Path::new("/in.toml"));
        for text in [&marked[..40], "# Written by somebody\n", "", "{", "{\"written_by\": \"x\"}"] {
            assert_eq!(read(Format::Toml, text), None, "{text}");
            assert_eq!(read(Format::Json, text), None, "{text}");
        }
    }
}
