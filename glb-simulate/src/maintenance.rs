//! Generates the maintenance of a fleet over months: an operator drains, removes, resumes, adds and
//! reweighs backends, and some backends fail.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use serde::Serialize;

use crate::{BrokenFlows, Progress, Report, Workload, random::Random, sequence::Runner};
use glb_table::{
    Backend, Bind, BuiltTable, HashFields, Key, Order, Proto, RowCache, State, Table, TableSet,
    flow_safety::FlowHistory,
};

/// How often an unsafe change is deferred before the operator waits for a whole flow lifetime.
const MAX_DEFERRALS: u32 = 10;
/// Largest number of deferred changes.
const MAX_DEFERRED: usize = 4;
/// Number of random changes to try before a step is skipped.
const MAX_TRIES: usize = 20;

/// The maintenance to generate.
#[derive(Clone, Copy, Debug)]
pub struct Maintenance {
    /// Number of changes.
    pub changes: usize,
    /// The operator asks the plan before each change, and defers the unsafe ones. Otherwise every
    /// change is made at once, including the removal of backends that are not drained.
    pub follows_plan: bool,
}

/// The kinds of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// The operator drains a serving backend.
    Drain,
    /// The operator makes a draining backend active again.
    Resume,
    /// The operator makes a backend inactive.
    Remove,
    /// The operator adds a backend, in the state `filling`.
    Add,
    /// The operator makes a filling backend active.
    Activate,
    /// The operator changes a weight.
    Reweigh,
    /// A backend dies, and its flows with it.
    Fail,
    /// A backend is reported down although it works.
    Flap,
    /// A backend that failed or flapped is healthy again.
    Recover,
}

impl ChangeKind {
    /// Whether the operator makes this change.
    #[must_use]
    pub fn is_operators(self) -> bool {
        !matches!(self, Self::Fail | Self::Flap | Self::Recover)
    }

    /// The name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Resume => "resume",
            Self::Remove => "remove",
            Self::Add => "add",
            Self::Activate => "activate",
            Self::Reweigh => "reweigh",
            Self::Fail => "fail",
            Self::Flap => "flap",
            Self::Recover => "recover",
        }
    }
}

/// The result of all changes of one kind.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct ChangeKindReport {
    /// Number of changes made.
    pub times: u64,
    /// Number of changes that were deferred because they could break flows.
    pub deferred: u64,
    /// Flows that the changes broke.
    pub broken: BrokenFlows,
    /// Flows that ended because their backend died.
    pub ended: u64,
}

/// The result of a maintenance.
#[derive(Clone, Debug, Serialize)]
pub struct MaintenanceReport {
    /// Number of usable backends at the start.
    pub backends: usize,
    /// Largest number of hops of a row.
    pub hops: u8,
    /// The operator asked the plan before each change.
    pub follows_plan: bool,
    /// How often the operator waited for a whole flow lifetime.
    pub waits: u64,
    /// Number of flows that the operator's changes broke.
    pub broken_by_operator: u64,
    /// The result for each kind of change.
    pub kinds: BTreeMap<ChangeKind, ChangeKindReport>,
    /// The flows, and the result of each step.
    #[serde(flatten)]
    pub report: Report,
}

/// A table set with one table of healthy backends.
#[must_use]
pub fn generated_fleet(backends: u16, hops: u8) -> TableSet {
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
    /// Maintains the backends of a table set. A tenth as many inactive backends are added to it as
    /// spares.
    #[must_use]
    pub fn run(
        &self,
        set: &TableSet,
        workload: &Workload,
        progress: &mut dyn FnMut(Progress),
    ) -> MaintenanceReport {
        let mut fleet = Fleet::new(*self, set, workload);
        for step in 1..=self.changes {
            fleet.advance(workload.step_interval);
            fleet.step(step + 1);
            let broken = fleet.runner.report.broken.all();
            progress(Progress { done: step, all: self.changes, broken });
        }
        let operators = fleet.kinds.iter().filter(|(kind, _)| kind.is_operators());
        MaintenanceReport {
            backends: set.tables.iter().map(Table::usable).sum(),
            hops: set.tables.iter().map(|table| table.hops).max().unwrap_or_default(),
            follows_plan: self.follows_plan,
            waits: fleet.waits,
            broken_by_operator: operators.map(|(_, kind)| kind.broken.all()).sum(),
            kinds: fleet.kinds,
            report: fleet.runner.report,
        }
    }
}

