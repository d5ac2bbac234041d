//! Who may hold flows in which row, and whether a new table still leads to them.
//!
//! A backend *holds* a row if it was the row's first hop at some time since it was last known to be
//! empty of flows. A change is safe if every holder that lives stands in its row's new hops with no
//! unhealthy hop before it, for a packet that is sent to a dead hop is lost.

mod binds;
mod persistence;
mod reachability;

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

pub use persistence::SavedError;
use reachability::{Asked, Reach};
use serde::Serialize;

use crate::{Backend, Bind, BuiltTable, HashFields, Key, ROWS, Rows, Table};

/// What a flow's row is found by: two tables that agree in it lead a flow to the same row.
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

/// A backend that was a row's first hop and may hold flows of it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Past {
    row: u16,
    backend: u32,
    /// When it ceased to be first.
    until: u64,
}

/// The past holders of the rows that flows come to by one hash, sorted by row.
struct Layer {
    hash: FlowHash,
    past: Vec<Past>,
}

/// No backend.
const NONE: u32 = u32::MAX;

/// The memory of one table: 4 bytes a row for who is first now, 16 for each past holder of a row.
struct Held {
    addresses: Vec<IpAddr>,
    numbers: HashMap<IpAddr, u32>,
    /// What was last said of each backend's health.
    healthy: Vec<bool>,
    layers: Vec<Layer>,
    binds: Vec<Bind>,
    /// The first hop of each row now, by the hash `current`: a holder too.
    first: Vec<u32>,
    current: FlowHash,
}

/// Who may hold flows in each row of each table, over a sequence of tables.
pub struct FlowHistory {
    tables: BTreeMap<String, Held>,
    now: u64,
    flow_age: u64,
}

/// What a new set of tables would do to the flows that may be there.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RiskReport {
    /// Whether no flow can break.
    pub safe: bool,
    /// By table, those of the memory first.
    pub tables: Vec<TableRisk>,
}

/// What a new table would do to its flows.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TableRisk {
    /// The table's name.
    pub table: String,
    /// Share of established flows that break if the worst of each row's holders holds them; from 0 to 1.
    pub at_risk: f64,
    /// Rows with a holder that can be lost.
    pub rows_at_risk: usize,
    /// Which holders can be lost, those with the most rows first.
    pub lost: Vec<HolderAtRisk>,
    /// Share of handshakes in flight at the swap that may have to be tried again, for their row's
    /// first hop changes. These are no established flows, and no part of the verdict.
    pub handshakes: f64,
    /// Binds that this table no longer answers for: their flows are lost.
    pub binds_lost: Vec<String>,
    /// The table itself is gone.
    pub removed: bool,
}

/// A holder that flows may not reach any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HolderAtRisk {
    /// Who.
    pub backend: IpAddr,
    /// In how many rows it may still hold flows that may be lost.
    pub rows: usize,
    /// Why, of the first such row.
    pub reason: &'static str,
}

impl TableRisk {
    fn is_safe(&self) -> bool {
        self.at_risk == 0.0 && self.binds_lost.is_empty() && !self.removed
    }
}

impl FlowHistory {
    /// An empty memory. `flow_age` is how long a flow lives at most, in seconds.
    #[must_use]
    pub fn new(flow_age: u64) -> Self {
        Self { tables: BTreeMap::new(), now: 0, flow_age }
    }

    /// How long a flow lives at most, in seconds.
    #[must_use]
    pub fn flow_age(&self) -> u64 {
        self.flow_age
    }

    /// Lets time pass: holders that have not been first for as long as a flow lives are forgotten.
    pub fn advance(&mut self, seconds: u64) {
        self.now = self.now.saturating_add(seconds);
        let (now, age) = (self.now, self.flow_age);
        self.forget(|_, past| now - past.until >= age);
    }

    /// A backend is known to have no flows; where it is first now, it may have some at once again.
    pub fn mark_drained(&mut self, backend: IpAddr) {
        self.forget(|addresses, past| addresses[past.backend as usize] == backend);
    }

