//! Cleaning text that another program sent before it is shown or logged.

/// The longest cleaned text, in characters.
pub const MAX_LENGTH: usize = 500;

/// Returns `text` on one line, with control characters escaped and at most [`MAX_LENGTH`]
/// characters.
///
/// ```
/// use glb_host::sanitize::sanitize;
///
/// assert_eq!(sanitize("BIRD 2.0\u{1b}[31m ready\n"), "BIRD 2.0\\u{1b}[31m ready");
/// assert_eq!(sanitize(&"x".repeat(9_999)).chars().count(), 500);
/// ```
#[must_use]
pub fn sanitize(text: &str) -> String {
    let mut clean = String::new();
    let mut length = 0;
    for letter in text.trim_end().chars() {
        let escaped: String = match letter {
            '\t' => " ".to_owned(),
            // Also the characters that change the direction of text, and line separators.
            '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                letter.escape_unicode().collect()
            }
            letter if letter.is_control() => letter.escape_default().collect(),
            letter => letter.to_string(),
        };
        length += escaped.chars().count();
        if length >= MAX_LENGTH {
            clean.push('…');
            break;
        }
        clean.push_str(&escaped);
    }
    clean
}

/// Works as [`sanitize`], on bytes that may not be UTF-8.
#[must_use]
pub fn sanitize_bytes(bytes: &[u8]) -> String {
    sanitize(&String::from_utf8_lossy(&bytes[..bytes.len().min(4 * MAX_LENGTH)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        for (text, clean) in [
            ("plain", "plain"),
            ("two\nlines\r\n", "two\\nlines"),
            ("\u{1b}]0;title\u{7}", "\\u{1b}]0;title\\u{7}"),
            ("a\tb", "a b"),
            ("left\u{202e}right", "left\\u{202e}right"),
            ("Grüße", "Grüße"),
        ] {
            assert_eq!(sanitize(text), clean);
        }
        assert_eq!(sanitize_bytes(b"\xff\x00ok"), "\u{fffd}\\u{0}ok");
    }

    #[test]
    fn long_texts_are_truncated() {
        let clean = sanitize(&"\u{1b}".repeat(4 << 20));
        assert!(clean.chars().count() <= MAX_LENGTH && clean.ends_with('…'), "{clean}");
        assert!(sanitize_bytes(&vec![b'x'; 4 << 20]).len() <= MAX_LENGTH + 3);
    }
}