/// A change of one backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Change {
    kind: ChangeKind,
    backend: IpAddr,
    weight: u16,
}

/// The condition of a backend's machine.
#[derive(Clone, Debug, Default)]
struct Machine {
    /// When it recovers, in simulated seconds.
    down_until: Option<u64>,
    /// The flow history has been told that it holds no flows.
    known_empty: bool,
}

/// The fleet during its maintenance.
struct Fleet {
    maintenance: Maintenance,
    step_interval: u64,
    set: TableSet,
    built: Vec<BuiltTable>,
    machines: BTreeMap<IpAddr, Machine>,
    history: FlowHistory,
    runner: Runner,
    /// Rows of tables that are only tried.
    trial_rows: RowCache,
    random: Random,
    /// Deferred changes, with the number of times that each was deferred.
    deferred: VecDeque<(Change, u32)>,
    kinds: BTreeMap<ChangeKind, ChangeKindReport>,
    waits: u64,
}

impl Fleet {
    fn new(maintenance: Maintenance, set: &TableSet, workload: &Workload) -> Self {
        let mut set = set.clone();
        for table in &mut set.tables {
            let spares = spares(table);
            table.backends.extend(spares);
        }
        let addresses = set.tables.iter().flat_map(|table| &table.backends);
        let machines = addresses.map(|backend| (backend.address, Machine::default())).collect();
        let mut fleet = Self {
            maintenance,
            step_interval: workload.step_interval,
            built: Vec::new(),
            machines,
            history: FlowHistory::new(workload.lifetimes.max as u64),
            runner: Runner::new(workload),
            trial_rows: RowCache::default(),
            random: Random::new(workload.seed, 1 << 32),
            deferred: VecDeque::new(),
            kinds: BTreeMap::new(),
            waits: 0,
            set,
        };
        let tally = fleet.runner.activate(&fleet.set);
        fleet.runner.report(1, "the first tables".into(), &tally, 0);
        fleet.built = fleet.runner.row_cache.build(&fleet.set);
        fleet.history.activate(&fleet.built);
        fleet
    }

    fn advance(&mut self, seconds: u64) {
        self.runner.advance(seconds);
        self.history.advance(seconds);
    }

    /// Makes one change. If none can be made now, time passes until one can.
    fn step(&mut self, step: usize) {
        let longest_wait = self.history.flow_age().saturating_mul(2);
        let (mut stride, mut waited) = (self.step_interval, 0);
        let change = loop {
            let change = self.next_change();
            if change.is_some() || waited >= longest_wait {
                break change;
            }
            self.advance(stride);
            waited = waited.saturating_add(stride);
            stride =
                stride.saturating_mul(2).min(self.history.flow_age() / 4).max(self.step_interval);
        };
        match change {
            Some(change) => self.make(step, change),
            None => {
                let tally = self.runner.count();
                self.runner.report(step, "no change".into(), &tally, 0);
            }
        }
    }

    /// The next change: a failure or recovery, a deferred change, or a random one.
    fn next_change(&mut self) -> Option<Change> {
        let event = self.failure_or_recovery();
        if event.is_some() {
            return event;
        }
        if !self.maintenance.follows_plan {
            return (0..MAX_TRIES).find_map(|_| self.random_change());
        }
        self.mark_empty_backends_drained();
        let deferred = self.deferred_change();
        if deferred.is_some() {
            return deferred;
        }
        for _ in 0..MAX_TRIES {
            let Some(change) = self.random_change() else { continue };
            if self.deferred.iter().any(|(deferred, _)| deferred.backend == change.backend) {
                continue;
            }
            if self.is_safe(change) {
                return Some(change);
            }
            self.kinds.entry(change.kind).or_default().deferred += 1;
            self.deferred.push_back((change, 1));
            if self.deferred.len() >= MAX_DEFERRED {
                break;
            }
        }
        None
    }

