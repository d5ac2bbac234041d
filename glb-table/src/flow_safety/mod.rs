//! The safety rule: tells whether a change of tables can break established flows.
//!
//! A row's first hop takes new flows. A backend is a *holder* of a row if it was the row's first hop at
//! some time since it was last known to have no flows. A change is safe if every healthy holder is
//! among its row's new hops, and no unhealthy hop comes before it: a packet that is sent to a dead hop
//! is lost.
//!
//! [`FlowHistory`] remembers the holders over a sequence of tables, and [`RiskReport`] is its verdict
//! on a new table.

mod binds;
mod persistence;
mod reachability;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

pub use persistence::HistoryError;
use reachability::{Candidate, RowCounts};
use serde::Serialize;

use crate::{Backend, Bind, BuiltTable, HashFields, Key, ROWS, Rows, Table};

/// Everything that a flow's row depends on, besides the flow. Tables with equal flow hashes send a flow
/// to the same row.
#[derive(Clone, Copy, PartialEq, Eq)]
struct FlowHash {
    key: Key,
    fields: HashFields,
}

fn main_hash(table: &Table) -> FlowHash {
    FlowHash { key: table.hash_key, fields: table.hash_fields }
}

fn alternative_hash(table: &Table) -> FlowHash {
    FlowHash {
        key: table.alt_hash_key.unwrap_or(table.hash_key),
        fields: table.alt_hash_fields.unwrap_or(table.hash_fields),
    }
}

/// A backend that was the first hop of a row in the past and may still have flows of it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct PastHolder {
    row: u16,
    backend: u32,
    /// When it stopped being the first hop.
    until: u64,
}

/// The past holders for one flow hash, sorted by row.
struct HashHistory {
    hash: FlowHash,
    past: Vec<PastHolder>,
}

/// The absence of a backend.
const NONE: u32 = u32::MAX;

/// The history of one table. It takes 4 bytes per row for the first hop, and 16 bytes per past holder.
struct TableHistory {
    addresses: Vec<IpAddr>,
    numbers: HashMap<IpAddr, u32>,
    /// The last known health of each backend.
    healthy: Vec<bool>,
    hashes: Vec<HashHistory>,
    binds: Vec<Bind>,
    /// The first hop of each row with the hash `current`; it is a holder as well.
    first: Vec<u32>,
    current: FlowHash,
}

/// The backends that may have flows in each row of each table, over a sequence of tables.
///
/// ```
/// use glb_table::{RowCache, State, flow_safety::FlowHistory};
/// # let text = r#"{"tables": [{"hash_key": "2ac26cd8ca2eb2aa9b4a52d7cb39dd3a",
/// #     "seed": "c5a3ab27d95dd9a3ae4d2c8bf4a5a3f1",
/// #     "binds": [{"ip": "203.0.113.10", "proto": "tcp", "port": 80}],
/// #     "backends": [{"ip": "10.0.0.1", "state": "active", "healthy": true},
/// #                  {"ip": "10.0.0.2", "state": "active", "healthy": true}]}]}"#;
/// # let path = std::path::Path::new("table.json");
/// # let mut set = glb_table::parse_bytes(path, glb_table::Format::Json, text.as_bytes())?;
/// let mut rows = RowCache::default();
/// let mut history = FlowHistory::new(86_400);
/// history.activate(&rows.build(&set));
///
/// set.tables[0].backends[0].state = State::Draining;
/// assert!(history.assess(&rows.build(&set)).safe);
/// set.tables[0].backends[0].state = State::Inactive;
/// assert!(!history.assess(&rows.build(&set)).safe);
/// # Ok::<(), glb_table::LoadError>(())
/// ```
pub struct FlowHistory {
    tables: BTreeMap<String, TableHistory>,
    now: u64,
    flow_age: u64,
}

/// What a change of tables can do to established flows.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RiskReport {
    /// No flow can break.
    pub safe: bool,
    /// The risk for each table: first the tables in the history, then new ones.
    pub tables: Vec<TableRisk>,
}

/// What a change can do to the established flows of one table.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TableRisk {
    /// The table's name.
    pub table: String,
    /// Share of established flows, from 0 to 1, that break in the worst case: when all flows of a row
    /// belong to the holder that is lost.
    pub at_risk: f64,
    /// Number of rows with a holder that flows may no longer reach.
    pub rows_at_risk: usize,
    /// The holders that flows may no longer reach, those with the most rows first.
    pub lost: Vec<HolderAtRisk>,
    /// Share of handshakes in flight that may have to be retried because their row's first hop changes.
    /// They are not established flows, and do not make a change unsafe.
    pub handshakes: f64,
    /// Binds that the table no longer serves; their flows break.
    pub binds_lost: Vec<String>,
    /// The table is removed.
    pub removed: bool,
}

