//! Remembers which backends may hold flows, across restarts of the daemon, and assesses the risk of
//! changes.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use glb_table::{
    BuiltTable,
    flow_safety::{FlowHistory, RiskReport},
    plan::format_duration,
};
use tracing::warn;

use super::{
    boot_time::{self, BootTimestamp},
    state_dir::StateDir,
};

/// The largest number of names in one line of a warning.
const MAX_NAMES: usize = 5;

/// The flow history, kept in the state folder and advanced with the boot-time clock.
pub(super) struct FlowSafety {
    history: FlowHistory,
    /// The time that the history has been advanced to, by the boot-time clock.
    advanced_to: Duration,
    /// The history has changed since it was last written.
    is_unwritten: bool,
    /// The earliest time of the next write.
    next_write: Instant,
}

/// Writes wait this many times as long as the last one took: the history of hundreds of tables takes a
/// while to write.
const WRITE_PAUSE: u32 = 10;

impl FlowSafety {
    /// Reads the history from the state folder; it is empty if there is none.
    pub(super) fn open(state_dir: &StateDir, flow_age: u64) -> Self {
        let kept = state_dir.flow_history().and_then(|bytes| match read(&bytes, flow_age) {
            Ok(history) => Some(history),
            Err(problem) => {
                warn!(
                    file = %state_dir.flow_history_file().display(), problem,
                    "flow history was lost: for the next {}, unsafe changes may not be recognised",
                    format_duration(flow_age)
                );
                None
            }
        });
        let history = kept.unwrap_or_else(|| FlowHistory::new(flow_age));
        let advanced_to = boot_time::since_boot();
        Self { history, advanced_to, is_unwritten: false, next_write: Instant::now() }
    }

    fn advance(&mut self) {
        let seconds = boot_time::since_boot().saturating_sub(self.advanced_to).as_secs();
        self.advanced_to += Duration::from_secs(seconds);
        self.history.advance(seconds);
    }

    /// Assesses which flows a change from `before` to `after` can break.
    pub(super) fn assess(&mut self, before: &[BuiltTable], after: &[BuiltTable]) -> RiskReport {
        self.advance();
        self.history.assess_change(before, after)
    }

    /// Records that these tables are active.
    pub(super) fn activated(&mut self, built: &[BuiltTable], state_dir: &mut StateDir) {
        self.advance();
        self.history.activate(built);
        self.write_soon(state_dir);
    }

    /// Records that a backend has no flows. Returns the number of rows that are forgotten for it.
    pub(super) fn mark_drained(&mut self, backend: IpAddr, state_dir: &mut StateDir) -> usize {
        self.advance();
        let before = self.history.rows_held(backend);
        self.history.mark_drained(backend);
        let rows = before - self.history.rows_held(backend);
        self.write_soon(state_dir);
        rows
    }

    /// The number of rows in which a backend may hold flows.
    pub(super) fn rows_held(&self, backend: IpAddr) -> usize {
        self.history.rows_held(backend)
    }

    fn write_soon(&mut self, state_dir: &mut StateDir) {
        self.is_unwritten = true;
        if Instant::now() >= self.next_write {
            self.flush(state_dir);
        }
    }

    /// Writes the history if it has changed.
    pub(super) fn flush(&mut self, state_dir: &mut StateDir) {
        if !std::mem::take(&mut self.is_unwritten) {
            return;
        }
        let begun = Instant::now();
        let mut bytes = serde_json::to_vec(&BootTimestamp::now()).unwrap_or_default();
        bytes.push(b'\n');
        bytes.extend(self.history.to_bytes());
        state_dir.keep_flow_history(bytes);
        self.next_write = Instant::now() + WRITE_PAUSE * begun.elapsed();
    }
}

fn read(bytes: &[u8], flow_age: u64) -> Result<FlowHistory, String> {
    let end = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .ok_or("the file is damaged: it is truncated")?;
    let (kept, memory) = bytes.split_at(end);
    let kept: BootTimestamp =
        serde_json::from_slice(kept).map_err(|error| format!("the file is damaged: {error}"))?;
    let memory = memory.get(1..).unwrap_or_default();
    let mut memory =
        FlowHistory::from_bytes(memory, flow_age).map_err(|error| error.to_string())?;
    memory.advance(kept.seconds_until(&BootTimestamp::now()));
    Ok(memory)
}

/// The largest share of a table's established flows that a change can break.
pub(super) fn largest_risk(risk: &RiskReport) -> f64 {
    let of = |table: &glb_table::flow_safety::TableRisk| {
        if table.binds_lost.is_empty() { table.at_risk } else { 1.0 }
    };
    risk.tables.iter().map(of).fold(0.0, f64::max)
}

/// The flows that a change can break, for people; empty if none.
pub(super) fn risk_text(risk: &RiskReport) -> String {
    let mut lines = Vec::new();
    for table in &risk.tables {
        let name = &table.table;
        if table.removed {
            lines.push(format!("table \"{name}\" is removed: all its flows break"));
            continue;
        }
        if table.at_risk > 0.0 {
            let who: Vec<String> = table
                .lost
                .iter()
                .take(MAX_NAMES)
                .map(|lost| format!("{} ({} rows: {})", lost.backend, lost.rows, lost.reason))
                .collect();
            let more = table.lost.len().saturating_sub(MAX_NAMES);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            lines.push(format!(
                "table \"{name}\": up to {:.2} % of the established flows lose their backend: {}{more}",
                table.at_risk * 100.0,
                who.join(", ")
            ));
        }
        if !table.binds_lost.is_empty() {
            let binds =
                table.binds_lost.iter().take(MAX_NAMES).cloned().collect::<Vec<_>>().join(", ");
            let more = table.binds_lost.len().saturating_sub(MAX_NAMES);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            lines.push(format!("table \"{name}\" loses all flows of {binds}{more}"));
        }
    }
    lines.join("\n")
}