    fn forget(&mut self, gone: impl Fn(&[IpAddr], &Past) -> bool) {
        for held in self.tables.values_mut() {
            for layer in &mut held.layers {
                layer.past.retain(|past| !gone(&held.addresses, past));
            }
            held.layers.retain(|layer| !layer.past.is_empty());
        }
    }

    /// In how many rows a backend may hold flows, over all tables.
    #[must_use]
    pub fn rows_held(&self, backend: IpAddr) -> usize {
        let held =
            self.tables.values().filter_map(|held| Some((held, *held.numbers.get(&backend)?)));
        held.map(|(held, number)| {
            let past = held.layers.iter().flat_map(|layer| &layer.past);
            past.filter(|past| past.backend == number).count()
                + held.first.iter().filter(|first| **first == number).count()
        })
        .sum()
    }

    /// What these tables would do to the flows that may be there. Nothing is remembered.
    #[must_use]
    pub fn assess(&self, built: &[BuiltTable]) -> RiskReport {
        self.assess_from(&[], built)
    }

    /// What these tables would do to the flows that the tables in force, `before`, still lead to
    /// their holders: what is lost already, or by an illness that the new tables only tell of, is no
    /// part of it.
    #[must_use]
    pub fn assess_change(&self, before: &[BuiltTable], built: &[BuiltTable]) -> RiskReport {
        self.assess_from(before, built)
    }

