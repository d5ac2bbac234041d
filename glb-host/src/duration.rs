//! Durations as operators write and read them: `500ms`, `2s`, `1m 30s`, `36h`, `2d`.
//!
//! Every configuration key and every command-line option that takes a duration uses this module.
//! A number without a unit is an error.
//!
//! | where | how |
//! |---|---|
//! | option | `#[arg(value_parser = glb_host::duration::parse)]` |
//! | key | `#[serde(with = "glb_host::duration")]` |
//! | key that may be left out | `#[serde(default, with = "glb_host::duration::optional")]` |
//!
//! ```
//! use std::time::Duration;
//!
//! use glb_host::duration::{format, parse};
//!
//! assert_eq!(parse("1m 30s"), Ok(Duration::from_secs(90)));
//! assert_eq!(format(Duration::from_millis(1_500)), "1s 500ms");
//! let error = parse("90").unwrap_err();
//! assert_eq!(error.to_string(), r#""90" has no unit; give a unit, such as "90s""#);
//! ```

use std::time::Duration;

use serde::{Deserializer, Serializer};

/// Why a text is not a duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// The text is a bare number.
    #[error("\"{0}\" has no unit; give a unit, such as \"{0}s\"")]
    NoUnit(String),
    /// The text is something else.
    #[error(
        "{0:?} is not a duration; give a number with a unit, such as \"500ms\", \"10s\", \"1m 30s\", \
         \"2h\" or \"1d\""
    )]
    Malformed(String),
    /// The duration is zero where [`parse_positive`] was asked.
    #[error("{0:?} is zero; give a duration greater than zero, such as \"1s\"")]
    Zero(String),
}

/// Parses one or more numbers with units: `ns`, `us`, `ms`, `s`, `m`, `h`, `d`, `w` and their long
/// names.
///
/// # Errors
/// The text, and what to write instead.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(DurationError::NoUnit(text.to_owned()));
    }
    humantime::parse_duration(text).map_err(|_| DurationError::Malformed(text.to_owned()))
}

/// Parses a duration that is greater than zero.
///
/// # Errors
/// As [`parse`], and for zero.
pub fn parse_positive(text: &str) -> Result<Duration, DurationError> {
    match parse(text)? {
        Duration::ZERO => Err(DurationError::Zero(text.to_owned())),
        duration => Ok(duration),
    }
}

/// Formats a duration so that [`parse`] returns it again: `1d 2h`, `1m 30s`, `500ms`, `0s`.
#[must_use]
pub fn format(duration: Duration) -> String {
    const UNITS: [(&str, u128); 7] = [
        ("d", 86_400_000_000_000),
        ("h", 3_600_000_000_000),
        ("m", 60_000_000_000),
        ("s", 1_000_000_000),
        ("ms", 1_000_000),
        ("us", 1_000),
        ("ns", 1),
    ];
    let mut rest = duration.as_nanos();
    let mut parts = Vec::new();
    for (unit, length) in UNITS {
        if rest >= length {
            parts.push(format!("{}{unit}", rest / length));
            rest %= length;
        }
    }
    if parts.is_empty() { "0s".to_owned() } else { parts.join(" ") }
}

/// Reads a duration from a string, for `#[serde(with = "glb_host::duration")]`.
///
/// # Errors
/// When the value is not a string, or [`parse`] refuses it.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    deserializer.deserialize_any(Visitor)
}

/// Writes a duration as a string, for `#[serde(with = "glb_host::duration")]`.
///
/// # Errors
/// Those of the serializer.
pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format(*duration))
}

struct Visitor;

impl serde::de::Visitor<'_> for Visitor {
    type Value = Duration;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a duration with a unit, such as \"10s\"")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Duration, E> {
        parse(text).map_err(E::custom)
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Duration, E> {
        Err(E::custom(DurationError::NoUnit(number.to_string())))
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Duration, E> {
        Err(E::custom(match u64::try_from(number) {
            Ok(number) => DurationError::NoUnit(number.to_string()),
            Err(_) => DurationError::Malformed(number.to_string()),
        }))
    }
}

/// The same for a key that may be left out: `#[serde(default, with = "glb_host::duration::optional")]`.
pub mod optional {
    use std::time::Duration;

    use super::{Deserializer, Serializer, Visitor};

    /// Reads a duration that is there.
    ///
    /// # Errors
    /// As [`super::deserialize`].
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        deserializer.deserialize_any(Visitor).map(Some)
    }

    /// Writes a duration, or nothing.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(
        duration: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => super::serialize(duration, serializer),
            None => serializer.serialize_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;

    #[test]
    fn numbers_with_units_are_durations() {
        for (text, milliseconds) in [
            ("0s", 0),
            ("500ms", 500),
            ("90s", 90_000),
            ("1m 30s", 90_000),
            ("1m30s", 90_000),
            ("1.5s", 1_500),
            ("2h", 7_200_000),
            ("1d", 86_400_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
    }

    #[test]
    fn a_number_without_a_unit_is_refused_with_the_unit_to_add() {
        for text in ["0", "10"] {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.ends_with(&format!("give a unit, such as \"{text}s\"")), "{message}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "s", "-1s", "1x", "ten seconds", "1m 30", "18446744073709551615d"] {
            assert!(matches!(parse(text), Err(DurationError::Malformed(_))), "{text}");
        }
        assert_eq!(parse_positive("0s"), Err(DurationError::Zero("0s".into())));
    }

    #[test]
    fn a_formatted_duration_parses_to_itself() {
        for milliseconds in [0, 1, 999, 1_000, 61_000, 3_600_000, 90_061_001] {
            let duration = Duration::from_millis(milliseconds);
            assert_eq!(parse(&format(duration)), Ok(duration), "{}", format(duration));
        }
        assert_eq!(format(Duration::from_millis(90_061_001)), "1d 1h 1m 1s 1ms");
    }

    #[test]
    fn configuration_keys_take_strings_with_a_unit_only() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Keys {
            #[serde(with = "crate::duration")]
            interval: Duration,
            #[serde(default, with = "crate::duration::optional")]
            timeout: Option<Duration>,
        }
        let keys = Keys { interval: Duration::from_secs(2), timeout: None };
        assert_eq!(toml::from_str::<Keys>("interval = \"2s\"").unwrap(), keys);
        assert_eq!(toml::to_string(&keys).unwrap(), "interval = \"2s\"\n");
        let keys = Keys { timeout: Some(Duration::from_millis(500)), ..keys };
        let text = toml::to_string(&keys).unwrap();
        assert_eq!(toml::from_str::<Keys>(&text).unwrap(), keys);
        let error = toml::from_str::<Keys>("interval = 2").unwrap_err().to_string();
        assert!(error.contains("give a unit, such as \"2s\""), "{error}");
    }
}
