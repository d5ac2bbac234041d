//! Plans changes of tables: evaluates the risk of a sequence of steps, and generates safe rolling
//! maintenance.

use std::{collections::BTreeMap, net::IpAddr, path::Path};

use serde::Serialize;

use crate::{
    RowCache, State, TableSet,
    flow_safety::{FlowHistory, RiskReport},
};

/// The longest lifetime of a flow unless configured otherwise: a day, in seconds.
pub const DEFAULT_FLOW_AGE: u64 = 86_400;

/// A step of a plan.
#[derive(Clone, Debug)]
pub enum Step {
    /// A table file comes into force.
    Activate {
        /// The name in reports, for instance the file's name.
        name: String,
        /// The tables.
        set: TableSet,
    },
    /// Backends are known to hold no flows any more.
    MarkDrained(Vec<IpAddr>),
    /// Time passes: this many seconds, or the longest lifetime of a flow.
    Wait(Option<u64>),
}

/// A step as it is written on a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepArgument<'t> {
    /// The name of a table file.
    TableFile(&'t Path),
    /// `mark-drained=ADDRESS,…`
    MarkDrained(Vec<IpAddr>),
    /// `wait`, or `wait=DURATION` with the duration's text.
    Wait(Option<&'t str>),
}

/// An address in `mark-drained=…` is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not an address; write mark-drained=10.0.2.21,10.0.2.22")]
pub struct StepArgumentError(String);

impl<'t> StepArgument<'t> {
    /// Parses a step; everything that is neither `mark-drained=` nor `wait` is a file name.
    ///
    /// # Errors
    /// When `mark-drained=` is followed by something other than addresses.
    pub fn parse(text: &'t str) -> Result<Self, StepArgumentError> {
        if let Some(list) = text.strip_prefix("mark-drained=") {
            let parse = |address: &str| {
                address.trim().parse().map_err(|_| StepArgumentError(address.to_owned()))
            };
            return Ok(Self::MarkDrained(list.split(',').map(parse).collect::<Result<_, _>>()?));
        }
        Ok(match text.strip_prefix("wait") {
            Some("") => Self::Wait(None),
            Some(rest) if rest.starts_with('=') => Self::Wait(rest.get(1..)),
            _ => Self::TableFile(Path::new(text)),
        })
    }
}

/// The evaluation of a sequence of steps.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// No step can break a flow.
    pub safe: bool,
    /// The number, from 1, of the first step that can break a flow.
    pub first_unsafe: Option<usize>,
    /// The evaluation of each step.
    pub steps: Vec<PlannedStep>,
}

/// The evaluation of a step.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedStep {
    /// The number of the step, from 1.
    pub step: usize,
    /// A description of the step.
    pub what: String,
    /// The risk of activating a table. `None` for other steps.
    pub risk: Option<RiskReport>,
}

/// Evaluates a sequence of steps. The first table is the one in force and has no risk. After an unsafe
/// step the holders that it can lose are still remembered.
#[must_use]
pub fn evaluate(steps: &[Step], flow_age: u64) -> Plan {
    let mut evaluator = Evaluator::new(flow_age);
    let steps: Vec<PlannedStep> =
        steps.iter().zip(1..).map(|(step, number)| evaluator.step(step, number)).collect();
    let is_unsafe = |step: &&PlannedStep| step.risk.as_ref().is_some_and(|risk| !risk.safe);
    let first_unsafe = steps.iter().find(is_unsafe).map(|step| step.step);
    Plan { safe: first_unsafe.is_none(), first_unsafe, steps }
}

/// The state of an evaluation: the flow history, and cached rows.
struct Evaluator {
    history: FlowHistory,
    row_cache: RowCache,
}

impl Evaluator {
    fn new(flow_age: u64) -> Self {
        Self { history: FlowHistory::new(flow_age), row_cache: RowCache::default() }
    }