/// A holder that flows may not reach any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HolderAtRisk {
    /// The backend's address.
    pub backend: IpAddr,
    /// Number of rows in which it may have flows that break.
    pub rows: usize,
    /// The reason, for the first of these rows.
    pub reason: &'static str,
}

impl TableRisk {
    fn is_safe(&self) -> bool {
        self.at_risk == 0.0 && self.binds_lost.is_empty() && !self.removed
    }
}

impl FlowHistory {
    /// An empty history. `flow_age` is the longest lifetime of a flow, in seconds.
    #[must_use]
    pub fn new(flow_age: u64) -> Self {
        Self { tables: BTreeMap::new(), now: 0, flow_age }
    }

    /// The longest lifetime of a flow, in seconds.
    #[must_use]
    pub fn flow_age(&self) -> u64 {
        self.flow_age
    }

    /// Advances the clock. Holders that have not been a first hop for `flow_age` are forgotten.
    pub fn advance(&mut self, seconds: u64) {
        self.now = self.now.saturating_add(seconds);
        let (now, age) = (self.now, self.flow_age);
        self.forget(|_, past| now - past.until >= age);
    }

    /// Records that a backend has no flows. In rows where it is the first hop it remains a holder.
    pub fn mark_drained(&mut self, backend: IpAddr) {
        self.forget(|addresses, past| addresses[past.backend as usize] == backend);
    }

    fn forget(&mut self, gone: impl Fn(&[IpAddr], &PastHolder) -> bool) {
        for history in self.tables.values_mut() {
            for hash_history in &mut history.hashes {
                hash_history.past.retain(|past| !gone(&history.addresses, past));
            }
            history.hashes.retain(|hash_history| !hash_history.past.is_empty());
        }
    }

    /// The number of rows, over all tables, in which a backend may have flows.
    #[must_use]
    pub fn rows_held(&self, backend: IpAddr) -> usize {
        let history = self
            .tables
            .values()
            .filter_map(|history| Some((history, *history.numbers.get(&backend)?)));
        history
            .map(|(history, number)| {
                let past = history.hashes.iter().flat_map(|hash_history| &hash_history.past);
                past.filter(|past| past.backend == number).count()
                    + history.first.iter().filter(|first| **first == number).count()
            })
            .sum()
    }

    /// Assesses what these tables would do to established flows.
    #[must_use]
    pub fn assess(&self, built: &[BuiltTable]) -> RiskReport {
        self.assess_from(&[], built)
    }

    /// Assesses what a change from the tables in force, `before`, would do to established flows. Flows
    /// that `before` already loses, with the health that the new tables tell, are not counted.
    #[must_use]
    pub fn assess_change(&self, before: &[BuiltTable], built: &[BuiltTable]) -> RiskReport {
        self.assess_from(before, built)
    }

    fn assess_from(&self, in_force: &[BuiltTable], built: &[BuiltTable]) -> RiskReport {
        let mut tables = Vec::new();
        for (name, history) in &self.tables {
            let found = built.iter().find(|built| built.table.name == *name);
            let others = self.tables.iter().filter(|(other, _)| *other != name);
            let before = others.flat_map(|(_, history)| &history.binds).collect();
            tables.push(match found {
                Some(new) => {
                    let old = in_force.iter().find(|built| built.table.name == *name);
                    let mut risk = match old.filter(|before| has_same_hops(before, new)) {
                        Some(_) => TableRisk { table: name.clone(), ..TableRisk::default() },
                        None => history.assess(new, old),
                    };
                    risk.binds_lost.extend(binds::taken(name, &history.binds, &before, built));
                    risk
                }
                None => TableRisk {
                    table: name.clone(),
                    at_risk: 1.0,
                    removed: true,
                    ..TableRisk::default()
                },
            });
        }
        for built in built.iter().filter(|built| !self.tables.contains_key(&built.table.name)) {
            tables.push(TableRisk { table: built.table.name.clone(), ..TableRisk::default() });
        }
        RiskReport { safe: tables.iter().all(TableRisk::is_safe), tables }
    }

