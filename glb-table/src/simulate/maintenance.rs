//! A fleet that is maintained for a long time: backends are drained, taken out, brought back, added
//! and weighed anew, and some fail.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use serde::Serialize;

use super::{Broken, Options, Progress, Report, random::Random, run::Runner};
use crate::{
    Backend, Bind, BuiltTable, HashFields, Key, Order, Proto, RowCache, State, Table, TableSet,
    flow_safety::FlowHistory,
};

/// How often a change that could break flows is put off before its time is waited for.
const PATIENCE: u32 = 10;
/// Most changes that are put off at one time.
const LATER: usize = 4;
/// Ideas that are had before a step is let go.
const IDEAS: usize = 20;

/// What is done, and how.
#[derive(Clone, Copy, Debug)]
pub struct Maintenance {
    /// How many changes.
    pub changes: usize,
    /// Whether the operator asks the plan before each change, and puts off what it calls unsafe. If
    /// not, changes are made as they come, backends are removed undrained too.
    pub careful: bool,
}

/// A kind of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A serving backend takes nothing new any more.
    Drain,
    /// A draining one serves again.
    Back,
    /// A backend leaves the rows.
    Remove,
    /// One comes in, filling.
    Add,
    /// A filling one becomes active.
    Filled,
    /// A backend gets another weight.
    Weight,
    /// A machine dies, and its flows with it.
    Fails,
    /// A backend is thought to be down while it lives.
    Flaps,
    /// One that failed or flapped is well again.
    Returns,
}

impl Kind {
    /// Whether the operator chose it.
    #[must_use]
    pub fn is_chosen(self) -> bool {
        !matches!(self, Self::Fails | Self::Flaps | Self::Returns)
    }

    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Back => "back",
            Self::Remove => "remove",
            Self::Add => "add",
            Self::Filled => "filled",
            Self::Weight => "weight",
            Self::Fails => "fails",
            Self::Flaps => "flaps",
            Self::Returns => "returns",
        }
    }
}

/// All changes of one kind.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct KindReport {
    /// How many were made.
    pub times: u64,
    /// How many of these, and of those that were given up, were put off: they could break flows.
    pub put_off: u64,
    /// Flows that they broke.
    pub broken: Broken,
    /// Flows that ended with their machine.
    pub ended: u64,
}

/// What became of the flows.
#[derive(Clone, Debug, Serialize)]
pub struct MaintenanceReport {
    /// Backends in rows at the beginning.
    pub backends: usize,
    /// Most hops of a row.
    pub hops: u8,
    /// Whether the operator asked the plan.
    pub careful: bool,
    /// How often a whole life of flows was waited for.
    pub waits: u64,
    /// Flows that the operator's changes broke.
    pub broken_by_operator: u64,
    /// By kind of change.
    pub kinds: BTreeMap<Kind, KindReport>,
    /// The flows, and each step.
    #[serde(flatten)]
    pub report: Report,
}

/// A healthy table of so many backends and hops, to begin with.
#[must_use]
pub fn fleet(backends: u16, hops: u8) -> TableSet {
    let vip = Ipv4Addr::new(203, 0, 113, 10);
    let prefix = ipnet::Ipv4Net::from(vip).into();
    let backend = |n: u32| Backend::new(Ipv4Addr::from(0x0a00_0000 + n).into());
    let table = Table {
        name: "fleet".into(),
        hash_key: Key::new([1; 16]),
        seed: Key::new([2; 16]),
        hash_fields: HashFields::default(),
        alt_hash_fields: None,
        alt_hash_key: None,
        alt_seed: None,
        hops,
        order: Order::HealthyFirst,
        binds: vec![Bind { prefix, proto: Proto::Tcp, ports: 443..=443 }],
        backends: (1..=u32::from(backends)).map(backend).collect(),
        healthchecks: None,
    };
    TableSet { tables: vec![table], warnings: Vec::new(), healthchecks: None }
}