    fn assess_from(&self, in_force: &[BuiltTable], built: &[BuiltTable]) -> RiskReport {
        let mut tables = Vec::new();
        for (name, held) in &self.tables {
            let found = built.iter().find(|built| built.table.name == *name);
            let others = self.tables.iter().filter(|(other, _)| *other != name);
            let before = others.flat_map(|(_, held)| &held.binds).collect();
            tables.push(match found {
                Some(new) => {
                    let old = in_force.iter().find(|built| built.table.name == *name);
                    let mut judgement = match old.filter(|before| is_same(before, new)) {
                        Some(_) => TableRisk { table: name.clone(), ..TableRisk::default() },
                        None => held.judge(new, old),
                    };
                    judgement.binds_lost.extend(binds::taken(name, &held.binds, &before, built));
                    judgement
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

    /// These tables are in force from now on.
    pub fn activate(&mut self, built: &[BuiltTable]) {
        self.tables.retain(|name, _| built.iter().any(|built| built.table.name == *name));
        for built in built {
            let held = self
                .tables
                .entry(built.table.name.clone())
                .or_insert_with(|| Held::new(&built.table));
            held.adopt(built, self.now);
        }
    }
}

/// Whether a flow finds the same in both.
fn is_same(before: &BuiltTable, new: &BuiltTable) -> bool {
    Arc::ptr_eq(&before.rows, &new.rows) && {
        let of = |built: &BuiltTable| {
            let table = &built.table;
            (main_hash(table), alternative_hash(table), table.alt_seed)
        };
        of(before) == of(new) && before.table.binds == new.table.binds
    }
}

/// A table as it was, but with what is known now of its backends' health.
fn in_this_light(before: &BuiltTable, healthy: impl Fn(&Backend) -> bool) -> BuiltTable {
    let mut before = before.clone();
    for backend in &mut before.table.backends {
        backend.healthy = healthy(backend);
    }
    before
}

impl Held {
    fn new(table: &Table) -> Self {
        Self {
            addresses: Vec::new(),
            numbers: HashMap::new(),
            healthy: Vec::new(),
            layers: Vec::new(),
            binds: table.binds.clone(),
            first: vec![NONE; ROWS],
            current: main_hash(table),
        }
    }

    fn judge(&self, built: &BuiltTable, before: Option<&BuiltTable>) -> TableRisk {
        let table = &built.table;
        // Backends that are new get numbers after the known ones.
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
        let reach = |rows: &Rows| Reach::new(rows, table, &numbers_of, numbers.len());
        let asked = Asked {
            main: reach(&built.rows),
            alternative: built.alternative.as_deref().map(reach),
            numbers: &numbers_of,
            built,
        };
        // Those who are gone are as healthy as they were said to be last.
        let known = |backend: &Backend| {
            numbers.get(&backend.address).is_none_or(|number| healthy[*number as usize])
        };
        let before = before.map(|before| in_this_light(before, known));
        let numbers_before: Vec<u32> = before
            .iter()
            .flat_map(|before| &before.table.backends)
            .map(|backend| numbers.get(&backend.address).copied().unwrap_or(NONE))
            .collect();
        let reach_before = |before: &BuiltTable, rows: &Rows| {
            Reach::new(rows, &before.table, &numbers_before, numbers.len())
        };
        let before =
            before.as_ref().filter(|_| !numbers_before.contains(&NONE)).map(|before| Asked {
                main: reach_before(before, &before.rows),
                alternative: before.alternative.as_deref().map(|rows| reach_before(before, rows)),
                numbers: &numbers_before,
                built: before,
            });
        let mut out = TableRisk { table: table.name.clone(), ..TableRisk::default() };
        let mut lost: BTreeMap<u32, (usize, &'static str)> = BTreeMap::new();
        for (hash, past, first) in self.all_layers() {
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
                    let (mut share, why) = asked.lost(hash, row, backend);
                    if share > 0.0
                        && let Some(before) = &before
                    {
                        share = (share - before.lost(hash, row, backend).0).max(0.0);
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
        out.handshakes = self.handshakes(built, &numbers_of, numbers.len());
        let gone = self.binds.iter().filter(|bind| !binds::covered(bind, &table.binds));
        out.binds_lost = gone.map(Bind::to_string).collect();
        out
    }

    /// Each hash's past holders, and who is first now if it is the one in force.
    fn all_layers(&self) -> impl Iterator<Item = (FlowHash, &[Past], &[u32])> {
        let current = self.layers.iter().find(|layer| layer.hash == self.current);
        let current =
            (self.current, current.map_or(&[][..], |layer| &layer.past[..]), &self.first[..]);
        let others = self.layers.iter().filter(|layer| layer.hash != self.current);
        std::iter::once(current).chain(others.map(|layer| (layer.hash, &layer.past[..], &[][..])))
    }

    /// Share of flows whose first hop is another one.
    fn handshakes(&self, built: &BuiltTable, numbers: &[u32], known: usize) -> f64 {
        let rows = built
            .rows
            .iter()
            .map(|row| row.first().map_or(NONE, |index| numbers[usize::from(*index)]));
        if main_hash(&built.table) == self.current {
            return rows.zip(&self.first).filter(|(new, old)| new != *old).count() as f64
                / ROWS as f64;
        }
        // A flow of any old row is in any new one.
        let mut shares = (vec![0_u64; known + 1], vec![0_u64; known + 1]);
        for (new, old) in rows.zip(&self.first) {
            shares.0[(new as usize).min(known)] += 1;
            shares.1[(*old as usize).min(known)] += 1;
        }
        let same: u64 = shares.0.iter().zip(&shares.1).map(|(new, old)| new * old).sum();
        1.0 - same as f64 / (ROWS as f64 * ROWS as f64)
    }

    fn adopt(&mut self, built: &BuiltTable, now: u64) {
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
            // By a hash that comes back some may be first again.
            self.first.fill(NONE);
            self.retire(&first, now);
        }
        self.first = first;
    }

    /// Who is first now belongs to the past, but for those who are in `new` again; and who is in
    /// `new` is not of the past any more.
    fn retire(&mut self, new: &[u32], now: u64) {
        let at = self.layers.iter().position(|layer| layer.hash == self.current);
        let mut old = at
            .map(|at| self.layers.swap_remove(at).past)
            .unwrap_or_default()
            .into_iter()
            .peekable();
        let mut past = Vec::new();
        for (row, first) in (0..=u16::MAX).zip(&self.first) {
            let stays = new.get(usize::from(row)).copied().unwrap_or(NONE);
            let mut left = (*first != NONE && *first != stays).then_some(*first);
            while let Some(one) = old.next_if(|past| past.row == row) {
                if left == Some(one.backend) {
                    left = None;
                    past.push(Past { until: now, ..one });
                } else if one.backend != stays {
                    past.push(one);
                }
            }
            past.extend(left.map(|backend| Past { row, backend, until: now }));
        }
        if !past.is_empty() {
            self.layers.push(Layer { hash: self.current, past });
        }
    }
}