    /// Records that these tables are in force from now on.
    pub fn activate(&mut self, built: &[BuiltTable]) {
        self.tables.retain(|name, _| built.iter().any(|built| built.table.name == *name));
        for built in built {
            let history = self
                .tables
                .entry(built.table.name.clone())
                .or_insert_with(|| TableHistory::new(&built.table));
            history.activate(built, self.now);
        }
    }
}

/// Whether both tables send every flow to the same hops.
fn has_same_hops(before: &BuiltTable, new: &BuiltTable) -> bool {
    Arc::ptr_eq(&before.rows, &new.rows) && {
        let of = |built: &BuiltTable| {
            let table = &built.table;
            (main_hash(table), alternative_hash(table), table.alt_seed)
        };
        of(before) == of(new) && before.table.binds == new.table.binds
    }
}

/// The table with the health that is known now.
fn with_current_health(before: &BuiltTable, healthy: impl Fn(&Backend) -> bool) -> BuiltTable {
    let mut before = before.clone();
    for backend in &mut before.table.backends {
        backend.healthy = healthy(backend);
    }
    before
}

impl TableHistory {
    fn new(table: &Table) -> Self {
        Self {
            addresses: Vec::new(),
            numbers: HashMap::new(),
            healthy: Vec::new(),
            hashes: Vec::new(),
            binds: table.binds.clone(),
            first: vec![NONE; ROWS],
            current: main_hash(table),
        }
    }

