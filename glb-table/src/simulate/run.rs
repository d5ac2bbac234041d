//! Whole sequences, with flows that come and go.

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use super::{Broken, Cause, Lifetimes, Load, Simulation, Tally};
use crate::{
    RowCache, TableSet,
    lookup::FlowQuery,
    plan::{Step, format_duration},
};

/// What flows there are.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How many live at once, over all tables.
    pub flows: u64,
    /// How long each lives.
    pub lifetimes: Lifetimes,
    /// Seconds for which tables are in force before the next ones come.
    pub every: u64,
    /// Chooses addresses and lives.
    pub seed: u64,
}

/// A flow that is followed one by one.
#[derive(Clone, Copy, Debug)]
pub struct Listed {
    /// Its addresses and ports, all of them given.
    pub flow: FlowQuery,
    /// The step, from 1, after which it comes; it lives to the end.
    pub step: usize,
}

/// How far it has got.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Steps that are done.
    pub done: usize,
    /// Of so many.
    pub all: usize,
    /// Flows that broke so far.
    pub broken: u64,
}

/// What became of the flows.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Chose addresses and lives.
    pub seed: u64,
    /// Flows that live at once.
    pub flows: u64,
    /// How long they live.
    pub lifetimes: Lifetimes,
    /// Their mean life in seconds.
    pub mean_lifetime: f64,
    /// Seconds from the first tables to the last step.
    pub seconds: u64,
    /// Flows that there were in all that time; most begin and end between two changes.
    pub flows_in_all: u64,
    /// Flows that were simulated: those that were there at a change.
    pub simulated: u64,
    /// Flows that broke.
    pub broken: Broken,
    /// Each step.
    pub steps: Vec<StepReport>,
    /// The flows that were followed one by one.
    pub followed: Vec<ListedReport>,
}

/// What one step did.
#[derive(Clone, Debug, Serialize)]
pub struct StepReport {
    /// Its number, from 1.
    pub step: usize,
    /// What was done.
    pub what: String,
    /// Seconds since the first tables.
    pub at: u64,
    /// Flows that live after it.
    pub live: u64,
    /// Of these, flows of backends that are down: neither broken nor known to live.
    pub down: u64,
    /// Flows that it broke.
    pub broken: Broken,
    /// Flows that were said to have ended, or ended with their machine.
    pub ended: u64,
    /// How the load lies on the backends, by table.
    pub load: Vec<Load>,
}

/// What became of a flow that was followed.
#[derive(Clone, Debug, Serialize)]
pub struct ListedReport {
    /// The client.
    pub client: SocketAddr,
    /// The VIP.
    pub vip: SocketAddr,
    /// The step after which it came.
    pub step: usize,
    /// Which backend took it; none if no bind was for it.
    pub backend: Option<IpAddr>,
    /// The step that broke it.
    pub broken_by: Option<usize>,
    /// Why it broke.
    pub cause: Option<Cause>,
}

/// Runs a sequence of tables. `progress` is told after each step.
#[must_use]
pub fn sequence(
    steps: &[Step],
    listed: &[Listed],
    options: &Options,
    progress: &mut dyn FnMut(Progress),
) -> Report {
    let mut runner = Runner::new(options);
    let mut followed: Vec<ListedReport> = listed.iter().map(ListedReport::new).collect();
    // Which of the list a followed flow is.
    let mut places = Vec::new();
    for (step, number) in steps.iter().zip(1..) {
        let (what, tally, ended) = match step {
            Step::Activate { name, set } => {
                runner.pass(options.every);
                (name.clone(), runner.tables(set), 0)
            }
            Step::MarkDrained(backends) => {
                let ended =
                    backends.iter().map(|backend| runner.simulation.drained(*backend)).sum();
                let list: Vec<String> = backends.iter().map(IpAddr::to_string).collect();
                (format!("drained: {}", list.join(", ")), runner.look(), ended)
            }
            Step::Wait(seconds) => {
                let seconds = seconds.unwrap_or(options.lifetimes.longest as u64);
                runner.pass(seconds);
                (format!("wait {}", format_duration(seconds)), runner.look(), 0)
            }
        };
        for (number_of, cause) in &tally.followed {
            let place: usize = places[*number_of as usize];
            (followed[place].broken_by, followed[place].cause) = (Some(number), Some(*cause));
        }
        runner.report(number, what, &tally, ended);
        for (place, listed) in listed.iter().enumerate().filter(|(_, listed)| listed.step == number)
        {
            if let Some(number) = runner.simulation.follow(&listed.flow) {
                followed[place].backend = runner.simulation.holder(number);
                places.push(place);
            }
        }
        progress(Progress { done: number, all: steps.len(), broken: runner.report.broken.all() });
    }
    Report { followed, ..runner.report }
}

impl ListedReport {
    fn new(listed: &Listed) -> Self {
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

/// Keeps time, and as many flows alive as there shall be.
pub(super) struct Runner {
    pub(super) simulation: Simulation,
    pub(super) builder: RowCache,
    pub(super) report: Report,
    options: Options,
    begun: bool,
}

impl Runner {
    pub(super) fn new(options: &Options) -> Self {
        let lifetimes = options.lifetimes;
        let report = Report {
            seed: options.seed,
            flows: options.flows,
            lifetimes,
            mean_lifetime: lifetimes.mean(),
            seconds: 0,
            flows_in_all: options.flows,
            simulated: 0,
            broken: Broken::default(),
            steps: Vec::new(),
            followed: Vec::new(),
        };
        let simulation = Simulation::new(options.seed);
        Self { simulation, builder: RowCache::default(), report, options: *options, begun: false }
    }

    /// Time passes: flows end, and others come. Only those are made that live on to its end.
    pub(super) fn pass(&mut self, seconds: u64) {
        if !self.begun {
            return;
        }
        self.simulation.pass(seconds.saturating_mul(1_000));
        self.report.seconds = self.report.seconds.saturating_add(seconds);
        self.grow(seconds as f64);
        let came = self.options.flows as f64 / self.report.mean_lifetime * seconds as f64;
        self.report.flows_in_all = self.report.flows_in_all.saturating_add(came as u64);
    }

    fn grow(&mut self, young: f64) {
        let lifetimes = self.options.lifetimes;
        let flows = (self.options.flows as f64 * lifetimes.younger(young)).round() as u64;
        let left = lifetimes.left(young);
        self.simulation.grow(flows, |random| (left.draw(random) * 1_000.0) as u64 + 1);
        self.report.simulated += flows;
    }

    /// Tables come into force. Before the first ones there are none, and with them all flows that
    /// they have when they have been in force for long.
    pub(super) fn tables(&mut self, set: &TableSet) -> Tally {
        let built = self.builder.build(set);
        let tally = self.simulation.apply(&built);
        if self.begun {
            return tally;
        }
        self.begun = true;
        self.grow(self.options.lifetimes.longest);
        self.look()
    }

    /// The flows as they are, by the tables that are in force.
    pub(super) fn look(&mut self) -> Tally {
        self.simulation.look()
    }

    pub(super) fn report(&mut self, step: usize, what: String, tally: &Tally, ended: u64) {
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
