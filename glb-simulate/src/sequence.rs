//! Runs a given sequence of tables, with flows that begin and end.

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use crate::{BrokenFlows, Cause, Lifetimes, Load, Simulation, Tally};
use glb_table::{
    RowCache, TableSet,
    lookup::FlowQuery,
    plan::{Step, format_duration},
};

/// The flows to simulate, and the pace of changes.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Number of flows that are alive at one moment, over all tables.
    pub flows: u64,
    /// The distribution of lifetimes.
    pub lifetimes: Lifetimes,
    /// Seconds between two changes of the tables.
    pub step_interval: u64,
    /// Seed of the random addresses, lifetimes and changes.
    pub seed: u64,
}

/// A given flow, whose fate is reported.
#[derive(Clone, Copy, Debug)]
pub struct TracedFlow {
    /// Its addresses and ports; none may be missing.
    pub flow: FlowQuery,
    /// The step, from 1, after which the flow begins. It lives until the end of the sequence.
    pub step: usize,
}

/// The progress of a simulation.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Number of steps done.
    pub done: usize,
    /// Number of steps in all.
    pub all: usize,
    /// Number of flows that broke so far.
    pub broken: u64,
}

/// The result of a simulation.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Number of flows that are alive at one moment.
    pub flows: u64,
    /// The distribution of lifetimes.
    pub lifetimes: Lifetimes,
    /// The mean lifetime in seconds.
    pub mean_lifetime: f64,
    /// Simulated seconds from the first table to the last step.
    pub seconds: u64,
    /// Number of flows in all that time. Most of them begin and end between two changes.
    pub flows_in_total: u64,
    /// Number of flows that were simulated: those alive at a change.
    pub simulated: u64,
    /// Flows that broke.
    pub broken: BrokenFlows,
    /// The result of each step.
    pub steps: Vec<StepReport>,
    /// The result of each traced flow.
    pub traced: Vec<TracedFlowReport>,
}

/// The result of one step.
#[derive(Clone, Debug, Serialize)]
pub struct StepReport {
    /// The step's number, from 1.
    pub step: usize,
    /// A description of the step.
    pub what: String,
    /// Simulated seconds since the first table.
    pub at: u64,
    /// Number of live flows after the step.
    pub live: u64,
    /// Live flows of backends that are down; they are not counted as broken.
    pub down: u64,
    /// Flows that the step broke.
    pub broken: BrokenFlows,
    /// Flows that ended because their backend was marked drained or died.
    pub ended: u64,
    /// The load of the backends, for each table.
    pub load: Vec<Load>,
}

/// The result of a traced flow.
#[derive(Clone, Debug, Serialize)]
pub struct TracedFlowReport {
    /// The client.
    pub client: SocketAddr,
    /// The VIP.
    pub vip: SocketAddr,
    /// The step after which the flow began.
    pub step: usize,
    /// The backend that took the flow; `None` if no bind matched.
    pub backend: Option<IpAddr>,
    /// The step that broke the flow.
    pub broken_by: Option<usize>,
    /// Why the flow broke.
    pub cause: Option<Cause>,
}

/// Runs a sequence of steps with a workload. Calls `progress` after each step.
#[must_use]
pub fn sequence(
    steps: &[Step],
    listed: &[TracedFlow],
    workload: &Workload,
    progress: &mut dyn FnMut(Progress),
) -> Report {
    let mut runner = Runner::new(workload);
    let mut traced: Vec<TracedFlowReport> = listed.iter().map(TracedFlowReport::new).collect();
    // The place in `traced` of each traced flow number.
    let mut places = Vec::new();
    for (step, number) in steps.iter().zip(1..) {
        let (what, tally, ended) = match step {
            Step::Activate { name, set } => {
                runner.advance(workload.step_interval);
                (name.clone(), runner.activate(set), 0)
            }
            Step::MarkDrained(backends) => {
                let ended =
                    backends.iter().map(|backend| runner.simulation.end_flows_of(*backend)).sum();
                let list: Vec<String> = backends.iter().map(IpAddr::to_string).collect();
                (format!("mark drained: {}", list.join(", ")), runner.count(), ended)
            }
            Step::Wait(seconds) => {
                let seconds = seconds.unwrap_or(workload.lifetimes.max as u64);
                runner.advance(seconds);
                (format!("wait {}", format_duration(seconds)), runner.count(), 0)
            }
        };
        for (flow, cause) in &tally.traced {
            let place: usize = places[*flow as usize];
            (traced[place].broken_by, traced[place].cause) = (Some(number), Some(*cause));
        }
        runner.report(number, what, &tally, ended);
        for (place, listed) in listed.iter().enumerate().filter(|(_, listed)| listed.step == number)
        {
            if let Some(number) = runner.simulation.trace(&listed.flow) {
                traced[place].backend = runner.simulation.holder(number);
                places.push(place);
            }
        }
        progress(Progress { done: number, all: steps.len(), broken: runner.report.broken.all() });
    }
    Report { traced, ..runner.report }
}

