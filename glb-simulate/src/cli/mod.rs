//! The command line of `glb-simulate`.

mod flow_list;
mod progress;
mod report;

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use glb_host::{
    cli_main::{LogArgs, LogSettings},
    duration, exit_code,
};
use glb_table::{
    TableSet,
    plan::{self, Plan, Step, StepArgument, format_duration},
};
use progress::ProgressLine;
use serde::Serialize;

use crate::{Lifetimes, Maintenance, Report, Workload, generated_fleet, sequence};

/// Number of flows alive at one moment, unless given.
const DEFAULT_FLOWS: u64 = 100_000;

/// Simulates flows over changes of forwarding tables, and counts the flows that break.
///
/// Reads table files only: needs no root and no running director. The same options and --seed give
/// the same result on every machine.
#[derive(Debug, Parser)]
#[command(name = "glb-simulate", version, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    log: LogArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Simulate a given sequence of tables.
    ///
    /// Also prints what `glb-director table plan` says about each step. Exits with 0 if the plan is
    /// safe, with 6 if a step is unsafe.
    ///
    ///   glb-simulate sequence now.toml step1.toml wait=1h step2.toml
    ///   glb-simulate sequence --flows flows.txt now.toml next.toml
    #[command(verbatim_doc_comment)]
    Sequence(SequenceArgs),
    /// Simulate the maintenance of a fleet over months: drains, removals, additions, new weights,
    /// failures and recoveries, at random.
    ///
    /// The operator asks the plan before each change and defers unsafe ones, unless --ignore-plan is
    /// given. Exits with 0 if the operator's changes broke no flow, else with 6.
    ///
    ///   glb-simulate maintenance --changes 1000 --backends 200 --hops 3
    ///   glb-simulate maintenance --changes 1000 now.toml
    #[command(verbatim_doc_comment)]
    Maintenance(MaintenanceArgs),
}

#[derive(Args, Debug)]
struct SequenceArgs {
    /// The steps in order: table files as they come into force, `mark-drained=ADDRESS,…` for backends
    /// that hold no flows any more, `wait=4h` for time that passes, `wait` for one --flow-age.
    #[arg(required = true, value_name = "STEP")]
    steps: Vec<String>,
    /// Trace these flows: a file with one `CLIENT:PORT VIP:PORT[/udp] [STEP]` per line, as `ss -tn`
    /// lists them. A flow begins after the given step (the first by default) and lives until the end.
    /// Without --concurrent, only these flows are simulated.
    #[arg(long, value_name = "FILE")]
    flows: Option<PathBuf>,
    #[command(flatten)]
    workload: WorkloadArgs,
}

#[derive(Args, Debug)]
struct MaintenanceArgs {
    /// The table file to start from.
    #[arg(required_unless_present = "backends")]
    table: Option<PathBuf>,
    /// Number of changes, each --step-interval or more after the previous one.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    changes: u32,
    /// The operator does not ask the plan, and removes backends that are not drained.
    #[arg(long)]
    ignore_plan: bool,
    /// Start from a generated table with this number of backends instead of a file.
    #[arg(long, value_name = "N", conflicts_with = "table",
          value_parser = clap::value_parser!(u16).range(4..=10_000))]
    backends: Option<u16>,
    /// With --backends: number of hops of a row.
    #[arg(long, value_name = "N", requires = "backends", default_value_t = 2,
          value_parser = clap::value_parser!(u8).range(2..=4))]
    hops: u8,
    #[command(flatten)]
    workload: WorkloadArgs,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Workload")]
struct WorkloadArgs {
    /// Number of random flows that are alive at one moment [default: 100000].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    concurrent: Option<u64>,
    /// Seed of the random numbers.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Time between two changes, in addition to the waits among the steps.
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = duration::parse_positive)]
    step_interval: Duration,
    /// Shortest lifetime of a flow. Lifetimes follow a Pareto distribution between this and
    /// --flow-age.
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = duration::parse_positive)]
    min_lifetime: Duration,
    /// Longest lifetime of a flow.
    #[arg(long, value_name = "DURATION", default_value = "1d", value_parser = duration::parse_positive)]
    flow_age: Duration,
    /// Shape of the Pareto distribution: a flow that has lived for a time t lives on to 2t with
    /// probability 2^-ALPHA.
    #[arg(long, value_name = "ALPHA", default_value_t = 1.0, value_parser = pareto_alpha)]
    pareto_alpha: f64,
    /// The form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

fn pareto_alpha(text: &str) -> Result<f64, String> {
    let alpha = text.parse().ok().filter(|alpha| (0.1..=10.0).contains(alpha));
    alpha.ok_or_else(|| "give a number from 0.1 to 10".to_owned())
}

/// The output of `sequence` for programs.
#[derive(Serialize)]
struct SequenceReport<'p> {
    #[serde(flatten)]
    plan: &'p Plan,
    simulation: &'p Report,
}

