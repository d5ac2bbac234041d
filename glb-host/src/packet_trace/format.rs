//! A decision's output forms: a line of text, and JSON.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    net::IpAddr,
    time::Duration,
};

use serde::{Serialize, Serializer};

use super::packet::{FiveTuple, Headers, Tunnel};

/// How a frame leaves the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Egress {
    /// The outgoing interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// The destination MAC address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Whether the MAC address is synthetic because the real one is unknown.
    pub synthetic: bool,
}

impl Egress {
    /// Returns the egress of a frame that is ready to be sent.
    #[must_use]
    pub fn of(interface: Option<String>, frame: &[u8], synthetic: bool) -> Self {
        let mac: Vec<String> = frame.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        Self { interface, mac: Some(mac.join(":")), synthetic }
    }
}

/// A program's decision about a frame.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Decision {
    /// Number in the capture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packet: Option<u64>,
    /// Time since 1970, in JSON as seconds.
    #[serde(serialize_with = "seconds")]
    pub time: Duration,
    /// The interface that received the frame.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Length of the received frame.
    pub length: u32,
    /// The tunnel header of the received frame.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<Tunnel>,
    /// The client's packet, if it is IP.
    #[serde(flatten)]
    pub headers: Option<FiveTuple>,
    /// The packet that an ICMP error quotes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quoted: Option<FiveTuple>,
    /// The verdict: sent, answered, taken, passed, dropped; or "not run".
    pub verdict: &'static str,
    /// The reason's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// The table's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// The row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub row: Option<u16>,
    /// The row by the alternative hash.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alternative_row: Option<u16>,
    /// The backends in order: the next one first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hops: Vec<IpAddr>,
    /// How the frame leaves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<Egress>,
    /// An additional remark.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

fn seconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    // Six digits: a 64-bit float carries no more besides the seconds since 1970.
    serializer.serialize_f64((time.as_micros() as f64) / 1e6)
}

impl Decision {
    /// Copies the received frame's headers into the decision.
    pub fn describe(&mut self, headers: Headers) {
        let Headers { tunnel, packet, quoted } = headers;
        (self.tunnel, self.headers, self.quoted) = (tunnel, packet, quoted);
    }

    fn packet_text(&self) -> String {
        let headers = Headers {
            tunnel: self.tunnel.clone(),
            packet: self.headers.clone(),
            quoted: self.quoted.clone(),
        };
        headers.to_string()
    }

    /// Formats the part after verdict and reason: table, row, hops, egress and note.
    fn details(&self) -> String {
        let mut parts = Vec::new();
        if let Some(table) = &self.table {
            parts.push(format!("table {table}"));
        }
        if let Some(row) = self.row {
            let alternative = self.alternative_row.map(|row| format!(" and {row}"));
            parts.push(format!("row {row}{}", alternative.unwrap_or_default()));
        }
        if !self.hops.is_empty() {
            let hops: Vec<String> = self.hops.iter().map(ToString::to_string).collect();
            parts.push(format!("to {}", hops.join(", then ")));
        }
        if let Some(Egress { interface, mac, synthetic }) = &self.egress {
            let mark = if *synthetic { ", synthetic" } else { "" };
            match (interface, mac) {
                (Some(interface), Some(mac)) => parts.push(format!("by {interface} ({mac}{mark})")),
                (Some(interface), None) => parts.push(format!("by {interface}")),
                (None, Some(mac)) => parts.push(format!("next MAC {mac}{mark}")),
                (None, None) => {}
            }
        }
        parts.extend(self.note.clone());
        parts.join(", ")
    }

    /// Formats the decision as a sentence, for a comment in a capture.
    #[must_use]
    pub fn comment(&self) -> String {
        let mut text = self.verdict.to_owned();
        if let Some(reason) = self.reason {
            text += &format!(" ({reason})");
        }
        let rest = self.details();
        if !rest.is_empty() {
            text += &format!(": {rest}");
        }
        text
    }
}

/// Prints decisions and counts them.
#[derive(Debug, Default)]
pub struct DecisionPrinter {
    is_json: bool,
    first: Option<Duration>,
    counts: BTreeMap<(&'static str, Option<&'static str>), u64>,
}

