//! The result of a run: as data, as the page in the docs, and as a chart.

mod chart;
mod machine;
mod page;

use std::{collections::BTreeMap, fs, net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

pub(crate) use page::write_page;

use crate::{
    accounting::{Connection, Kind, Outcome},
    run::RunConfig,
    world::Mode,
};

/// A run and its verdict.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) mode: Mode,
    pub(crate) seed: u64,
    pub(crate) seconds: f64,
    pub(crate) backends: u8,
    pub(crate) flow_age: u64,
    /// The smallest and largest image, in MB.
    #[serde(default)]
    pub(crate) images: (u64, u64),
    pub(crate) machine: machine::Machine,
    pub(crate) kinds: Vec<KindReport>,
    /// The latency of short requests.
    pub(crate) latency: Latency,
    /// The slowest short requests.
    pub(crate) slowest: Vec<SlowRequest>,
    pub(crate) events: Vec<EventReport>,
    /// Every connection that broke.
    pub(crate) broken: Vec<BrokenConnection>,
    /// The reason if the run ended early.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) failure: Option<String>,
    /// Remarks by a person who looked into the run. They appear on the page.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) notes: Vec<String>,
}

/// The results of one kind of connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct KindReport {
    pub(crate) name: String,
    pub(crate) connections: usize,
    pub(crate) verified: usize,
    pub(crate) broken: usize,
    pub(crate) allowed: usize,
    /// Bytes in both directions, as far as the monitor saw them.
    pub(crate) bytes: u64,
    /// The longest life, in seconds.
    pub(crate) oldest: f64,
}

/// The latency of answered requests, from SYN to the last byte, in seconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) median: f64,
    pub(crate) p99: f64,
    pub(crate) worst: f64,
}

/// A slow short request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SlowRequest {
    pub(crate) client: SocketAddr,
    pub(crate) holder: Option<String>,
    pub(crate) began: f64,
    /// Seconds until the end of the handshake, and until the end.
    pub(crate) opened_after: f64,
    pub(crate) took: f64,
    pub(crate) retransmits: u32,
}

/// One event and its results.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct EventReport {
    pub(crate) name: String,
    pub(crate) what: String,
    /// The connections that it may break.
    pub(crate) rule: String,
    pub(crate) began: f64,
    pub(crate) in_force_after: f64,
    pub(crate) alive: usize,
    pub(crate) broken: usize,
    pub(crate) allowed: usize,
    pub(crate) second_chances: u64,
    pub(crate) retransmits: u64,
    pub(crate) worst_stall: f64,
    /// Pings sent to the VIP.
    #[serde(default)]
    pub(crate) pings: usize,
    /// Pings without an answer.
    #[serde(default)]
    pub(crate) pings_lost: usize,
    /// The longest time in which one client lost all its pings, in seconds.
    #[serde(default)]
    pub(crate) loss: f64,
    /// The allowed loss in seconds, if it is limited.
    #[serde(default)]
    pub(crate) loss_limit: Option<f64>,
}

/// A connection that broke.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct BrokenConnection {
    pub(crate) connection: u64,
    pub(crate) kind: Kind,
    pub(crate) client: SocketAddr,
    pub(crate) server: SocketAddr,
    pub(crate) holder: Option<String>,
    pub(crate) began: f64,
    /// The last sign of life from the server.
    pub(crate) heard: f64,
    pub(crate) at: f64,
    pub(crate) why: String,
    pub(crate) event: Option<String>,
    pub(crate) allowed: bool,
}

impl Report {
    /// Builds the report of a run.
    pub(crate) fn new(
        wanted: &RunConfig,
        time: Duration,
        connections: &[Connection],
        events: Vec<EventReport>,
        broken: Vec<BrokenConnection>,
    ) -> Self {
        let kinds = Kind::ALL.iter().filter_map(|(kind, name)| {
            let of: Vec<&Connection> = connections.iter().filter(|c| c.kind == *kind).collect();
            let lived = |c: &&Connection| c.ended.unwrap_or(c.began).saturating_sub(c.began);
            (!of.is_empty()).then(|| KindReport {
                name: (*name).to_owned(),
                connections: of.len(),
                verified: of.iter().filter(|c| c.outcome == Some(Outcome::Verified)).count(),
                broken: broken.iter().filter(|broken| broken.kind == *kind).count(),
                allowed: broken
                    .iter()
                    .filter(|broken| broken.kind == *kind && broken.allowed)
                    .count(),
                bytes: of.iter().map(|c| c.bytes).sum(),
                oldest: of.iter().map(lived).max().unwrap_or_default().as_secs_f64(),
            })
        });
        Self {
            mode: wanted.mode,
            seed: wanted.seed,
            seconds: time.as_secs_f64(),
            backends: wanted.backends,
            flow_age: wanted.load.flow_age.as_secs(),
            images: wanted.load.images,
            machine: machine::Machine::this(),
            kinds: kinds.collect(),
            latency: latency(connections),
            slowest: slowest(connections),
            events,
            broken,
            failure: None,
            notes: Vec::new(),
        }
    }

