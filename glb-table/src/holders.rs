//! Who may hold flows in which row, and whether a new table still leads to them.
//!
//! A backend *holds* a row if it was the row's first hop at some time since it was last known to be
//! empty of flows. A change is safe if every holder that lives stands in its row's new hops with no
//! unhealthy hop before it, for a packet that is sent to a dead hop is lost.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use serde::Serialize;

use crate::{Bind, Built, HashFields, Key, ROWS, Rows, Table};

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

/// One holder of a row.
#[derive(Clone, Copy)]
struct Holder {
    backend: usize,
    /// When it ceased to be first; it has not yet if this is `None`.
    until: Option<u64>,
}

/// The holders of all rows that flows come to by one hash.
struct Layer {
    hash: FlowHash,
    rows: Vec<Vec<Holder>>,
}

/// The memory of one table.
struct Held {
    addresses: Vec<IpAddr>,
    numbers: HashMap<IpAddr, usize>,
    /// What was last said of each backend's health.
    healthy: Vec<bool>,
    layers: Vec<Layer>,
    binds: Vec<Bind>,
    /// The first hops now, to tell which of them change.
    first: Vec<Option<usize>>,
    current: FlowHash,
}

/// Who may hold flows in each row of each table, over a sequence of tables.
pub struct Memory {
    tables: BTreeMap<String, Held>,
    now: u64,
    flow_age: u64,
}

/// What a new set of tables would do to the flows that may be there.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Judgement {
    /// Whether no flow can break.
    pub safe: bool,
    /// By table, those of the memory first.
    pub tables: Vec<TableJudgement>,
}

/// What a new table would do to its flows.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TableJudgement {
    /// The table's name.
    pub table: String,
    /// Share of established flows that break if the worst of each row's holders holds them; from 0 to 1.
    pub at_risk: f64,
    /// Rows with a holder that can be lost.
    pub rows_at_risk: usize,
    /// Which holders can be lost, those with the most rows first.
    pub lost: Vec<Lost>,
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
pub struct Lost {
    /// Who.
    pub backend: IpAddr,
    /// In how many rows it may still hold flows that may be lost.
    pub rows: usize,
    /// Why, of the first such row.
    pub why: &'static str,
}

impl TableJudgement {
    fn is_safe(&self) -> bool {
        self.at_risk == 0.0 && self.binds_lost.is_empty() && !self.removed
    }
}

/// A new table with everything that is asked of it for each holder.
struct Asked<'b> {
    built: &'b Built,
    /// The table's indices as the memory's numbers.
    numbers: Vec<usize>,
    main: Reach,
    alternative: Option<Reach>,
}

/// For each of the memory's backends, in how many rows of a table it is found; for flows of which
/// only the hash by another key is known, and which may so be in any row.
struct Reach {
    found: Vec<usize>,
    /// Of these, rows that have an unhealthy hop after it.
    found_before_dead: Vec<usize>,
    /// Rows with any unhealthy hop.
    dead: usize,
}

/// What happens to a holder's packets in one row, or their shares in any row.
#[derive(Clone, Copy)]
struct Fate {
    /// They reach it.
    found: f64,
    /// They are sent to an unhealthy hop before.
    dead: f64,
}

impl Reach {
    fn new(rows: &Rows, table: &Table, numbers: &[usize], known: usize) -> Self {
        let mut reach = Self { found: vec![0; known], found_before_dead: vec![0; known], dead: 0 };
        for row in rows.iter() {
            let healthy = |index: &u16| table.backends[usize::from(*index)].healthy;
            let end = row.iter().position(|index| !healthy(index)).unwrap_or(row.len());
            let has_dead = end < row.len();
            reach.dead += usize::from(has_dead);
            for index in &row[..end] {
                let number = numbers[usize::from(*index)];
                reach.found[number] += 1;
                reach.found_before_dead[number] += usize::from(has_dead);
            }
        }
        reach
    }

    fn anywhere(&self, holder: usize) -> Fate {
        let share = |rows: usize| rows as f64 / ROWS as f64;
        Fate {
            found: share(self.found[holder]),
            dead: share(self.dead - self.found_before_dead[holder]),
        }
    }
}