    fn step(&mut self, step: &Step, number: usize) -> PlannedStep {
        let (what, risk) = match step {
            Step::Activate { name, set } => {
                let built = self.row_cache.build(set);
                let risk = self.history.assess(&built);
                self.history.activate(&built);
                (name.clone(), Some(risk))
            }
            Step::MarkDrained(backends) => {
                backends.iter().for_each(|backend| self.history.mark_drained(*backend));
                let list: Vec<String> = backends.iter().map(IpAddr::to_string).collect();
                (format!("mark drained: {}", list.join(", ")), None)
            }
            Step::Wait(seconds) => {
                let seconds = seconds.unwrap_or(self.history.flow_age());
                self.history.advance(seconds);
                (format!("wait {}", format_duration(seconds)), None)
            }
        };
        PlannedStep { step: number, what, risk }
    }
}

/// Formats seconds: `1h 30m`.
#[must_use]
pub fn format_duration(seconds: u64) -> String {
    let units = [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)];
    let mut rest = seconds;
    let mut parts = Vec::new();
    for (unit, length) in units {
        if rest >= length {
            parts.push(format!("{}{unit}", rest / length));
            rest %= length;
        }
    }
    if parts.is_empty() { "0s".to_owned() } else { parts.join(" ") }
}

/// Parses seconds from `90`, `90s`, `15m`, `4h` or `2d`.
#[must_use]
pub fn parse_duration(text: &str) -> Option<u64> {
    let (number, unit) = match text.char_indices().last()? {
        (at, 's') => (&text[..at], 1),
        (at, 'm') => (&text[..at], 60),
        (at, 'h') => (&text[..at], 3_600),
        (at, 'd') => (&text[..at], 86_400),
        _ => (text, 1),
    };
    if !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    number.parse::<u64>().ok()?.checked_mul(unit)
}

/// Why a rolling maintenance is impossible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RollingError {
    /// No table has this backend.
    #[error("no table has a backend {0}")]
    NoBackend(IpAddr),
    /// The backend is not active or filling, so it cannot be drained and resumed.
    #[error(
        "backend {backend} is {state} in table \"{table}\": a rolling maintenance needs active or filling backends"
    )]
    NotServing {
        /// The backend.
        backend: IpAddr,
        /// Its state.
        state: State,
        /// The table.
        table: String,
    },
    /// A backend is named twice.
    #[error("backend {0} is named twice")]
    Duplicate(IpAddr),
    /// More backends would be out of service at once than the hops of a table allow.
    #[error("table \"{table}\" has rows of {hops} hops: drain at most {} at once", hops - 1)]
    TooMany {
        /// The table.
        table: String,
        /// Its hops.
        hops: usize,
    },
    /// No backend would be left to take new connections.
    #[error(
        "table \"{table}\" would have no backend that takes new connections while {backends} drain"
    )]
    NoBackendLeft {
        /// The table.
        table: String,
        /// The backends that would be drained at once.
        backends: String,
    },
}

/// A step of a rolling maintenance.
#[derive(Clone, Debug, Serialize)]
pub struct MaintenanceStep {
    /// Its number, from 1.
    pub step: usize,
    /// A description of the step.
    pub what: String,
    /// The commands to run; `FILE` stands for the table file.
    pub commands: Vec<String>,
    /// The risk of a change of tables, always safe. `None` for other steps.
    pub risk: Option<RiskReport>,
}

/// Plans a safe rolling maintenance: drains the backends in the given order, `max_unavailable` at a
/// time, and resumes each group. A change that could break a flow gets a wait of `flow_age` before it.
///
/// # Errors
/// When a backend is unknown, or a table cannot do without it.
pub fn rolling_maintenance(
    set: &TableSet,
    backends: &[IpAddr],
    max_unavailable: usize,
    flow_age: u64,
) -> Result<Vec<MaintenanceStep>, RollingError> {
    for (place, backend) in backends.iter().enumerate() {
        if backends[..place].contains(backend) {
            return Err(RollingError::Duplicate(*backend));
        }
        let mut found = false;
        for table in &set.tables {
            for there in table.backends.iter().filter(|there| there.address == *backend) {
                found = true;
                if !matches!(there.state, State::Active | State::Filling) {
                    let (backend, state, table) = (*backend, there.state, table.name.clone());
                    return Err(RollingError::NotServing { backend, state, table });
                }
            }
        }
        if !found {
            return Err(RollingError::NoBackend(*backend));
        }
    }
    let max_unavailable = max_unavailable.max(1);
    let mut plan = RollingPlan {
        evaluator: Evaluator::new(flow_age),
        list: Vec::new(),
        flow_age,
        current: set.clone(),
    };
    plan.evaluator.step(&Step::Activate { name: String::new(), set: set.clone() }, 0);
    for group in backends.chunks(max_unavailable) {
        check_capacity(set, group)?;
        let list = group.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ");
        plan.change(set, group, &format!("drain {list}"), |_| State::Draining);
        plan.push(
            format!(
                "wait until {list} hold{} no flows, or {}; then do the maintenance and check that it is healthy",
                if group.len() == 1 { "s" } else { "" },
                format_duration(flow_age)
            ),
            group
                .iter()
                .map(|backend| format!("glb-redirect wait --until-drained    # on {backend}"))
                .collect(),
        );
        plan.evaluator.step(&Step::MarkDrained(group.to_vec()), 0);
        plan.change(set, &[], &format!("resume {list}"), |state| state);
    }
    Ok(plan.list)
}