impl Maintenance {
    /// Maintains the fleet of these tables. A tenth more backends stand by, inactive.
    #[must_use]
    pub fn run(
        &self,
        set: &TableSet,
        options: &Options,
        progress: &mut dyn FnMut(Progress),
    ) -> MaintenanceReport {
        let mut fleet = Fleet::new(*self, set, options);
        for step in 1..=self.changes {
            fleet.pass(options.every);
            fleet.step(step + 1);
            let broken = fleet.runner.report.broken.all();
            progress(Progress { done: step, all: self.changes, broken });
        }
        let chosen = fleet.kinds.iter().filter(|(kind, _)| kind.is_chosen());
        MaintenanceReport {
            backends: set.tables.iter().map(Table::usable).sum(),
            hops: set.tables.iter().map(|table| table.hops).max().unwrap_or_default(),
            careful: self.careful,
            waits: fleet.waits,
            broken_by_operator: chosen.map(|(_, kind)| kind.broken.all()).sum(),
            kinds: fleet.kinds,
            report: fleet.runner.report,
        }
    }
}

/// A change of one backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Change {
    kind: Kind,
    backend: IpAddr,
    weight: u16,
}

/// What is known of a machine.
#[derive(Clone, Debug, Default)]
struct Machine {
    /// When it is well again, in seconds.
    down_until: Option<u64>,
    /// The plan knows that it holds no flows.
    known_empty: bool,
}

struct Fleet {
    maintenance: Maintenance,
    every: u64,
    set: TableSet,
    built: Vec<BuiltTable>,
    machines: BTreeMap<IpAddr, Machine>,
    memory: FlowHistory,
    runner: Runner,
    trial: RowCache,
    random: Random,
    /// What was put off, and how often.
    later: VecDeque<(Change, u32)>,
    kinds: BTreeMap<Kind, KindReport>,
    waits: u64,
}

impl Fleet {
    fn new(maintenance: Maintenance, set: &TableSet, options: &Options) -> Self {
        let mut set = set.clone();
        for table in &mut set.tables {
            let spare = spares(table);
            table.backends.extend(spare);
        }
        let addresses = set.tables.iter().flat_map(|table| &table.backends);
        let machines = addresses.map(|backend| (backend.address, Machine::default())).collect();
        let mut fleet = Self {
            maintenance,
            every: options.every,
            built: Vec::new(),
            machines,
            memory: FlowHistory::new(options.lifetimes.longest as u64),
            runner: Runner::new(options),
            trial: RowCache::default(),
            random: Random::new(options.seed, 1 << 32),
            later: VecDeque::new(),
            kinds: BTreeMap::new(),
            waits: 0,
            set,
        };
        let tally = fleet.runner.tables(&fleet.set);
        fleet.runner.report(1, "the tables as they are".into(), &tally, 0);
        fleet.built = fleet.runner.builder.build(&fleet.set);
        fleet.memory.activate(&fleet.built);
        fleet
    }

    fn pass(&mut self, seconds: u64) {
        self.runner.pass(seconds);
        self.memory.advance(seconds);
    }

    /// One change, whatever it is. Where none can be made, time passes until one can.
    fn step(&mut self, step: usize) {
        let most = self.memory.flow_age().saturating_mul(2);
        let (mut stride, mut waited) = (self.every, 0);
        let change = loop {
            let change = self.next();
            if change.is_some() || waited >= most {
                break change;
            }
            self.pass(stride);
            waited = waited.saturating_add(stride);
            stride = stride.saturating_mul(2).min(self.memory.flow_age() / 4).max(self.every);
        };
        match change {
            Some(change) => self.make(step, change),
            None => {
                let tally = self.runner.look();
                self.runner.report(step, "nothing".into(), &tally, 0);
            }
        }
    }

    fn next(&mut self) -> Option<Change> {
        let fate = self.fate();
        if fate.is_some() {
            return fate;
        }
        if !self.maintenance.careful {
            return (0..IDEAS).find_map(|_| self.idea());
        }
        self.tell_who_is_empty();
        let put_off_before = self.put_off_before();
        if put_off_before.is_some() {
            return put_off_before;
        }
        for _ in 0..IDEAS {
            let Some(change) = self.idea() else { continue };
            if self.later.iter().any(|(later, _)| later.backend == change.backend) {
                continue;
            }
            if self.is_safe(change) {
                return Some(change);
            }
            self.kinds.entry(change.kind).or_default().put_off += 1;
            self.later.push_back((change, 1));
            if self.later.len() >= LATER {
                break;
            }
        }
        None
    }