impl DecisionPrinter {
    /// Creates a printer of JSON lines or of text.
    #[must_use]
    pub fn new(is_json: bool) -> Self {
        Self { is_json, ..Self::default() }
    }

    /// Counts a decision.
    pub fn count(&mut self, decision: &Decision) {
        *self.counts.entry((decision.verdict, decision.reason)).or_default() += 1;
    }

    /// Prints a decision; returns whether standard output is still open.
    ///
    /// # Errors
    /// When the output cannot be written.
    pub fn print(&mut self, decision: &Decision) -> io::Result<bool> {
        let line = if self.is_json {
            serde_json::to_string(decision).map_err(io::Error::other)?
        } else {
            self.text(decision)
        };
        print_line(&line)
    }

    fn text(&mut self, decision: &Decision) -> String {
        let first = *self.first.get_or_insert(decision.time);
        let stamp = match decision.packet {
            // Relative to the first packet, as in Wireshark.
            Some(number) => {
                format!("{number:>5} {:>10.6}", decision.time.saturating_sub(first).as_secs_f64())
            }
            None => clock(decision.time),
        };
        let interface = decision.interface.as_ref().map(|name| format!("{name}  "));
        format!(
            "{stamp}  {}{:<46}  {:<8}  {:<18}  {}",
            interface.unwrap_or_default(),
            decision.packet_text(),
            decision.verdict,
            decision.reason.unwrap_or("-"),
            decision.details(),
        )
        .trim_end()
        .to_owned()
    }

    /// Formats the number of decisions of each kind.
    #[must_use]
    pub fn summary(&self) -> String {
        let total: u64 = self.counts.values().sum();
        let parts: Vec<String> = self
            .counts
            .iter()
            .map(|((verdict, reason), count)| match reason {
                Some(reason) => format!("{count} {verdict} ({reason})"),
                None => format!("{count} {verdict}"),
            })
            .collect();
        let packets = if total == 1 { "packet" } else { "packets" };
        if parts.is_empty() {
            format!("{total} {packets}")
        } else {
            format!("{total} {packets}: {}", parts.join(", "))
        }
    }
}

impl DecisionPrinter {
    /// Prints the summary to stderr, apart from the decisions.
    pub fn print_summary(&self) {
        print_note(&self.summary());
    }
}

/// Prints a note to stderr; a closed stderr is not an error.
pub fn print_note(text: &str) {
    drop(writeln!(io::stderr(), "{text}"));
}

/// Formats the time of day (UTC) with microseconds.
fn clock(time: Duration) -> String {
    let seconds = time.as_secs() % 86_400;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{hours:02}:{minutes:02}:{seconds:02}.{:06}", time.subsec_micros())
}

/// Prints a line to standard output and flushes it; returns whether standard output is still open.
///
/// # Errors
/// When the output cannot be written.
pub fn print_line(line: &str) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        other => other.map(|()| true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_are_formatted_as_line_comment_and_json() {
        let end = FiveTuple {
            protocol: "tcp".into(),
            source: [198, 51, 100, 7].into(),
            source_port: Some(5000),
            destination: [203, 0, 113, 1].into(),
            destination_port: Some(443),
        };
        let decision = Decision {
            packet: Some(3),
            time: Duration::new(10, 5_000),
            length: 60,
            headers: Some(end),
            verdict: "sent",
            reason: Some("encapsulated"),
            table: Some("web".into()),
            row: Some(7),
            hops: vec![[10, 0, 0, 1].into(), [10, 0, 0, 2].into()],
            ..Decision::default()
        };
        assert_eq!(
            decision.comment(),
            "sent (encapsulated): table web, row 7, to 10.0.0.1, then 10.0.0.2"
        );
        let mut lines = DecisionPrinter::new(false);
        assert!(lines.text(&decision).contains("tcp 198.51.100.7:5000 > 203.0.113.1:443 "));
        assert_eq!(lines.summary(), "0 packets");
        let json = serde_json::to_value(&decision).unwrap();
        assert_eq!((&json["time"], &json["row"]), (&10.000_005.into(), &7.into()));
        assert_eq!((&json["source"], &json["source_port"]), (&"198.51.100.7".into(), &5000.into()));
        assert_eq!(json["hops"][1], "10.0.0.2");
        assert_eq!(clock(Duration::new(86_400 + 3_661, 7_000)), "01:01:01.000007");
    }
}
