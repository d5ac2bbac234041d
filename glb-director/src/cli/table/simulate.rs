//! The part of `glb-director table plan` that sends flows through the tables.

use std::{
    collections::BTreeSet,
    io::{self, IsTerminal as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use glb_table::{
    Proto, TableSet,
    lookup::FlowQuery,
    plan::{Step, format_duration},
    simulate::{
        self, Lifetimes, Listed, Load, Maintenance, MaintenanceReport, Options, Progress, Report,
    },
};

use super::{
    plan::age,
    print::{self, percent},
};
use crate::cli::Output;

/// Flows that live at once, unless said otherwise.
const FLOWS: u64 = 100_000;
/// Steps that are shown to people; programs get all.
const SHOWN: usize = 10;

#[derive(Args, Debug)]
#[command(next_help_heading = "Simulation")]
pub(super) struct Simulating {
    /// Send flows through the tables one by one, and count those that break. So many live at once,
    /// 100000 unless given.
    #[arg(long, value_name = "FLOWS", num_args = 0..=1, require_equals = true, conflicts_with = "drain",
          value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    simulate: Option<Option<u64>>,
    /// Chooses the flows' addresses and lives, and the changes that are made up. The same seed gives
    /// the same result on every machine.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// How long each table is in force before the next one comes, besides what the steps wait.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = age)]
    every: u64,
    /// How long a flow lives at least. Lives follow a Pareto distribution between this and --flow-age.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = age)]
    shortest: u64,
    /// The distribution's exponent: of the flows that have lived some time, one in 2^TAIL lives as
    /// long again. The smaller, the more live long.
    #[arg(long, value_name = "TAIL", default_value_t = 1.0, value_parser = tail)]
    tail: f64,
    /// Follow these flows besides: a file with a line `CLIENT:PORT VIP:PORT[/udp] [STEP]` for each, as
    /// `ss -tn` lists them. A flow comes after the step of that number, the first unless given, and
    /// lives to the end. The answer says what became of each.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["changes", "drain"])]
    follow: Option<PathBuf>,
    /// Make up so many changes, --every or more apart: drains, removals, additions, new weights,
    /// failures and returns. The operator asks the plan before each change, and puts off what could
    /// break flows.
    #[arg(long, value_name = "N", conflicts_with = "drain",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    changes: Option<u32>,
    /// With --changes: the operator asks nobody, and takes out backends that are not drained.
    #[arg(long, requires = "changes")]
    careless: bool,
    /// With --changes: begin with so many backends of one table, instead of with a file's.
    #[arg(long, value_name = "N", requires = "changes", conflicts_with = "steps",
          value_parser = clap::value_parser!(u16).range(4..=10_000))]
    pub(super) backends: Option<u16>,
    /// With --backends: how many hops a row has.
    #[arg(long, value_name = "N", requires = "backends", default_value_t = 2,
          value_parser = clap::value_parser!(u8).range(2..=4))]
    hops: u8,
}

fn tail(text: &str) -> Result<f64, String> {
    let tail = text.parse().ok().filter(|tail| (0.1..=10.0).contains(tail));
    tail.ok_or_else(|| "write a number from 0.1 to 10".to_owned())
}

impl Simulating {
    /// Whether the sequence is made up.
    pub(super) fn is_generated(&self) -> bool {
        self.changes.is_some()
    }

    fn options(&self, flow_age: u64, flows: u64) -> anyhow::Result<Options> {
        if self.shortest >= flow_age {
            bail!(
                "--shortest {} is not below --flow-age {}",
                format_duration(self.shortest),
                format_duration(flow_age)
            );
        }
        let (shortest, longest) = (self.shortest as f64, flow_age as f64);
        let lifetimes = Lifetimes { shortest, longest, tail: self.tail };
        Ok(Options { flows, lifetimes, every: self.every, seed: self.seed })
    }

    /// Sends flows through the steps, if that was asked for.
    pub(super) fn sequence(&self, steps: &[Step], flow_age: u64) -> anyhow::Result<Option<Report>> {
        let flows = match (self.simulate, &self.follow) {
            (Some(flows), _) => flows.unwrap_or(FLOWS),
            (None, Some(_)) => 0,
            (None, None) => return Ok(None),
        };
        let options = self.options(flow_age, flows)?;
        let listed = match &self.follow {
            Some(file) => follow(file, steps)?,
            None => Vec::new(),
        };
        let mut shown = Shown::new();
        Ok(Some(simulate::sequence(steps, &listed, &options, &mut |done| shown.show(done))))
    }