    /// Lists the connections that broke without being allowed to.
    pub(crate) fn not_allowed(&self) -> impl Iterator<Item = &BrokenConnection> {
        self.broken.iter().filter(|broken| !broken.allowed)
    }

    /// Lists the events that lost packets for longer than their limit.
    pub(crate) fn excessive_loss(&self) -> impl Iterator<Item = &EventReport> {
        self.events.iter().filter(|event| event.loss_limit.is_some_and(|limit| event.loss > limit))
    }

    /// Returns the number of connections.
    pub(crate) fn connections(&self) -> usize {
        self.kinds.iter().map(|kind| kind.connections).sum()
    }

    /// Reads a report.
    ///
    /// # Errors
    /// When the file is not a report.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text)
            .with_context(|| format!("{} is not a report of this suite", path.display()))
    }

    /// Writes the report.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let text = serde_json::to_string_pretty(self)?;
        fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
    }

    /// Prints the report for people.
    pub(crate) fn print(&self) {
        eprintln!();
        for kind in &self.kinds {
            eprintln!(
                "  {:34} {:6} connections, {:6} verified, {:4} broken ({} allowed)",
                kind.name, kind.connections, kind.verified, kind.broken, kind.allowed
            );
        }
        eprintln!(
            "  short requests: median {:.1} ms, p99 {:.1} ms, worst {:.0} ms",
            self.latency.median * 1e3,
            self.latency.p99 * 1e3,
            self.latency.worst * 1e3
        );
        for event in self.excessive_loss() {
            eprintln!(
                "  TOO MUCH LOSS: {} ({}): packets were lost for {:.0} ms, {:.0} ms are allowed",
                event.name,
                event.what,
                event.loss * 1e3,
                event.loss_limit.unwrap_or_default() * 1e3
            );
        }
        for broken in self.not_allowed().take(40) {
            eprintln!(
                "  NOT ALLOWED: {:?} {} > {} on {} at {:.1} s ({}), began at {:.1} s: {}",
                broken.kind,
                broken.client,
                broken.server,
                broken.holder.as_deref().unwrap_or("an unknown backend"),
                broken.at,
                broken.event.as_deref().unwrap_or("before any event"),
                broken.began,
                broken.why
            );
        }
    }
}

/// Writes every connection's record, one per line.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn write_connections(path: &Path, connections: &[Connection]) -> Result<()> {
    let mut text = String::new();
    for connection in connections {
        text += &serde_json::to_string(connection)?;
        text.push('\n');
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn latency(connections: &[Connection]) -> Latency {
    let answered =
        connections.iter().filter(|c| c.kind.is_short() && c.outcome == Some(Outcome::Verified));
    let mut times: Vec<f64> =
        answered.filter_map(|c| Some((c.ended?.checked_sub(c.began)?).as_secs_f64())).collect();
    times.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let place = (times.len().saturating_sub(1)) as f64 * share;
        times.get(place.round() as usize).copied().unwrap_or_default()
    };
    Latency { median: at(0.5), p99: at(0.99), worst: at(1.0) }
}

fn slowest(connections: &[Connection]) -> Vec<SlowRequest> {
    let seconds = |c: &Connection, to: Option<Duration>| {
        to.map_or(0.0, |to| to.saturating_sub(c.began).as_secs_f64())
    };
    let mut slow: Vec<SlowRequest> = connections
        .iter()
        .filter(|c| c.kind.is_short() && c.outcome == Some(Outcome::Verified))
        .map(|c| SlowRequest {
            client: c.client,
            holder: c.holder.map(|node| node.to_string()),
            began: c.began.as_secs_f64(),
            opened_after: seconds(c, c.opened),
            took: seconds(c, c.ended),
            retransmits: c.retransmits,
        })
        .collect();
    slow.sort_by(|a, b| b.took.total_cmp(&a.took));
    slow.truncate(10);
    slow
}

/// The summed results of events with the same name.
#[derive(Clone, Debug, Default)]
pub(crate) struct EventSummary {
    pub(crate) times: usize,
    pub(crate) rule: String,
    pub(crate) alive: usize,
    pub(crate) broken: usize,
    pub(crate) allowed: usize,
    pub(crate) second_chances: u64,
    pub(crate) retransmits: u64,
    pub(crate) worst_stall: f64,
}

/// Groups events by name.
pub(crate) fn by_name<'r>(
    reports: impl Iterator<Item = &'r Report>,
) -> BTreeMap<String, EventSummary> {
    let mut all: BTreeMap<String, EventSummary> = BTreeMap::new();
    for event in reports.flat_map(|report| &report.events) {
        let sum = all.entry(event.name.clone()).or_default();
        sum.times += 1;
        sum.rule.clone_from(&event.rule);
        sum.alive += event.alive;
        sum.broken += event.broken;
        sum.allowed += event.allowed;
        sum.second_chances += event.second_chances;
        sum.retransmits += event.retransmits;
        sum.worst_stall = sum.worst_stall.max(event.worst_stall);
    }
    all
}