    /// What nobody chooses.
    fn fate(&mut self) -> Option<Change> {
        let change = |kind, backend| Change { kind, backend, weight: 0 };
        let now = self.runner.report.seconds;
        let well = |(_, machine): &(&IpAddr, &Machine)| {
            machine.down_until.is_some_and(|until| until <= now)
        };
        if let Some((backend, _)) = self.machines.iter().find(well) {
            return Some(change(Kind::Returns, *backend));
        }
        let kind = match self.random.below(100) {
            0..4 => Kind::Fails,
            4..7 => Kind::Flaps,
            _ => return None,
        };
        let backend = self.pick(|backend| backend.healthy && backend.is_usable())?;
        if !self.may_fail() {
            return None;
        }
        let down = self.every.saturating_mul(1 + self.random.below(8) as u64);
        let until = now.saturating_add(down);
        self.machines.entry(backend).or_default().down_until = Some(until);
        Some(change(kind, backend))
    }

    /// What an operator may want to do next.
    fn idea(&mut self) -> Option<Change> {
        let careless = !self.maintenance.careful;
        let (kind, backend) = match self.random.below(100) {
            0..30 if self.is_spare() => (Kind::Drain, self.pick(Backend::takes_new)),
            30..60 => {
                let backend = self.pick(|backend| backend.state == State::Draining)?;
                let is_empty = careless || self.machines[&backend].known_empty;
                let kind = match self.random.below(if is_empty { 4 } else { 1_000 }) {
                    0 => Kind::Back,
                    1 if is_empty => Kind::Remove,
                    2 if is_empty => Kind::Weight,
                    3 if is_empty => Kind::Back,
                    _ => return None,
                };
                (kind, Some(backend))
            }
            60..75 => (Kind::Add, self.pick(|backend| backend.state == State::Inactive)),
            75..90 => (Kind::Filled, self.pick(|backend| backend.state == State::Filling)),
            90..95 if careless => (Kind::Weight, self.pick(Backend::takes_new)),
            95.. if careless && self.is_spare() => (Kind::Remove, self.pick(Backend::takes_new)),
            _ => return None,
        };
        let weight = 1 + self.random.below(4) as u16;
        Some(Change { kind, backend: backend?, weight }).filter(|change| self.makes_sense(*change))
    }

    /// Whether one more may be out of service: with care, as many as can be asked in vain before the
    /// one that knows a flow; else a twentieth of all.
    fn is_spare(&self) -> bool {
        self.out(|backend| !backend.takes_new(), if self.maintenance.careful { 0 } else { 20 })
    }

    /// Whether one more may fail.
    fn may_fail(&self) -> bool {
        self.out(|backend| !backend.healthy, 50)
    }

    fn out(&self, which: impl Fn(&Backend) -> bool, one_in: usize) -> bool {
        self.set.tables.iter().all(|table| {
            let usable = || table.backends.iter().filter(|backend| backend.is_usable());
            let (all, out) = (usable().count(), usable().filter(|backend| which(backend)).count());
            let most = (usize::from(table.hops) - 1).max(all.checked_div(one_in).unwrap_or(0));
            out < most && out + 2 < all
        })
    }

    fn pick(&mut self, which: impl Fn(&Backend) -> bool) -> Option<IpAddr> {
        let all = self.set.tables.iter().flat_map(|table| &table.backends);
        let found: Vec<IpAddr> =
            all.filter(|backend| which(backend)).map(|backend| backend.address).collect();
        (!found.is_empty()).then(|| found[self.random.below(found.len())])
    }

    /// The oldest change that was put off and can now be made. One that has been put off often is
    /// waited for, and given up if even that does not help.
    fn put_off_before(&mut self) -> Option<Change> {
        for _ in 0..self.later.len() {
            let (change, times) = self.later.pop_front()?;
            if !self.makes_sense(change) {
                continue;
            }
            // With somebody out of service, a new backend pushes others out of rows.
            if change.kind == Kind::Add && !self.is_spare() {
                self.later.push_back((change, times));
                continue;
            }
            let mut safe = self.is_safe(change);
            if !safe && times >= PATIENCE {
                self.pass(self.memory.flow_age());
                self.waits += 1;
                self.tell_who_is_empty();
                safe = self.is_safe(change);
                if !safe {
                    continue;
                }
            }
            if safe {
                return Some(change);
            }
            self.later.push_back((change, times + 1));
        }
        None
    }