    /// Makes up a sequence and prints what it does; an error if the operator's changes break flows.
    pub(super) fn maintenance(
        &self,
        file: Option<TableSet>,
        flow_age: u64,
        output: Output,
    ) -> anyhow::Result<()> {
        let set =
            file.unwrap_or_else(|| simulate::fleet(self.backends.unwrap_or_default(), self.hops));
        let options = self.options(flow_age, self.simulate.flatten().unwrap_or(FLOWS))?;
        let changes = self.changes.unwrap_or_default() as usize;
        let mut shown = Shown::new();
        let report =
            Maintenance { changes, careful: !self.careless }
                .run(&set, &options, &mut |done| shown.show(done));
        drop(shown);
        match output {
            Output::Json => print::json(&report)?,
            Output::Table => print::out(&maintenance_text(&report, self.every))?,
        }
        match report.broken_by_operator {
            0 => Ok(()),
            broken => bail!("the operator's changes broke {broken} flows"),
        }
    }
}

/// Reads the flows that are to be followed.
fn follow(file: &Path, steps: &[Step]) -> anyhow::Result<Vec<Listed>> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let flows = lines.map(|(number, line)| {
        let words: Vec<&str> = line.split_whitespace().collect();
        flow(&words, steps.len()).map_err(|error| {
            anyhow!(
                "{}:{}: {error}; a line is CLIENT:PORT VIP:PORT[/udp] [STEP], for instance \
                 198.51.100.7:50123 203.0.113.10:443",
                file.display(),
                number + 1
            )
        })
    });
    flows.collect()
}

fn flow(words: &[&str], steps: usize) -> Result<Listed, String> {
    let (client, vip, step) = match words {
        [client, vip] => (client, vip, "1"),
        [client, vip, step] => (client, vip, *step),
        _ => return Err(format!("{} words", words.len())),
    };
    let (vip, proto) = match vip.rsplit_once('/') {
        None | Some((_, "tcp")) => (vip.trim_end_matches("/tcp"), Proto::Tcp),
        Some((vip, "udp")) => (vip, Proto::Udp),
        Some((_, other)) => return Err(format!("\"{other}\" is neither tcp nor udp")),
    };
    let address = |text: &str| {
        text.parse::<SocketAddr>().map_err(|_| format!("\"{text}\" is no address with a port"))
    };
    let (client, vip) = (address(client)?, address(vip)?);
    // A socket of both families shows IPv4 as mapped.
    let [client, vip] =
        [client, vip].map(|address| SocketAddr::new(address.ip().to_canonical(), address.port()));
    if client.is_ipv4() != vip.is_ipv4() {
        return Err(format!("{client} and {vip} are of different address families"));
    }
    let step = step.parse().ok().filter(|step| (1..=steps).contains(step));
    let step = step.ok_or_else(|| format!("the step is from 1 to {steps}"))?;
    let flow = FlowQuery {
        source: client.ip(),
        source_port: Some(client.port()),
        vip: vip.ip(),
        port: Some(vip.port()),
        proto,
    };
    Ok(Listed { flow, step })
}

/// Shows how far long work has got: on a terminal only.
struct Shown {
    begun: Instant,
    last: Instant,
    is_shown: bool,
}

impl Shown {
    fn new() -> Self {
        let now = Instant::now();
        Self { begun: now, last: now, is_shown: false }
    }

    fn show(&mut self, progress: Progress) {
        if !io::stderr().is_terminal() || self.last.elapsed() < Duration::from_millis(500) {
            return;
        }
        (self.last, self.is_shown) = (Instant::now(), true);
        let Progress { done, all, broken } = progress;
        let left = self.begun.elapsed().as_secs_f64() / done as f64 * (all - done) as f64;
        let left = format_duration(left as u64);
        print::err(&format!("\r\x1b[K{done} of {all} steps, {broken} flows broken; {left} left"));
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if self.is_shown {
            print::err("\r\x1b[K");
        }
    }
}

/// What flows there were.
fn flows_text(report: &Report) -> String {
    let Lifetimes { shortest, longest, tail } = report.lifetimes;
    let mut text = format!(
        "{} flows at once, of lives from {} to {} (Pareto, tail {tail}), {:.1}s in the mean; \
         {} in all, {} of them there at a change; seed {}\n",
        thousands(report.flows),
        format_duration(shortest as u64),
        format_duration(longest as u64),
        report.mean_lifetime,
        thousands(report.flows_in_all),
        thousands(report.simulated),
        report.seed,
    );
    let broken = report.broken;
    let of = report.simulated.max(1);
    text.push_str(&format!(
        "broken: {} ({}): {} reset, {} sent to a dead backend, {} moved to another table or none\n",
        thousands(broken.all()),
        percent(broken.all() as f64 / of as f64),
        thousands(broken.reset),
        thousands(broken.dead),
        thousands(broken.moved),
    ));
    text
}