    /// A backend that recovers, or a random failure.
    fn failure_or_recovery(&mut self) -> Option<Change> {
        let change = |kind, backend| Change { kind, backend, weight: 0 };
        let now = self.runner.report.seconds;
        let has_recovered = |(_, machine): &(&IpAddr, &Machine)| {
            machine.down_until.is_some_and(|until| until <= now)
        };
        if let Some((backend, _)) = self.machines.iter().find(has_recovered) {
            return Some(change(ChangeKind::Recover, *backend));
        }
        let kind = match self.random.below(100) {
            0..4 => ChangeKind::Fail,
            4..7 => ChangeKind::Flap,
            _ => return None,
        };
        let backend = self.pick(|backend| backend.healthy && backend.is_usable())?;
        if !self.may_fail() {
            return None;
        }
        let down = self.step_interval.saturating_mul(1 + self.random.below(8) as u64);
        let until = now.saturating_add(down);
        self.machines.entry(backend).or_default().down_until = Some(until);
        Some(change(kind, backend))
    }

    /// A random change by the operator.
    fn random_change(&mut self) -> Option<Change> {
        let ignores_plan = !self.maintenance.follows_plan;
        let (kind, backend) = match self.random.below(100) {
            0..30 if self.may_take_out() => (ChangeKind::Drain, self.pick(Backend::takes_new)),
            30..60 => {
                let backend = self.pick(|backend| backend.state == State::Draining)?;
                let is_empty = ignores_plan || self.machines[&backend].known_empty;
                let kind = match self.random.below(if is_empty { 4 } else { 1_000 }) {
                    0 => ChangeKind::Resume,
                    1 if is_empty => ChangeKind::Remove,
                    2 if is_empty => ChangeKind::Reweigh,
                    3 if is_empty => ChangeKind::Resume,
                    _ => return None,
                };
                (kind, Some(backend))
            }
            60..75 => (ChangeKind::Add, self.pick(|backend| backend.state == State::Inactive)),
            75..90 => (ChangeKind::Activate, self.pick(|backend| backend.state == State::Filling)),
            90..95 if ignores_plan => (ChangeKind::Reweigh, self.pick(Backend::takes_new)),
            95.. if ignores_plan && self.may_take_out() => {
                (ChangeKind::Remove, self.pick(Backend::takes_new))
            }
            _ => return None,
        };
        let weight = 1 + self.random.below(4) as u16;
        Some(Change { kind, backend: backend?, weight })
            .filter(|change| self.is_applicable(*change))
    }

    /// Whether one more backend may be out of service. An operator who follows the plan allows one
    /// less than a row has hops; another allows a twentieth of all backends.
    fn may_take_out(&self) -> bool {
        self.can_lose_one_more(
            |backend| !backend.takes_new(),
            if self.maintenance.follows_plan { 0 } else { 20 },
        )
    }

    /// Whether one more backend may fail.
    fn may_fail(&self) -> bool {
        self.can_lose_one_more(|backend| !backend.healthy, 50)
    }

    /// Whether each table can lose one more backend to those that `which` selects.
    fn can_lose_one_more(&self, which: impl Fn(&Backend) -> bool, one_in: usize) -> bool {
        self.set.tables.iter().all(|table| {
            let usable = || table.backends.iter().filter(|backend| backend.is_usable());
            let (all, out) = (usable().count(), usable().filter(|backend| which(backend)).count());
            let limit = (usize::from(table.hops) - 1).max(all.checked_div(one_in).unwrap_or(0));
            out < limit && out + 2 < all
        })
    }

    /// A random backend among those that `which` selects.
    fn pick(&mut self, which: impl Fn(&Backend) -> bool) -> Option<IpAddr> {
        let all = self.set.tables.iter().flat_map(|table| &table.backends);
        let found: Vec<IpAddr> =
            all.filter(|backend| which(backend)).map(|backend| backend.address).collect();
        (!found.is_empty()).then(|| found[self.random.below(found.len())])
    }