impl Asked<'_> {
    fn in_row(&self, rows: &Rows, row: usize, holder: usize) -> Fate {
        for index in rows.row(row) {
            if self.numbers[usize::from(*index)] == holder {
                return Fate { found: 1.0, dead: 0.0 };
            }
            if !self.built.table.backends[usize::from(*index)].healthy {
                return Fate { found: 0.0, dead: 1.0 };
            }
        }
        Fate { found: 0.0, dead: 0.0 }
    }

    /// The share of a holder's flows that are lost, of those that `hash` brought to `row`.
    fn lost(&self, hash: FlowHash, row: usize, holder: usize) -> (f64, &'static str) {
        let table = &self.built.table;
        let main = if main_hash(table) == hash {
            self.in_row(&self.built.rows, row, holder)
        } else {
            self.main.anywhere(holder)
        };
        let missed = 1.0 - main.found - main.dead;
        let alternative = match (&self.built.alternative, &self.alternative) {
            (Some(rows), _) if alternative_hash(table) == hash => {
                self.in_row(rows, row, holder).found
            }
            (_, Some(reach)) => reach.anywhere(holder).found,
            _ => 0.0,
        };
        // A sum of shares may miss 1 by a rounding; each is a whole number of 65,536ths, so none does.
        let lost = main.dead + missed * (1.0 - alternative);
        (
            lost,
            if main.dead > 0.0 {
                "an unhealthy hop stands before it"
            } else {
                "it is not among the row's hops"
            },
        )
    }
}

impl Memory {
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
    pub fn pass(&mut self, seconds: u64) {
        self.now = self.now.saturating_add(seconds);
        let (now, age) = (self.now, self.flow_age);
        self.forget(|_, holder| holder.until.is_some_and(|until| now - until >= age));
    }

    /// A backend is known to have no flows; where it is first now, it may have some at once again.
    pub fn drained(&mut self, backend: IpAddr) {
        self.forget(|held, holder| holder.until.is_some() && held[holder.backend] == backend);
    }

    fn forget(&mut self, gone: impl Fn(&[IpAddr], &Holder) -> bool) {
        for held in self.tables.values_mut() {
            let addresses = &held.addresses;
            for row in held.layers.iter_mut().flat_map(|layer| &mut layer.rows) {
                row.retain(|holder| !gone(addresses, holder));
            }
            let current = held.current;
            held.layers.retain(|layer| {
                layer.hash == current || layer.rows.iter().any(|row| !row.is_empty())
            });
        }
    }

    /// In how many rows a backend may hold flows, over all tables.
    #[must_use]
    pub fn rows_held(&self, backend: IpAddr) -> usize {
        let held =
            self.tables.values().filter_map(|held| Some((held, *held.numbers.get(&backend)?)));
        held.map(|(held, number)| {
            let rows = held.layers.iter().flat_map(|layer| &layer.rows);
            rows.filter(|row| row.iter().any(|holder| holder.backend == number)).count()
        })
        .sum()
    }

    /// What these tables would do to the flows that may be there. Nothing is remembered.
    #[must_use]
    pub fn judge(&self, built: &[Built]) -> Judgement {
        let mut tables = Vec::new();
        for (name, held) in &self.tables {
            let found = built.iter().find(|built| built.table.name == *name);
            tables.push(match found {
                Some(built) => held.judge(built),
                None => TableJudgement {
                    table: name.clone(),
                    at_risk: 1.0,
                    removed: true,
                    ..TableJudgement::default()
                },
            });
        }
        for built in built.iter().filter(|built| !self.tables.contains_key(&built.table.name)) {
            tables.push(TableJudgement {
                table: built.table.name.clone(),
                ..TableJudgement::default()
            });
        }
        Judgement { safe: tables.iter().all(TableJudgement::is_safe), tables }
    }

