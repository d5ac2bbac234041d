//! A sequence of tables as an operator would apply them: what each step puts at risk, and how to
//! maintain backends one after the other without any risk.

use std::{collections::BTreeMap, net::IpAddr, path::Path};

use serde::Serialize;

use crate::{
    RowCache, State, TableSet,
    flow_safety::{FlowHistory, RiskReport},
};

/// How long a flow lives at most, unless said otherwise: a day, in seconds.
pub const DEFAULT_FLOW_AGE: u64 = 86_400;

/// One step of a sequence.
#[derive(Clone, Debug)]
pub enum Step {
    /// These tables come into force.
    Activate {
        /// What to call it, for instance the file's name.
        name: String,
        /// The tables.
        set: TableSet,
    },
    /// These backends are known to hold no flow any more.
    MarkDrained(Vec<IpAddr>),
    /// This many seconds pass; as long as a flow lives if none are given.
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

/// What a sequence of steps does.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Whether no flow can break in any step.
    pub safe: bool,
    /// The first step (from 1) that can break a flow.
    pub first_unsafe: Option<usize>,
    /// Each step.
    pub steps: Vec<PlannedStep>,
}

/// A step and what it does.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedStep {
    /// Its number, from 1.
    pub step: usize,
    /// What is done.
    pub what: String,
    /// What it puts at risk; nothing but a table does. The first tables put nothing at risk.
    pub risk: Option<RiskReport>,
}

/// Walks a sequence. A flow that an unsafe step can break is forgotten only when its holder is.
#[must_use]
pub fn evaluate(steps: &[Step], flow_age: u64) -> Plan {
    let mut walker = Walker::new(flow_age);
    let steps: Vec<PlannedStep> =
        steps.iter().zip(1..).map(|(step, number)| walker.step(step, number)).collect();
    let is_unsafe =
        |judged: &&PlannedStep| judged.risk.as_ref().is_some_and(|judgement| !judgement.safe);
    let first_unsafe = steps.iter().find(is_unsafe).map(|judged| judged.step);
    Plan { safe: first_unsafe.is_none(), first_unsafe, steps }
}

struct Walker {
    memory: FlowHistory,
    builder: RowCache,
}

impl Walker {
    fn new(flow_age: u64) -> Self {
        Self { memory: FlowHistory::new(flow_age), builder: RowCache::default() }
    }

    fn step(&mut self, step: &Step, number: usize) -> PlannedStep {
        let (what, risk) = match step {
            Step::Activate { name, set } => {
                let built = self.builder.build(set);
                let judgement = self.memory.assess(&built);
                self.memory.activate(&built);
                (name.clone(), Some(judgement))
            }
            Step::MarkDrained(backends) => {
                backends.iter().for_each(|backend| self.memory.mark_drained(*backend));
                let list: Vec<String> = backends.iter().map(IpAddr::to_string).collect();
                (format!("mark drained: {}", list.join(", ")), None)
            }
            Step::Wait(seconds) => {
                let seconds = seconds.unwrap_or(self.memory.flow_age());
                self.memory.advance(seconds);
                (format!("wait {}", format_duration(seconds)), None)
            }
        };
        PlannedStep { step: number, what, risk }
    }
}

/// Seconds for people: `1h 30m`.
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

/// Seconds from `90`, `90s`, `15m`, `4h` or `2d`.
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