impl Cli {
    /// How the log is to be written.
    #[must_use]
    pub fn log(&self) -> LogSettings {
        self.log.log()
    }

    /// Runs the command.
    ///
    /// # Errors
    /// When a table cannot be read or an argument is wrong.
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Sequence(arguments) => run_sequence(&arguments),
            Command::Maintenance(arguments) => run_maintenance(&arguments),
        }
    }
}

impl WorkloadArgs {
    fn flow_age(&self) -> u64 {
        self.flow_age.as_secs()
    }

    fn workload(&self, flows: u64) -> anyhow::Result<Workload> {
        if self.min_lifetime >= self.flow_age {
            bail!(
                "--min-lifetime {} is not below --flow-age {}",
                duration::format(self.min_lifetime),
                duration::format(self.flow_age)
            );
        }
        let (min, max) = (self.min_lifetime.as_secs_f64(), self.flow_age.as_secs_f64());
        let lifetimes = Lifetimes { min, max, pareto_alpha: self.pareto_alpha };
        let step_interval = self.step_interval.as_secs().max(1);
        Ok(Workload { flows, lifetimes, step_interval, seed: self.seed })
    }
}

fn run_sequence(arguments: &SequenceArgs) -> anyhow::Result<ExitCode> {
    let options = &arguments.workload;
    let steps = arguments
        .steps
        .iter()
        .map(|text| parse_step(text).with_context(|| format!("step \"{text}\"")))
        .collect::<anyhow::Result<Vec<_>>>()?;
    if !steps.iter().any(|step| matches!(step, Step::Activate { .. })) {
        bail!("the sequence has no table file: the first step is the table in force");
    }
    let traced = match &arguments.flows {
        Some(file) => flow_list::read(file, steps.len())?,
        None => Vec::new(),
    };
    let default = if arguments.flows.is_some() { 0 } else { DEFAULT_FLOWS };
    let workload = options.workload(options.concurrent.unwrap_or(default))?;
    let plan = plan::evaluate(&steps, options.flow_age());
    let mut progress = ProgressLine::new();
    let simulation = sequence(&steps, &traced, &workload, &mut |done| progress.show(done));
    drop(progress);
    match options.output {
        Output::Json => print_json(&SequenceReport { plan: &plan, simulation: &simulation })?,
        Output::Table => print(&report::sequence_text(&plan, &simulation))?,
    }
    Ok(match plan.first_unsafe {
        None => ExitCode::SUCCESS,
        Some(step) => {
            let name = &arguments.steps[step - 1];
            exit_unsafe(&format!(
                "step {step} ({name}) is unsafe: it could break established flows"
            ))
        }
    })
}

fn run_maintenance(arguments: &MaintenanceArgs) -> anyhow::Result<ExitCode> {
    let options = &arguments.workload;
    let set = match (&arguments.table, arguments.backends) {
        (Some(file), _) => load(file)?,
        (None, backends) => generated_fleet(backends.unwrap_or_default(), arguments.hops),
    };
    let workload = options.workload(options.concurrent.unwrap_or(DEFAULT_FLOWS))?;
    let maintenance =
        Maintenance { changes: arguments.changes as usize, follows_plan: !arguments.ignore_plan };
    let mut progress = ProgressLine::new();
    let result = maintenance.run(&set, &workload, &mut |done| progress.show(done));
    drop(progress);
    match options.output {
        Output::Json => print_json(&result)?,
        Output::Table => print(&report::maintenance_text(&result, workload.step_interval))?,
    }
    Ok(match result.broken_by_operator {
        0 => ExitCode::SUCCESS,
        broken => exit_unsafe(&format!("the operator's changes broke {broken} flows")),
    })
}

fn parse_step(text: &str) -> anyhow::Result<Step> {
    Ok(match StepArgument::parse(text)? {
        StepArgument::MarkDrained(backends) => Step::MarkDrained(backends),
        StepArgument::Wait(None) => Step::Wait(None),
        StepArgument::Wait(Some(time)) => Step::Wait(Some(duration::parse(time)?.as_secs())),
        StepArgument::TableFile(file) => Step::Activate { name: text.to_owned(), set: load(file)? },
    })
}

fn load(file: &Path) -> anyhow::Result<TableSet> {
    glb_table::load(file).map_err(|error| anyhow!("{}", error.render(false).trim_end()))
}

fn exit_unsafe(message: &str) -> ExitCode {
    drop(writeln!(io::stderr(), "error: {message}"));
    ExitCode::from(exit_code::UNSAFE)
}

/// Prints to standard output; a closed pipe is not an error.
fn print(text: &str) -> anyhow::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&(serde_json::to_string_pretty(value)? + "\n"))
}

/// Formats seconds; used by all reports.
fn seconds(seconds: f64) -> String {
    format_duration(seconds as u64)
}