    /// Assesses a new version of the table.
    fn assess(&self, built: &BuiltTable, before: Option<&BuiltTable>) -> TableRisk {
        let table = &built.table;
        // New backends get numbers after the known ones.
        let mut numbers = self.numbers.clone();
        let mut healthy = self.healthy.clone();
        for backend in &table.backends {
            let next = numbers.len() as u32;
            let number = *numbers.entry(backend.address).or_insert(next);
            healthy.resize(numbers.len(), true);
            healthy[number as usize] = backend.healthy;
        }
        let numbers_of: Vec<u32> =
            table.backends.iter().map(|backend| numbers[&backend.address]).collect();
        let reach = |rows: &Rows| RowCounts::new(rows, table, &numbers_of, numbers.len());
        let candidate = Candidate {
            main: reach(&built.rows),
            alternative: built.alternative.as_deref().map(reach),
            numbers: &numbers_of,
            built,
        };
        // Removed backends keep their last known health.
        let is_healthy = |backend: &Backend| {
            numbers.get(&backend.address).is_none_or(|number| healthy[*number as usize])
        };
        let before = before.map(|before| with_current_health(before, is_healthy));
        let numbers_before: Vec<u32> = before
            .iter()
            .flat_map(|before| &before.table.backends)
            .map(|backend| numbers.get(&backend.address).copied().unwrap_or(NONE))
            .collect();
        let reach_before = |before: &BuiltTable, rows: &Rows| {
            RowCounts::new(rows, &before.table, &numbers_before, numbers.len())
        };
        let before =
            before.as_ref().filter(|_| !numbers_before.contains(&NONE)).map(|before| Candidate {
                main: reach_before(before, &before.rows),
                alternative: before.alternative.as_deref().map(|rows| reach_before(before, rows)),
                numbers: &numbers_before,
                built: before,
            });
        let mut out = TableRisk { table: table.name.clone(), ..TableRisk::default() };
        let mut lost: BTreeMap<u32, (usize, &'static str)> = BTreeMap::new();
        for (hash, past, first) in self.holders_by_hash() {
            let mut at_risk = 0.0;
            let mut rest = past;
            for row in 0..ROWS {
                let here = rest.iter().take_while(|past| usize::from(past.row) == row).count();
                let (holders, after) = rest.split_at(here);
                rest = after;
                let first = first.get(row).copied().filter(|first| *first != NONE);
                let mut worst = 0.0;
                for backend in holders.iter().map(|past| past.backend).chain(first) {
                    if !healthy[backend as usize] {
                        continue;
                    }
                    let (mut share, why) = candidate.broken_share(hash, row, backend);
                    if share > 0.0
                        && let Some(before) = &before
                    {
                        share = (share - before.broken_share(hash, row, backend).0).max(0.0);
                    }
                    if share > 0.0 {
                        lost.entry(backend).or_insert((0, why)).0 += 1;
                        worst = f64::max(worst, share);
                    }
                }
                at_risk += worst;
                out.rows_at_risk += usize::from(worst > 0.0);
            }
            out.at_risk = f64::max(out.at_risk, at_risk / ROWS as f64);
        }
        let lost = lost.into_iter();
        out.lost = lost
            .map(|(number, (rows, why))| HolderAtRisk {
                backend: self.addresses[number as usize],
                rows,
                reason: why,
            })
            .collect();
        out.lost.sort_by_key(|lost| std::cmp::Reverse(lost.rows));
        out.handshakes = self.share_of_changed_first_hops(built, &numbers_of, numbers.len());
        let kept: HashSet<&Bind> = table.binds.iter().collect();
        let gone = self
            .binds
            .iter()
            .filter(|bind| !kept.contains(bind) && !binds::covered(bind, &table.binds));
        out.binds_lost = gone.map(Bind::to_string).collect();
        out
    }

    /// For each flow hash the past holders, and the first hops if the hash is in force.
    fn holders_by_hash(&self) -> impl Iterator<Item = (FlowHash, &[PastHolder], &[u32])> {
        let current = self.hashes.iter().find(|hash_history| hash_history.hash == self.current);
        let current = (
            self.current,
            current.map_or(&[][..], |hash_history| &hash_history.past[..]),
            &self.first[..],
        );
        let others = self.hashes.iter().filter(|hash_history| hash_history.hash != self.current);
        std::iter::once(current)
            .chain(others.map(|hash_history| (hash_history.hash, &hash_history.past[..], &[][..])))
    }

    /// The share of flows whose first hop changes.
    fn share_of_changed_first_hops(
        &self,
        built: &BuiltTable,
        numbers: &[u32],
        known: usize,
    ) -> f64 {
        let rows = built
            .rows
            .iter()
            .map(|row| row.first().map_or(NONE, |index| numbers[usize::from(*index)]));
        if main_hash(&built.table) == self.current {
            return rows.zip(&self.first).filter(|(new, old)| new != *old).count() as f64
                / ROWS as f64;
        }
        // With another hash, a flow of any old row may be in any new row.
        let mut shares = (vec![0_u64; known + 1], vec![0_u64; known + 1]);
        for (new, old) in rows.zip(&self.first) {
            shares.0[(new as usize).min(known)] += 1;
            shares.1[(*old as usize).min(known)] += 1;
        }
        let same: u64 = shares.0.iter().zip(&shares.1).map(|(new, old)| new * old).sum();
        1.0 - same as f64 / (ROWS as f64 * ROWS as f64)
    }

    /// Records that a new version of the table is in force.
    fn activate(&mut self, built: &BuiltTable, now: u64) {
        let table = &built.table;
        for backend in &table.backends {
            let next = self.addresses.len() as u32;
            let number = *self.numbers.entry(backend.address).or_insert(next);
            if number == next {
                self.addresses.push(backend.address);
                self.healthy.push(backend.healthy);
            }
            self.healthy[number as usize] = backend.healthy;
        }
        self.binds.clone_from(&table.binds);
        let number = |index: &u16| self.numbers[&table.backends[usize::from(*index)].address];
        let first: Vec<u32> =
            built.rows.iter().map(|row| row.first().map_or(NONE, number)).collect();
        let hash = main_hash(table);
        if hash == self.current {
            self.retire(&first, now);
        } else {
            self.retire(&[], now);
            self.current = hash;
            // A hash that was in force before may have past holders that are first hops again.
            self.first.fill(NONE);
            self.retire(&first, now);
        }
        self.first = first;
    }

    /// Turns the first hops into past holders, except those that are also first hops in `new`; and
    /// removes the first hops in `new` from the past holders.
    fn retire(&mut self, new: &[u32], now: u64) {
        let at = self.hashes.iter().position(|hash_history| hash_history.hash == self.current);
        let mut old = at
            .map(|at| self.hashes.swap_remove(at).past)
            .unwrap_or_default()
            .into_iter()
            .peekable();
        let mut past = Vec::new();
        for (row, first) in (0..=u16::MAX).zip(&self.first) {
            let stays = new.get(usize::from(row)).copied().unwrap_or(NONE);
            let mut retired = (*first != NONE && *first != stays).then_some(*first);
            while let Some(one) = old.next_if(|past| past.row == row) {
                if retired == Some(one.backend) {
                    retired = None;
                    past.push(PastHolder { until: now, ..one });
                } else if one.backend != stays {
                    past.push(one);
                }
            }
            past.extend(retired.map(|backend| PastHolder { row, backend, until: now }));
        }
        if !past.is_empty() {
            self.hashes.push(HashHistory { hash: self.current, past });
        }
    }
}
