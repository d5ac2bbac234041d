//! One decision, for people as a line and for programs as JSON.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    net::IpAddr,
    time::Duration,
};

use serde::{Serialize, Serializer};

use super::packet::{FiveTuple, Headers, Tunnel};

/// How a frame leaves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Egress {
    /// By which interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// To which MAC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Whether that was made up for want of an answer.
    pub synthetic: bool,
}

impl Egress {
    /// The way of this frame, which is on it.
    #[must_use]
    pub fn of(interface: Option<String>, frame: &[u8], synthetic: bool) -> Self {
        let mac: Vec<String> = frame.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        Self { interface, mac: Some(mac.join(":")), synthetic }
    }
}

/// What a program did with a frame, and why.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Decision {
    /// Number in the capture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packet: Option<u64>,
    /// When, in seconds since 1970.
    #[serde(serialize_with = "seconds")]
    pub time: Duration,
    /// By which interface it came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Length of the frame as it came.
    pub length: u32,
    /// The tunnel that it came in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<Tunnel>,
    /// The packet (of the client), if it is one.
    #[serde(flatten)]
    pub headers: Option<FiveTuple>,
    /// The packet that an ICMP error quotes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quoted: Option<FiveTuple>,
    /// What happened: sent, answered, taken, passed, dropped; or "not run".
    pub verdict: &'static str,
    /// The reason's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// The table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// The row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub row: Option<u16>,
    /// The row by the alternative hash.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alternative_row: Option<u16>,
    /// Where it goes: the next backend, and who is listed after it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hops: Vec<IpAddr>,
    /// How it leaves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<Egress>,
    /// What else is to be said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

fn seconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    // Six digits, which is what a 64-bit float can carry besides the seconds since 1970.
    serializer.serialize_f64((time.as_micros() as f64) / 1e6)
}

impl Decision {
    /// Takes over what `headers` print_note of a frame as it came.
    pub fn describe(&mut self, headers: Headers) {
        let Headers { tunnel, packet, quoted } = headers;
        (self.tunnel, self.headers, self.quoted) = (tunnel, packet, quoted);
    }

    fn what(&self) -> String {
        let headers = Headers {
            tunnel: self.tunnel.clone(),
            packet: self.headers.clone(),
            quoted: self.quoted.clone(),
        };
        headers.to_string()
    }

    /// What stands after verdict and reason: table, row, hops, way and note.
    fn rest(&self) -> String {
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
            let mark = if *synthetic { ", made up" } else { "" };
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

    /// Verdict, reason and the rest in one sentence: what a packet in a capture carries as comment.
    #[must_use]
    pub fn comment(&self) -> String {
        let mut text = self.verdict.to_owned();
        if let Some(reason) = self.reason {
            text += &format!(" ({reason})");
        }
        let rest = self.rest();
        if !rest.is_empty() {
            text += &format!(": {rest}");
        }
        text
    }
}

/// Prints decisions one by one, and counts them.
#[derive(Debug, Default)]
pub struct DecisionPrinter {
    is_json: bool,
    first: Option<Duration>,
    counts: BTreeMap<(&'static str, Option<&'static str>), u64>,
}

impl DecisionPrinter {
    /// DecisionPrinter of JSON, or for people.
    #[must_use]
    pub fn new(is_json: bool) -> Self {
        Self { is_json, ..Self::default() }
    }

    /// Counts a decision.
    pub fn count(&mut self, decision: &Decision) {
        *self.counts.entry((decision.verdict, decision.reason)).or_default() += 1;
    }

    /// Prints a decision. Says whether anybody still reads.
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
            // As Wireshark shows it: since the first packet.
            Some(number) => {
                format!("{number:>5} {:>10.6}", decision.time.saturating_sub(first).as_secs_f64())
            }
            None => clock(decision.time),
        };
        let interface = decision.interface.as_ref().map(|name| format!("{name}  "));
        format!(
            "{stamp}  {}{:<46}  {:<8}  {:<18}  {}",
            interface.unwrap_or_default(),
            decision.what(),
            decision.verdict,
            decision.reason.unwrap_or("-"),
            decision.rest(),
        )
        .trim_end()
        .to_owned()
    }

    /// How many there were of each kind.
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
    /// Prints the summary to stderr, where it does not get between the lines.
    pub fn print_summary(&self) {
        print_note(&self.summary());
    }
}

/// Prints a remark to stderr, whether or not anybody reads it.
pub fn print_note(text: &str) {
    drop(writeln!(io::stderr(), "{text}"));
}

/// The time of day (UTC) with microseconds.
fn clock(time: Duration) -> String {
    let seconds = time.as_secs() % 86_400;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{hours:02}:{minutes:02}:{seconds:02}.{:06}", time.subsec_micros())
}

/// Prints a line to standard output at once; says whether anybody still reads there.
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
    fn a_line_and_a_comment() {
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