/// A simulated sequence, for people.
pub(super) fn sequence_text(report: &Report) -> String {
    let mut text = String::from("\nsimulated: ");
    text.push_str(&if report.flows > 0 { flows_text(report) } else { "\n".to_owned() });
    if report.flows > 0 {
        let head = ["step", "at", "live", "reset", "dead", "moved", "ended", "down"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for step in &report.steps {
            let broken = step.broken;
            let numbers =
                [step.live, broken.reset, broken.dead, broken.moved, step.ended, step.down];
            let mut row = vec![step.step.to_string(), format_duration(step.at)];
            row.extend(numbers.map(thousands));
            row.push(step.what.clone());
            rows.push(row);
        }
        text.push_str(&print::columns(&rows, &[0, 1, 2, 3, 4, 5, 6, 7]));
        text.push_str(&load_text(report));
    }
    if !report.followed.is_empty() {
        text.push_str("flows that were followed\n");
        let head = ["client", "VIP", "backend", "what became of it"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for flow in &report.followed {
            let end = match (flow.broken_by, flow.cause, flow.backend) {
                (Some(step), Some(cause), _) => format!("broken by step {step}: {cause:?}"),
                (.., None) => "no bind is for it".to_owned(),
                _ => "lives".to_owned(),
            };
            let backend = flow.backend.map_or("-".to_owned(), |backend| backend.to_string());
            rows.push(vec![flow.client.to_string(), flow.vip.to_string(), backend, end]);
        }
        text.push_str(&print::columns(&rows, &[]));
    }
    text
}

/// How evenly the load lay, over all steps.
fn load_text(report: &Report) -> String {
    let loads: Vec<&Load> = report.steps.iter().flat_map(|step| &step.load).collect();
    let head = ["load", "mean", "worst", "by chance", "deviation", "worst", "by chance"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let names: BTreeSet<&str> = loads.iter().map(|load| load.table.as_str()).collect();
    for name in names {
        let of = |what: &str, spread: &dyn Fn(&Load) -> simulate::Spread| {
            let all: Vec<simulate::Spread> =
                loads.iter().filter(|load| load.table == name).map(|load| spread(load)).collect();
            let column = |value: &dyn Fn(&simulate::Spread) -> f64| {
                let values = all.iter().map(value);
                let mean = values.clone().sum::<f64>() / all.len() as f64;
                (mean, values.fold(0.0, f64::max))
            };
            let (max, worst) = column(&|spread| spread.max);
            let (by_chance, _) = column(&|spread| spread.expected_max);
            let (deviation, worst_deviation) = column(&|spread| spread.deviation);
            let (deviation_by_chance, _) = column(&|spread| spread.expected_deviation);
            let values = [max, worst, by_chance, deviation, worst_deviation, deviation_by_chance];
            let mut row = vec![format!("{name}: {what}")];
            row.extend(values.iter().map(|value| format!("{value:.3}")));
            row
        };
        rows.push(of("rows", &|load| load.rows));
        rows.push(of("flows", &|load| load.flows));
    }
    format!(
        "the largest load of a backend, and the standard deviation; its fair share is 1\n{}",
        print::columns(&rows, &[1, 2, 3, 4, 5, 6])
    )
}

/// A made-up sequence, for people.
fn maintenance_text(report: &MaintenanceReport, every: u64) -> String {
    let flows = &report.report;
    let mut text = format!(
        "{} backends, rows of {} hops; {} steps, at least {} apart, over {}\n",
        report.backends,
        report.hops,
        thousands(flows.steps.len() as u64 - 1),
        format_duration(every),
        format_duration(flows.seconds)
    );
    text.push_str(&flows_text(flows));
    text.push_str(&format!(
        "by the operator's changes: {}; the operator {}\n",
        thousands(report.broken_by_operator),
        match report.careful {
            true => format!(
                "asked the plan before each, and waited {} times for {}",
                report.waits,
                format_duration(flows.lifetimes.longest as u64)
            ),
            false => "asked nobody".to_owned(),
        }
    ));
    let head = ["change", "times", "put off", "reset", "dead", "moved", "died with their machine"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for (kind, of) in &report.kinds {
        let broken = of.broken;
        let numbers = [of.times, of.put_off, broken.reset, broken.dead, broken.moved, of.ended];
        let mut row = vec![kind.name().to_owned()];
        row.extend(numbers.map(thousands));
        rows.push(row);
    }
    text.push_str(&print::columns(&rows, &[1, 2, 3, 4, 5, 6]));
    text.push_str(&load_text(flows));
    let mut worst: Vec<_> = flows.steps.iter().filter(|step| step.broken.all() > 0).collect();
    worst.sort_by_key(|step| std::cmp::Reverse(step.broken.all()));
    if !worst.is_empty() {
        text.push_str("the worst steps\n");
    }
    let rows: Vec<Vec<String>> = worst
        .iter()
        .take(SHOWN)
        .map(|step| {
            let share = percent(step.broken.all() as f64 / (step.live + step.broken.all()) as f64);
            vec![
                format!("step {}", step.step),
                format_duration(step.at),
                step.what.clone(),
                format!("{} broken of those that lived, {share}", thousands(step.broken.all())),
            ]
        })
        .collect();
    text.push_str(&print::columns(&rows, &[1]));
    text
}

/// A number with commas.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