/// Why no rolling maintenance can be planned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RollingError {
    /// A name that no table has.
    #[error("no table has a backend {0}")]
    NoBackend(IpAddr),
    /// The backend is not serving, so there is nothing to drain and come back to.
    #[error(
        "backend {backend} is {state} in table \"{table}\"; a rolling maintenance starts from active or filling ones"
    )]
    NotServing {
        /// Who.
        backend: IpAddr,
        /// Its state.
        state: State,
        /// Where.
        table: String,
    },
    /// Named twice.
    #[error("backend {0} is named twice")]
    Twice(IpAddr),
    /// Too many at once for the hops of a table.
    #[error("table \"{table}\" has rows of {hops} hops: at most {} can be drained at once", hops - 1)]
    TooMany {
        /// Where.
        table: String,
        /// Its hops.
        hops: usize,
    },
    /// There would be nobody left to take new connections.
    #[error(
        "table \"{table}\" would have no backend that takes new connections while {backends} drain"
    )]
    NobodyLeft {
        /// Where.
        table: String,
        /// Who would be out at once.
        backends: String,
    },
}

/// One thing to do in a rolling maintenance.
#[derive(Clone, Debug, Serialize)]
pub struct MaintenanceStep {
    /// Its number, from 1.
    pub step: usize,
    /// What to do, in words.
    pub what: String,
    /// The commands that do it, if there are any; `FILE` stands for the table file.
    pub commands: Vec<String>,
    /// What the change puts at risk; nothing, or the plan would not be given.
    pub risk: Option<RiskReport>,
}

/// A safe rolling maintenance: drains the backends in the given order, `at_once` at a time, and
/// brings each back as it was. Every change is judged, and where one could break a flow a wait of
/// `flow_age` is put before it.
///
/// # Errors
/// A name that is not there, or a table that cannot do without its backend.
pub fn rolling_maintenance(
    set: &TableSet,
    backends: &[IpAddr],
    at_once: usize,
    flow_age: u64,
) -> Result<Vec<MaintenanceStep>, RollingError> {
    for (place, backend) in backends.iter().enumerate() {
        if backends[..place].contains(backend) {
            return Err(RollingError::Twice(*backend));
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
    let at_once = at_once.max(1);
    let mut todo =
        Todos { walker: Walker::new(flow_age), list: Vec::new(), flow_age, current: set.clone() };
    todo.walker.step(&Step::Activate { name: String::new(), set: set.clone() }, 0);
    for group in backends.chunks(at_once) {
        room(set, group)?;
        let list = group.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ");
        todo.change(set, group, &format!("drain {list}"), |_| State::Draining);
        todo.push(
            format!(
                "wait until {list} hold{} no flow, or {}; then do the maintenance and see that it is healthy",
                if group.len() == 1 { "s" } else { "" },
                format_duration(flow_age)
            ),
            group
                .iter()
                .map(|backend| format!("glb-redirect wait --until-drained    # on {backend}"))
                .collect(),
        );
        todo.walker.step(&Step::MarkDrained(group.to_vec()), 0);
        todo.change(set, &[], &format!("bring {list} back"), |state| state);
    }
    Ok(todo.list)
}

/// Whether every table can do without these backends at once.
fn room(set: &TableSet, group: &[IpAddr]) -> Result<(), RollingError> {
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
            return Err(RollingError::NobodyLeft { table: table.name.clone(), backends });
        }
        if out >= hops {
            return Err(RollingError::TooMany { table: table.name.clone(), hops });
        }
    }
    Ok(())
}

struct Todos {
    walker: Walker,
    list: Vec<MaintenanceStep>,
    flow_age: u64,
    current: TableSet,
}

impl Todos {
    /// What leads from the tables that are in force to these.
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

    /// `group` gets a new state and everybody else is as in `set`.
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
        let built = self.walker.builder.build(&new);
        if !self.walker.memory.assess(&built).safe {
            self.walker.memory.advance(self.flow_age);
            let why = "flows may still be where an earlier step sent them";
            self.push(format!("wait {}: {why}", format_duration(self.flow_age)), Vec::new());
        }
        let judgement = self.walker.memory.assess(&built);
        let commands = self.commands(&new);
        self.walker.memory.activate(&built);
        self.list.push(MaintenanceStep {
            step: self.list.len() + 1,
            what: what.to_owned(),
            commands,
            risk: Some(judgement),
        });
        self.current = new;
    }
}