    /// Whether the change is still one, after what was done since it was thought of.
    fn makes_sense(&self, change: Change) -> bool {
        let mut all = self.set.tables.iter().flat_map(|table| &table.backends);
        all.any(|backend| {
            backend.address == change.backend
                && match change.kind {
                    Kind::Drain => backend.takes_new() && self.is_spare(),
                    Kind::Back | Kind::Remove => backend.state == State::Draining,
                    Kind::Add => backend.state == State::Inactive,
                    Kind::Filled => backend.state == State::Filling,
                    Kind::Weight => backend.is_usable(),
                    Kind::Fails | Kind::Flaps | Kind::Returns => false,
                }
        })
    }

    /// `glb-redirect wait --until-drained`, on everybody who takes nothing new.
    fn tell_who_is_empty(&mut self) {
        let holders = self.runner.simulation.holders();
        let all = self.set.tables.iter().flat_map(|table| &table.backends);
        let idle = all.filter(|backend| matches!(backend.state, State::Draining | State::Inactive));
        for backend in idle {
            let machine = self.machines.entry(backend.address).or_default();
            let is_empty = holders.get(&backend.address).is_none_or(|flows| *flows == 0);
            if is_empty && !machine.known_empty {
                self.memory.mark_drained(backend.address);
                machine.known_empty = true;
            }
        }
    }

    fn is_safe(&mut self, change: Change) -> bool {
        let mut set = self.set.clone();
        apply(&mut set, change);
        // New weights need new ranks: those in force are kept.
        let builder = match change.kind {
            Kind::Weight => &mut self.trial,
            _ => &mut self.runner.builder,
        };
        let built = builder.build(&set);
        self.memory.assess_change(&self.built, &built).safe
    }

    fn make(&mut self, step: usize, change: Change) {
        let mut ended = 0;
        let machine = self.machines.entry(change.backend).or_default();
        machine.known_empty = false;
        match change.kind {
            Kind::Fails => {
                ended = self.runner.simulation.drained(change.backend);
                self.memory.mark_drained(change.backend);
            }
            Kind::Returns => machine.down_until = None,
            _ => {}
        }
        apply(&mut self.set, change);
        let tally = self.runner.tables(&self.set);
        self.built = self.runner.builder.build(&self.set);
        self.memory.activate(&self.built);
        let kind = self.kinds.entry(change.kind).or_default();
        kind.times += 1;
        kind.ended += ended;
        kind.broken.add(tally.broken);
        let what = match change.kind {
            Kind::Weight => format!("weight {} {}", change.backend, change.weight),
            kind => format!("{} {}", kind.name(), change.backend),
        };
        self.runner.report(step, what, &tally, ended);
    }
}

fn apply(set: &mut TableSet, change: Change) {
    let all = set.tables.iter_mut().flat_map(|table| &mut table.backends);
    for backend in all.filter(|backend| backend.address == change.backend) {
        match change.kind {
            Kind::Drain => backend.state = State::Draining,
            Kind::Back | Kind::Filled => backend.state = State::Active,
            Kind::Remove => backend.state = State::Inactive,
            Kind::Add => backend.state = State::Filling,
            Kind::Weight => backend.weight = change.weight,
            Kind::Fails | Kind::Flaps => backend.healthy = false,
            Kind::Returns => backend.healthy = true,
        }
    }
}

/// Backends that are not in the table yet. Inactive ones make no rows, and so it is as if they were
/// not in the file.
fn spares(table: &Table) -> Vec<Backend> {
    let is_v4 = table.backends.iter().all(|backend| backend.address.is_ipv4());
    let address = |n: u32| match is_v4 {
        true => IpAddr::from(Ipv4Addr::from(0x6440_0000 + n)),
        false => IpAddr::from(Ipv6Addr::from((0xfd00_u128 << 112) + u128::from(n))),
    };
    let new = (1..)
        .map(address)
        .filter(|new| table.backends.iter().all(|backend| backend.address != *new));
    let zone = table.backends.first().map(|backend| backend.zone.clone()).unwrap_or_default();
    new.take(table.backends.len().div_ceil(10))
        .map(|address| Backend {
            state: State::Inactive,
            zone: zone.clone(),
            ..Backend::new(address)
        })
        .collect()
}