/// Checks that every table can do without these backends at once.
fn check_capacity(set: &TableSet, group: &[IpAddr]) -> Result<(), RollingError> {
    for table in &set.tables {
        let out = table.backends.iter().filter(|backend| group.contains(&backend.address)).count();
        if out == 0 {
            continue;
        }
        let hops = table.usable().min(usize::from(table.hops));
        let left = table
            .backends
            .iter()
            .filter(|backend| backend.takes_new() && !group.contains(&backend.address));
        if left.count() == 0 {
            let backends = group.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ");
            return Err(RollingError::NoBackendLeft { table: table.name.clone(), backends });
        }
        if out >= hops {
            return Err(RollingError::TooMany { table: table.name.clone(), hops });
        }
    }
    Ok(())
}

/// A rolling maintenance while it is planned.
struct RollingPlan {
    evaluator: Evaluator,
    list: Vec<MaintenanceStep>,
    flow_age: u64,
    current: TableSet,
}

impl RollingPlan {
    /// The commands that change the current tables to these.
    fn commands(&self, new: &TableSet) -> Vec<String> {
        let mut states: BTreeMap<IpAddr, Vec<(&str, State, bool)>> = BTreeMap::new();
        for (old, new) in self.current.tables.iter().zip(&new.tables) {
            for (old, backend) in old.backends.iter().zip(&new.backends) {
                let entry = (new.name.as_str(), backend.state, old.state != backend.state);
                states.entry(backend.address).or_default().push(entry);
            }
        }
        let mut commands = Vec::new();
        for (address, states) in states {
            let same = states.iter().all(|(_, state, _)| *state == states[0].1);
            for (table, state, _) in states.iter().filter(|(.., changes)| *changes) {
                let only = if same { String::new() } else { format!(" --table '{table}'") };
                commands
                    .push(format!("glb-director table set FILE {address} --state {state}{only}"));
            }
        }
        commands.dedup();
        commands
    }

    fn push(&mut self, what: String, commands: Vec<String>) {
        self.list.push(MaintenanceStep { step: self.list.len() + 1, what, commands, risk: None });
    }

    /// Adds a change: `group` gets a new state, all other backends are as in `set`.
    fn change(
        &mut self,
        set: &TableSet,
        group: &[IpAddr],
        what: &str,
        state: impl Fn(State) -> State,
    ) {
        let mut new = set.clone();
        for backend in new.tables.iter_mut().flat_map(|table| &mut table.backends) {
            if group.contains(&backend.address) {
                backend.state = state(backend.state);
            }
        }
        let built = self.evaluator.row_cache.build(&new);
        if !self.evaluator.history.assess(&built).safe {
            self.evaluator.history.advance(self.flow_age);
            let reason = "flows may still be at backends that an earlier step sent them to";
            self.push(format!("wait {}: {reason}", format_duration(self.flow_age)), Vec::new());
        }
        let risk = self.evaluator.history.assess(&built);
        let commands = self.commands(&new);
        self.evaluator.history.activate(&built);
        self.list.push(MaintenanceStep {
            step: self.list.len() + 1,
            what: what.to_owned(),
            commands,
            risk: Some(risk),
        });
        self.current = new;
    }
}