    /// These tables are in force from now on.
    pub fn adopt(&mut self, built: &[Built]) {
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

impl Held {
    fn new(table: &Table) -> Self {
        Self {
            addresses: Vec::new(),
            numbers: HashMap::new(),
            healthy: Vec::new(),
            layers: Vec::new(),
            binds: table.binds.clone(),
            first: vec![None; ROWS],
            current: main_hash(table),
        }
    }

    fn judge(&self, built: &Built) -> TableJudgement {
        let table = &built.table;
        // Backends that are new get numbers after the known ones.
        let mut numbers = self.numbers.clone();
        let mut healthy = self.healthy.clone();
        for backend in &table.backends {
            let next = numbers.len();
            let number = *numbers.entry(backend.address).or_insert(next);
            healthy.resize(numbers.len(), true);
            healthy[number] = backend.healthy;
        }
        let numbers_of: Vec<usize> =
            table.backends.iter().map(|backend| numbers[&backend.address]).collect();
        let reach = |rows: &Rows| Reach::new(rows, table, &numbers_of, numbers.len());
        let asked = Asked {
            main: reach(&built.rows),
            alternative: built.alternative.as_ref().map(reach),
            numbers: numbers_of.clone(),
            built,
        };
        let mut out = TableJudgement { table: table.name.clone(), ..TableJudgement::default() };
        let mut lost: BTreeMap<usize, (usize, &'static str)> = BTreeMap::new();
        for layer in &self.layers {
            let mut at_risk = 0.0;
            for (row, holders) in layer.rows.iter().enumerate() {
                let mut worst = 0.0;
                for holder in holders.iter().filter(|holder| healthy[holder.backend]) {
                    let (share, why) = asked.lost(layer.hash, row, holder.backend);
                    if share > 0.0 {
                        lost.entry(holder.backend).or_insert((0, why)).0 += 1;
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
            .map(|(number, (rows, why))| Lost { backend: self.addresses[number], rows, why })
            .collect();
        out.lost.sort_by_key(|lost| std::cmp::Reverse(lost.rows));
        out.handshakes = self.handshakes(built, &numbers_of, numbers.len());
        let gone = self.binds.iter().filter(|bind| !covered(bind, &table.binds));
        out.binds_lost = gone.map(Bind::to_string).collect();
        out
    }

    /// Share of flows whose first hop is another one.
    fn handshakes(&self, built: &Built, numbers: &[usize], known: usize) -> f64 {
        let first = |row: &[u16]| row.first().map(|index| numbers[usize::from(*index)]);
        let rows = built.rows.iter().map(first);
        if main_hash(&built.table) == self.current {
            return rows.zip(&self.first).filter(|(new, old)| new != *old).count() as f64
                / ROWS as f64;
        }
        // A flow of any old row is in any new one.
        let mut shares = (vec![0_u64; known + 1], vec![0_u64; known + 1]);
        for (new, old) in rows.zip(&self.first) {
            shares.0[new.unwrap_or(known)] += 1;
            shares.1[old.unwrap_or(known)] += 1;
        }
        let same: u64 = shares.0.iter().zip(&shares.1).map(|(new, old)| new * old).sum();
        1.0 - same as f64 / (ROWS as f64 * ROWS as f64)
    }

    fn adopt(&mut self, built: &Built, now: u64) {
        let table = &built.table;
        for backend in &table.backends {
            let next = self.addresses.len();
            let number = *self.numbers.entry(backend.address).or_insert(next);
            if number == next {
                self.addresses.push(backend.address);
                self.healthy.push(backend.healthy);
            }
            self.healthy[number] = backend.healthy;
        }
        for row in self.layers.iter_mut().flat_map(|layer| &mut layer.rows) {
            row.iter_mut().for_each(|holder| holder.until = holder.until.or(Some(now)));
        }
        self.current = main_hash(table);
        self.binds.clone_from(&table.binds);
        let at = self.layers.iter().position(|layer| layer.hash == self.current);
        let at = at.unwrap_or_else(|| {
            self.layers.push(Layer { hash: self.current, rows: vec![Vec::new(); ROWS] });
            self.layers.len() - 1
        });
        for ((row, holders), first) in
            built.rows.iter().zip(&mut self.layers[at].rows).zip(&mut self.first)
        {
            *first =
                row.first().map(|index| self.numbers[&table.backends[usize::from(*index)].address]);
            let Some(backend) = *first else { continue };
            match holders.iter_mut().find(|holder| holder.backend == backend) {
                Some(holder) => holder.until = None,
                None => holders.push(Holder { backend, until: None }),
            }
        }
    }
}

/// Whether every packet of a bind is still one of these binds'.
fn covered(bind: &Bind, binds: &[Bind]) -> bool {
    let over: Vec<&Bind> = binds
        .iter()
        .filter(|other| other.proto == bind.proto && other.prefix.contains(&bind.prefix))
        .collect();
    let mut next = u32::from(*bind.ports.start());
    // Ranges may be parted and joined; walk over the ports range by range.
    while next <= u32::from(*bind.ports.end()) {
        let reach = over
            .iter()
            .filter(|other| u32::from(*other.ports.start()) <= next)
            .map(|other| u32::from(*other.ports.end()))
            .max();
        match reach {
            Some(end) if end >= next => next = end + 1,
            _ => return false,
        }
    }
    true
}
