//! HAProxy's agent check: a line of words from the backend itself.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{Failure, Said, Step, connect};
use crate::check::Target;

/// No agent says more.
const LINE: usize = 1024;

pub(super) async fn run(
    target: &Target,
    port: u16,
    send: Option<&str>,
    step: &Step,
) -> Result<Said, Failure> {
    let mut stream = connect::tcp(target, port, step).await?;
    step.set("answer");
    let failed = |source| Failure::Io { step: "answer", source };
    if let Some(text) = send {
        stream.write_all(text.as_bytes()).await.map_err(failed)?;
    }
    let mut line = Vec::new();
    while line.len() < LINE && !line.contains(&b'\n') {
        if stream.read_buf(&mut line).await.map_err(failed)? == 0 {
            break;
        }
    }
    let text = String::from_utf8_lossy(&line);
    parse(text.lines().next().unwrap_or_default())
}

/// What a line means. `drain` and `maint` keep connections and take no new ones until `ready`; a
/// weight is shown and never applied.
fn parse(line: &str) -> Result<Said, Failure> {
    let (words, why) = line.split_once('#').unwrap_or((line, ""));
    let mut said = Said::default();
    let mut down = None;
    let mut known = false;
    for word in words.split([' ', ',', '\t', '\r']).filter(|word| !word.is_empty()) {
        let word = word.to_ascii_lowercase();
        known = true;
        match word.as_str() {
            "up" => {}
            "ready" => said.drain = Some(false),
            "drain" | "maint" => said.drain = Some(true),
            "down" | "fail" | "failed" | "stopped" => down = Some(word),
            _ if word.starts_with("maxconn:") => {}
            _ => match word.strip_suffix('%').and_then(|number| number.parse().ok()) {
                Some(weight) => said.weight = Some(weight),
                None => return Err(Failure::Agent(format!("unknown word {word:?}"))),
            },
        }
    }
    match down {
        Some(word) if why.trim().is_empty() => Err(Failure::Agent(word)),
        Some(word) => Err(Failure::Agent(format!("{word}: {}", why.trim().escape_debug()))),
        None if known => Ok(said),
        None => Err(Failure::Agent("said nothing".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn haproxys_words() {
        let good = |line: &str| parse(line).map(|said| (said.drain, said.weight)).ok();
        assert_eq!(good("up 75%"), Some((None, Some(75))));
        assert_eq!(good("ready,up"), Some((Some(false), None)));
        assert_eq!(good("drain"), Some((Some(true), None)));
        assert_eq!(good("maint maxconn:30 50%\r"), Some((Some(true), Some(50))));
        for (line, wanted) in [
            ("down", "agent: down"),
            ("stopped # for a new disk", "agent: stopped: for a new disk"),
            ("", "agent: said nothing"),
            ("hello", "agent: unknown word \"hello\""),
        ] {
            assert_eq!(parse(line).unwrap_err().to_string(), wanted);
        }
    }
}