    /// The oldest deferred change that is safe now. If a change has been deferred often, the operator
    /// waits for a flow lifetime, and drops the change if it is still unsafe.
    fn deferred_change(&mut self) -> Option<Change> {
        for _ in 0..self.deferred.len() {
            let (change, times) = self.deferred.pop_front()?;
            if !self.is_applicable(change) {
                continue;
            }
            // While a backend is out of service, a new one would push others out of rows.
            if change.kind == ChangeKind::Add && !self.may_take_out() {
                self.deferred.push_back((change, times));
                continue;
            }
            let mut safe = self.is_safe(change);
            if !safe && times >= MAX_DEFERRALS {
                self.advance(self.history.flow_age());
                self.waits += 1;
                self.mark_empty_backends_drained();
                safe = self.is_safe(change);
                if !safe {
                    continue;
                }
            }
            if safe {
                return Some(change);
            }
            self.deferred.push_back((change, times + 1));
        }
        None
    }

    /// Whether the change still applies to the fleet as it is now.
    fn is_applicable(&self, change: Change) -> bool {
        let mut all = self.set.tables.iter().flat_map(|table| &table.backends);
        all.any(|backend| {
            backend.address == change.backend
                && match change.kind {
                    ChangeKind::Drain => backend.takes_new() && self.may_take_out(),
                    ChangeKind::Resume | ChangeKind::Remove => backend.state == State::Draining,
                    ChangeKind::Add => backend.state == State::Inactive,
                    ChangeKind::Activate => backend.state == State::Filling,
                    ChangeKind::Reweigh => backend.is_usable(),
                    ChangeKind::Fail | ChangeKind::Flap | ChangeKind::Recover => false,
                }
        })
    }

    /// Does what `glb-redirect wait --until-drained` does, for all draining and inactive backends.
    fn mark_empty_backends_drained(&mut self) {
        let flows = self.runner.simulation.flows_per_backend();
        let all = self.set.tables.iter().flat_map(|table| &table.backends);
        let idle = all.filter(|backend| matches!(backend.state, State::Draining | State::Inactive));
        for backend in idle {
            let machine = self.machines.entry(backend.address).or_default();
            let is_empty = flows.get(&backend.address).is_none_or(|flows| *flows == 0);
            if is_empty && !machine.known_empty {
                self.history.mark_drained(backend.address);
                machine.known_empty = true;
            }
        }
    }

    /// Whether the plan calls a change safe.
    fn is_safe(&mut self, change: Change) -> bool {
        let mut set = self.set.clone();
        apply(&mut set, change);
        // New weights need new ranks; the cached ranks of the table in force must stay.
        let row_cache = match change.kind {
            ChangeKind::Reweigh => &mut self.trial_rows,
            _ => &mut self.runner.row_cache,
        };
        let built = row_cache.build(&set);
        self.history.assess_change(&self.built, &built).safe
    }

    /// Makes a change and reports it.
    fn make(&mut self, step: usize, change: Change) {
        let mut ended = 0;
        let machine = self.machines.entry(change.backend).or_default();
        machine.known_empty = false;
        match change.kind {
            ChangeKind::Fail => {
                ended = self.runner.simulation.end_flows_of(change.backend);
                self.history.mark_drained(change.backend);
            }
            ChangeKind::Recover => machine.down_until = None,
            _ => {}
        }
        apply(&mut self.set, change);
        let tally = self.runner.activate(&self.set);
        self.built = self.runner.row_cache.build(&self.set);
        self.history.activate(&self.built);
        let kind = self.kinds.entry(change.kind).or_default();
        kind.times += 1;
        kind.ended += ended;
        kind.broken.add(tally.broken);
        let what = match change.kind {
            ChangeKind::Reweigh => format!("weight {} {}", change.backend, change.weight),
            kind => format!("{} {}", kind.name(), change.backend),
        };
        self.runner.report(step, what, &tally, ended);
    }
}

fn apply(set: &mut TableSet, change: Change) {
    let all = set.tables.iter_mut().flat_map(|table| &mut table.backends);
    for backend in all.filter(|backend| backend.address == change.backend) {
        match change.kind {
            ChangeKind::Drain => backend.state = State::Draining,
            ChangeKind::Resume | ChangeKind::Activate => backend.state = State::Active,
            ChangeKind::Remove => backend.state = State::Inactive,
            ChangeKind::Add => backend.state = State::Filling,
            ChangeKind::Reweigh => backend.weight = change.weight,
            ChangeKind::Fail | ChangeKind::Flap => backend.healthy = false,
            ChangeKind::Recover => backend.healthy = true,
        }
    }
}

/// Inactive backends with new addresses. An inactive backend is in no row, as if it were not in the
/// file.
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