impl TracedFlowReport {
    fn new(listed: &TracedFlow) -> Self {
        let flow = &listed.flow;
        let address = |ip, port: Option<u16>| SocketAddr::new(ip, port.unwrap_or_default());
        Self {
            client: address(flow.source, flow.source_port),
            vip: address(flow.vip, flow.port),
            step: listed.step,
            backend: None,
            broken_by: None,
            cause: None,
        }
    }
}

/// Keeps the clock, and the number of live flows constant.
pub(crate) struct Runner {
    pub(crate) simulation: Simulation,
    pub(crate) row_cache: RowCache,
    pub(crate) report: Report,
    workload: Workload,
    has_tables: bool,
}

impl Runner {
    pub(crate) fn new(workload: &Workload) -> Self {
        let lifetimes = workload.lifetimes;
        let report = Report {
            seed: workload.seed,
            flows: workload.flows,
            lifetimes,
            mean_lifetime: lifetimes.mean(),
            seconds: 0,
            flows_in_total: workload.flows,
            simulated: 0,
            broken: BrokenFlows::default(),
            steps: Vec::new(),
            traced: Vec::new(),
        };
        let simulation = Simulation::new(workload.seed);
        Self {
            simulation,
            row_cache: RowCache::default(),
            report,
            workload: *workload,
            has_tables: false,
        }
    }

    /// Advances the clock: flows end and others begin. Of the new flows only those that are still
    /// alive afterwards are simulated.
    pub(crate) fn advance(&mut self, seconds: u64) {
        if !self.has_tables {
            return;
        }
        self.simulation.advance(seconds.saturating_mul(1_000));
        self.report.seconds = self.report.seconds.saturating_add(seconds);
        self.establish(seconds as f64);
        let new_flows = self.workload.flows as f64 / self.report.mean_lifetime * seconds as f64;
        self.report.flows_in_total = self.report.flows_in_total.saturating_add(new_flows as u64);
    }

    /// Establishes the flows that began in the last `young` seconds and are alive now.
    fn establish(&mut self, young: f64) {
        let lifetimes = self.workload.lifetimes;
        let flows =
            (self.workload.flows as f64 * lifetimes.share_younger_than(young)).round() as u64;
        let remaining = lifetimes.remaining(young);
        self.simulation
            .establish_with(flows, |random| (remaining.draw(random) * 1_000.0) as u64 + 1);
        self.report.simulated += flows;
    }

    /// Puts tables into force. The first call also establishes all flows that are alive at one moment.
    pub(crate) fn activate(&mut self, set: &TableSet) -> Tally {
        let built = self.row_cache.build(set);
        let tally = self.simulation.activate(&built);
        if self.has_tables {
            return tally;
        }
        self.has_tables = true;
        self.establish(self.workload.lifetimes.max);
        self.count()
    }

    /// Counts the flows with the tables in force.
    pub(crate) fn count(&mut self) -> Tally {
        self.simulation.count()
    }

    /// Adds a step to the report.
    pub(crate) fn report(&mut self, step: usize, what: String, tally: &Tally, ended: u64) {
        self.report.broken.add(tally.broken);
        self.report.steps.push(StepReport {
            step,
            what,
            at: self.report.seconds,
            live: tally.live,
            down: tally.down,
            broken: tally.broken,
            ended,
            load: self.simulation.load(tally),
        });
    }
}
