//! Who may hold flows, over the life of the daemon and its successors, and what a change would do to
//! them.

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
    boot_time::{self, Moment},
    state_dir::Store,
};

/// Names that are given at most for what may be lost.
const MOST: usize = 5;

/// The memory, with the time that passes.
pub(super) struct Safety {
    memory: FlowHistory,
    /// Until when time has passed in the memory, by the clock that no one sets.
    until: Duration,
    /// Not kept yet, since it was kept only a moment ago.
    is_due: bool,
    /// When it is kept again at the earliest.
    not_before: Instant,
}

/// Keeping the memory of hundreds of tables takes a while: at most this part of the time is spent on
/// it.
const SHARE: u32 = 10;

impl Safety {
    /// What was kept, or nothing.
    pub(super) fn open(store: &Store, flow_age: u64) -> Self {
        let kept = store.holders().and_then(|bytes| match read(&bytes, flow_age) {
            Ok(memory) => Some(memory),
            Err(problem) => {
                warn!(
                    file = %store.holders_file().display(), problem,
                    "who may hold flows is not known any more: for {} a change may be called safe \
                     that is not",
                    format_duration(flow_age)
                );
                None
            }
        });
        let memory = kept.unwrap_or_else(|| FlowHistory::new(flow_age));
        Self { memory, until: boot_time::since_boot(), is_due: false, not_before: Instant::now() }
    }

    fn pass(&mut self) {
        let seconds = boot_time::since_boot().saturating_sub(self.until).as_secs();
        self.until += Duration::from_secs(seconds);
        self.memory.advance(seconds);
    }

    /// What a change from the tables in force would do.
    pub(super) fn judge(&mut self, before: &[BuiltTable], built: &[BuiltTable]) -> RiskReport {
        self.pass();
        self.memory.assess_change(before, built)
    }

    /// These tables are in force.
    pub(super) fn adopt(&mut self, built: &[BuiltTable], store: &mut Store) {
        self.pass();
        self.memory.activate(built);
        self.keep(store);
    }

    /// A backend is known to have no flows; in how many rows it was remembered for some.
    pub(super) fn drained(&mut self, backend: IpAddr, store: &mut Store) -> usize {
        self.pass();
        let before = self.memory.rows_held(backend);
        self.memory.mark_drained(backend);
        let rows = before - self.memory.rows_held(backend);
        self.keep(store);
        rows
    }

    /// In how many rows a backend may hold flows.
    pub(super) fn rows_held(&self, backend: IpAddr) -> usize {
        self.memory.rows_held(backend)
    }

    fn keep(&mut self, store: &mut Store) {
        self.is_due = true;
        if Instant::now() >= self.not_before {
            self.flush(store);
        }
    }

    /// Keeps what has not been kept.
    pub(super) fn flush(&mut self, store: &mut Store) {
        if !std::mem::take(&mut self.is_due) {
            return;
        }
        let begun = Instant::now();
        let mut bytes = serde_json::to_vec(&Moment::now()).unwrap_or_default();
        bytes.push(b'\n');
        bytes.extend(self.memory.to_bytes());
        store.keep_holders(bytes);
        self.not_before = Instant::now() + SHARE * begun.elapsed();
    }
}

fn read(bytes: &[u8], flow_age: u64) -> Result<FlowHistory, String> {
    let end = bytes.iter().position(|byte| *byte == b'\n').ok_or("it is damaged: cut off")?;
    let (kept, memory) = bytes.split_at(end);
    let kept: Moment =
        serde_json::from_slice(kept).map_err(|error| format!("it is damaged: {error}"))?;
    let memory = memory.get(1..).unwrap_or_default();
    let mut memory =
        FlowHistory::from_bytes(memory, flow_age).map_err(|error| error.to_string())?;
    memory.advance(kept.until(&Moment::now()));
    Ok(memory)
}

/// The largest share of a table's flows that a change puts at risk.
pub(super) fn worst(judgement: &RiskReport) -> f64 {
    let of = |table: &glb_table::flow_safety::TableRisk| {
        if table.binds_lost.is_empty() { table.at_risk } else { 1.0 }
    };
    judgement.tables.iter().map(of).fold(0.0, f64::max)
}

/// What a change puts at risk, for people; empty if nothing.
pub(super) fn in_words(judgement: &RiskReport) -> String {
    let mut lines = Vec::new();
    for table in &judgement.tables {
        let name = &table.table;
        if table.removed {
            lines.push(format!("table \"{name}\" is gone, and all its flows with it"));
            continue;
        }
        if table.at_risk > 0.0 {
            let who: Vec<String> = table
                .lost
                .iter()
                .take(MOST)
                .map(|lost| format!("{} ({} rows: {})", lost.backend, lost.rows, lost.reason))
                .collect();
            let more = table.lost.len().saturating_sub(MOST);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            lines.push(format!(
                "table \"{name}\": up to {:.2} % of the established flows lose their backend: {}{more}",
                table.at_risk * 100.0,
                who.join(", ")
            ));
        }
        if !table.binds_lost.is_empty() {
            let binds = table.binds_lost.iter().take(MOST).cloned().collect::<Vec<_>>().join(", ");
            let more = table.binds_lost.len().saturating_sub(MOST);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            lines.push(format!("table \"{name}\" loses all flows of {binds}{more}"));
        }
    }
    lines.join("\n")
}
