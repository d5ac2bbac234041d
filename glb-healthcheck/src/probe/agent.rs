//! The `agent` check: HAProxy's agent protocol. The backend's agent sends a line of words.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{AgentReply, CurrentStep, Failure, tcp};
use crate::check::Target;

/// Longest line, in bytes.
const MAX_LINE: usize = 1024;

pub(super) async fn run(
    target: &Target,
    port: u16,
    send: Option<&str>,
    step: &CurrentStep,
) -> Result<AgentReply, Failure> {
    let mut stream = tcp::connect(target, port, step).await?;
    step.set("answer");
    let failed = |source| Failure::Io { step: "answer", source };
    if let Some(text) = send {
        stream.write_all(text.as_bytes()).await.map_err(failed)?;
    }
    let mut line = Vec::new();
    while line.len() < MAX_LINE && !line.contains(&b'\n') {
        if stream.read_buf(&mut line).await.map_err(failed)? == 0 {
            break;
        }
    }
    let text = String::from_utf8_lossy(&line);
    parse(text.lines().next().unwrap_or_default())
}

/// Parses an agent's line. `drain` and `maint` last until `ready`. A weight is reported but not applied.
fn parse(line: &str) -> Result<AgentReply, Failure> {
    let (words, why) = line.split_once('#').unwrap_or((line, ""));
    let mut reply = AgentReply::default();
    let mut down = None;
    let mut has_words = false;
    for word in words.split([' ', ',', '\t', '\r']).filter(|word| !word.is_empty()) {
        let word = word.to_ascii_lowercase();
        has_words = true;
        match word.as_str() {
            "up" => {}
            "ready" => reply.drain = Some(false),
            "drain" | "maint" => reply.drain = Some(true),
            "down" | "fail" | "failed" | "stopped" => down = Some(word),
            _ if word.starts_with("maxconn:") => {}
            _ => match word.strip_suffix('%').and_then(|number| number.parse().ok()) {
                Some(weight) => reply.weight = Some(weight),
                None => return Err(Failure::Agent(format!("unknown word {word:?}"))),
            },
        }
    }
    match down {
        Some(word) if why.trim().is_empty() => Err(Failure::Agent(word)),
        Some(word) => Err(Failure::Agent(format!("{word}: {}", why.trim().escape_debug()))),
        None if has_words => Ok(reply),
        None => Err(Failure::Agent("empty line".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_haproxys_agent_protocol_are_understood() {
        let parsed = |line: &str| parse(line).map(|reply| (reply.drain, reply.weight)).ok();
        assert_eq!(parsed("up 75%"), Some((None, Some(75))));
        assert_eq!(parsed("ready,up"), Some((Some(false), None)));
        assert_eq!(parsed("drain"), Some((Some(true), None)));
        assert_eq!(parsed("maint maxconn:30 50%\r"), Some((Some(true), Some(50))));
        for (line, wanted) in [
            ("down", "agent: down"),
            ("stopped # for a new disk", "agent: stopped: for a new disk"),
            ("", "agent: empty line"),
            ("hello", "agent: unknown word \"hello\""),
        ] {
            assert_eq!(parse(line).unwrap_err().to_string(), wanted);
        }
    }
}
