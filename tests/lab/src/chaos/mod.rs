//! The chaos run: directors fail, leave and return in every known way while connections stay open.
//!
//! Connections of four kinds ([`Kind`]) are opened once and stay open through every event. A stream
//! of pings measures how long packets were lost; the kernels count TCP retransmissions.

mod events;
mod live;
mod pings;
mod server;

use std::{fmt, io::Write, time::Instant};

use anyhow::{Result, ensure};
use serde::Serialize;

pub use self::{
    live::Live,
    pings::{Loss, Pings},
    server::{Kind, PORT, serve},
};
use crate::{
    fleet::Fleet,
    interrupt,
    plan::{AnnounceMethod, Plan, Routing},
    report::{Table, grouped},
};

/// The options of a chaos run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The lab's name.
    pub name: String,
    /// The number of directors, at least 2.
    pub directors: u8,
    /// The number of connections of each kind.
    pub each: usize,
    /// The announcement method of the directors.
    pub way: AnnounceMethod,
    /// Whether health checkers write the directors' tables and are killed, too.
    pub health: bool,
}

/// The result of one event.
#[derive(Clone, Debug, Serialize)]
pub struct EventResult {
    /// The event in words.
    pub event: String,
    /// The duration in seconds.
    pub seconds: f64,
    /// Connections that broke.
    pub broken: usize,
    /// Pings sent.
    pub pings: usize,
    /// Pings without an answer.
    pub lost: usize,
    /// The longest packet loss of one client, in milliseconds.
    pub loss_ms: u128,
    /// The allowed packet loss, in milliseconds.
    pub limit_ms: u128,
    /// The longest wait of a connection for an answer, in milliseconds.
    pub stall_ms: u128,
    /// TCP segments that clients and backends retransmitted.
    pub retransmits: u64,
}

impl EventResult {
    /// Returns whether no connection broke and the loss stayed within its limit.
    #[must_use]
    pub const fn held(&self) -> bool {
        self.broken == 0 && self.loss_ms <= self.limit_ms
    }
}

/// The results of a chaos run.
#[derive(Clone, Debug, Serialize)]
pub struct ChaosReport {
    /// The number of connections that were open.
    pub connections: usize,
    /// The result of each event, in order.
    pub rows: Vec<EventResult>,
    /// Every connection that broke, with the reason.
    pub broken: Vec<String>,
}

impl ChaosReport {
    /// Returns whether every event stayed within its limits.
    #[must_use]
    pub fn held(&self) -> bool {
        self.broken.is_empty() && self.rows.iter().all(EventResult::held)
    }
}

/// Starts a fleet, runs all events and returns the results. Progress goes to `out`.
///
/// # Errors
/// When a part of the lab fails, and on Ctrl-C.
pub fn run(options: &Options, out: &mut dyn Write) -> Result<ChaosReport> {
    // The expected effect of each daemon's death is written for these methods only.
    ensure!(
        matches!(options.way, AnnounceMethod::Bird | AnnounceMethod::Tun),
        "the proof knows directors that announce by `bird` or `tun`; `lab up` knows the others too"
    );
    let plan = Plan {
        directors: options.directors,
        routing: Routing::Bgp,
        way: options.way,
        health: options.health,
        live: true,
        ..Plan::new(&options.name)
    };
    let mut fleet = Fleet::up(plan, 1, true)?;
    let live = Live::start(&fleet.lab, options.each)?;
    let connections = live.counts.values().sum();
    writeln!(out, "{connections} connections are open; they stay open through all events:")?;
    let pings = Pings::start(&fleet.lab)?;
    let mut rows = Vec::new();
    for event in events::all(&fleet) {
        interrupt::check()?;
        write!(out, "  {}", event.name)?;
        out.flush()?;
        let broken = live.broken().len();
        let before = retransmits(&fleet)?;
        live.longest_stall();
        let begun = Instant::now();
        (event.act)(&mut fleet)?;
        let seconds = begun.elapsed().as_secs_f64();
        live.all_alive()?;
        let loss = pings.loss_since(begun);
        let row = EventResult {
            event: event.name,
            seconds,
            broken: live.broken().len() - broken,
            pings: loss.sent,
            lost: loss.lost,
            loss_ms: loss.longest.as_millis(),
            limit_ms: event.limit.as_millis(),
            stall_ms: live.longest_stall().as_millis(),
            retransmits: retransmits(&fleet)? - before,
        };
        let verdict = if row.held() { "ok" } else { "FAILED" };
        writeln!(out, ": {verdict}, {} broken, {} ms lost", row.broken, row.loss_ms)?;
        rows.push(row);
    }
    drop(pings);
    let broken = live.finish();
    Ok(ChaosReport { connections, rows, broken })
}

fn retransmits(fleet: &Fleet) -> Result<u64> {
    Ok(fleet.retransmits()?.values().sum())
}

impl fmt::Display for ChaosReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["broken", "pings", "lost", "for ms", "stall ms", "retransmits", "took s"];
        let mut table = Table::new(&head);
        for row in &self.rows {
            let numbers = [row.broken as u64, row.pings as u64, row.lost as u64];
            let mut cells: Vec<_> = numbers.map(grouped).into();
            cells.extend([row.loss_ms.to_string(), row.stall_ms.to_string()]);
            cells.extend([grouped(row.retransmits), format!("{:.1}", row.seconds)]);
            table.row(&row.event, cells);
        }
        write!(f, "{table}")?;
        let broken = self.broken.len();
        writeln!(f, "\n{broken} of {} connections broke.", self.connections)?;
        for what in &self.broken {
            writeln!(f, "  {what}")?;
        }
        for row in self.rows.iter().filter(|row| !row.held()) {
            writeln!(f, "FAILED: {} ({} ms allowed)", row.event, row.limit_ms)?;
        }
        Ok(())
    }
}

/// The explanation printed under the result table.
pub const LEGEND: &str = "\
broken       connections of those open since the beginning that the event ended or stalled for 30 s
lost, for    pings that were not answered, and the longest time that a client got no answer
stall        the longest that an echo took over a connection, retransmissions included
retransmits  TCP segments that clients and backends sent again";

/// The default of [`Options::each`].
pub const EACH: usize = 16;
