//! The proof: directors come and go in every way there is, with live connections through all of it.
//!
//! Connections of four kinds ([`Kind`]) are opened once and live through every event. A stream of
//! pings tells how long packets were lost; the kernels tell what TCP had to send again.

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
    plan::{Plan, Routing, Way},
    report::{Table, grouped},
};

/// What the proof is to be like.
#[derive(Clone, Debug)]
pub struct Options {
    /// The lab's name.
    pub name: String,
    /// How many directors, from 2 on.
    pub directors: u8,
    /// How many connections of each kind.
    pub each: usize,
    /// How directors announce.
    pub way: Way,
    /// Whether health checkers feed the directors, and die too.
    pub health: bool,
}

/// What one event did.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What happened.
    pub event: String,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Connections that broke.
    pub broken: usize,
    /// Pings sent and lost.
    pub pings: usize,
    /// Pings that were not answered.
    pub lost: usize,
    /// The longest time that packets of one client were lost, in milliseconds.
    pub loss_ms: u128,
    /// The most that it may be.
    pub limit_ms: u128,
    /// The longest that a connection waited for an answer, in milliseconds.
    pub stall_ms: u128,
    /// TCP segments that clients and backends sent again.
    pub retransmits: u64,
}

impl Row {
    /// Whether nothing broke and no more was lost than may be.
    #[must_use]
    pub const fn held(&self) -> bool {
        self.broken == 0 && self.loss_ms <= self.limit_ms
    }
}

/// What came of the proof.
#[derive(Clone, Debug, Serialize)]
pub struct Matrix {
    /// How many connections lived through it.
    pub connections: usize,
    /// One for each event, in order.
    pub rows: Vec<Row>,
    /// Every connection that broke, with the reason.
    pub broken: Vec<String>,
}

impl Matrix {
    /// Whether all held.
    #[must_use]
    pub fn held(&self) -> bool {
        self.broken.is_empty() && self.rows.iter().all(Row::held)
    }
}

/// Brings a fleet up, lets everything happen to it and tells what came of it. Progress goes to
/// `out`.
///
/// # Errors
/// When a part of the lab does not work at all, and on Ctrl-C.
pub fn run(options: &Options, out: &mut dyn Write) -> Result<Matrix> {
    // Its events say what is to come of each daemon's death, and are written for these.
    ensure!(
        matches!(options.way, Way::Bird | Way::Tun),
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
    writeln!(out, "{connections} connections are open; they live through all that comes now:")?;
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
        let row = Row {
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
    Ok(Matrix { connections, rows, broken })
}

fn retransmits(fleet: &Fleet) -> Result<u64> {
    Ok(fleet.retransmits()?.values().sum())
}

impl fmt::Display for Matrix {
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

/// How the matrix is read.
pub const LEGEND: &str = "\
broken       connections of those open since the beginning that the event ended or stalled for 30 s
lost, for    pings that were not answered, and the longest time that a client got no answer
stall        the longest that an echo took over a connection, retransmissions included
retransmits  TCP segments that clients and backends sent again";

/// The default of [`Options::each`].
pub const EACH: usize = 16;
