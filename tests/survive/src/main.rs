//! The survival suite: long-running real work during every known failure and maintenance event,
//! with a record of every connection. `./x survive` builds and runs this program.

mod accounting;
mod clients;
mod events;
mod monitor;
mod options;
mod random;
mod report;
mod rule;
mod run;
mod serve;
mod services;
mod tcp_info;
mod world;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use glb_lab::{AnnounceMethod, interrupt};

use crate::{
    options::{Form, Load},
    report::Report,
    run::RunConfig,
    world::Mode,
};

#[derive(Parser)]
#[command(
    name = "glb-survive",
    bin_name = "./x survive",
    about,
    args_conflicts_with_subcommands = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArguments,
}

#[derive(Subcommand)]
enum Command {
    /// The server of idle connections and long polls, which the suite runs on each backend.
    #[command(hide = true)]
    Serve {
        /// The backend's name.
        name: String,
        /// While this file exists, the health check passes.
        health: PathBuf,
    },
}

/// Runs every failure and maintenance event against a fleet under load, and records every
/// connection. Exit status 0 means that only connections broke that were allowed to.
#[derive(clap::Args)]
struct RunArguments {
    /// Run events for this many minutes. Without it, every event runs once.
    #[arg(long, value_name = "M")]
    minutes: Option<f64>,
    /// The seed of all random choices: the order of events, their targets, and the clients' timing.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Run only scenarios or events whose name contains this text.
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// The load: light connections with fleet events only, short transfers, or hundreds of
    /// megabytes.
    #[arg(long, default_value = "long")]
    form: Form,
    /// The number of directors.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(2..=10))]
    directors: u8,
    /// The announcement method of the directors: bird or tun.
    #[arg(long, value_enum, default_value = "bird")]
    method: AnnounceMethod,
    /// The number of backends in a row of the table.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=4))]
    hops: u8,
    /// Leave Glance out, for machines without it.
    #[arg(long)]
    without_glance: bool,
    /// Disable second chance: connections must break, and the suite must report them.
    #[arg(long, hide = true)]
    without_second_chance: bool,
    /// Run the same events against ECMP without directors, against backends without second chance,
    /// with two hops, and with four.
    #[arg(long)]
    compare: bool,
    /// Write docs/reliability.md from the reports of earlier runs, without a new run.
    #[arg(long)]
    page: bool,
    /// The folder of the reports, also read for the page.
    #[arg(long, default_value = "target/survive", value_name = "FOLDER")]
    reports: PathBuf,
    /// The lab's name. Labs with different names can run side by side.
    #[arg(long, default_value = "glb-survive")]
    name: String,
    /// List the scenarios and exit.
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Some(Command::Serve { name, health }) => serve::run(&name, &health).map(|()| true),
        None => run(&arguments.run),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(_) if interrupt::check().is_err() => {
            eprintln!("\ninterrupted; the lab and its processes were removed");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &RunArguments) -> Result<bool> {
    if arguments.list {
        events::ALL.iter().for_each(|scenario| println!("{}", scenario.name));
        return Ok(true);
    }
    if arguments.page {
        return page(&arguments.reports);
    }
    // The expected effect of a daemon's death is written for these methods only.
    if !matches!(arguments.method, AnnounceMethod::Bird | AnnounceMethod::Tun) {
        bail!(
            "--method: the suite supports `bird` and `tun`; `./x lab up` supports the others too"
        );
    }
    let load = Load::of(arguments.form);
    let load = if arguments.without_glance { load.without_glance() } else { load };
    let wanted = RunConfig {
        name: arguments.name.clone(),
        mode: if arguments.without_second_chance {
            Mode::NoSecondChance
        } else {
            Mode::Hops(arguments.hops)
        },
        load,
        seed: arguments.seed,
        backends: if arguments.form == Form::Fleet { 3 } else { 5 },
        directors: arguments.directors,
        method: arguments.method,
        limit_loss: arguments.form == Form::Fleet,
        time: arguments.minutes.map(|minutes| Duration::from_secs_f64(minutes * 60.0)),
        only: arguments.only.clone(),
        careful: true,
        scenarios: (arguments.form == Form::Fleet).then(|| events::FLEET.to_vec()),
    };
    if arguments.compare {
        return compare(arguments, &wanted);
    }
    let (report, connections) = run::run(&wanted)?;
    report.print();
    let form = arguments.form.name();
    let file = arguments.reports.join(format!("{form}-seed-{}.json", arguments.seed));
    report.write(&file)?;
    report::write_connections(&file.with_extension("connections.jsonl"), &connections)?;
    let bad = report.not_allowed().count();
    eprintln!(
        "\n{} connections, {} broken, {bad} of them not allowed to; {}",
        report.connections(),
        report.broken.len(),
        file.display()
    );
    if let Some(failure) = &report.failure {
        bail!("the run ended early: {failure}");
    }
    let excessive = report.excessive_loss().count();
    Ok(bad == 0 && excessive == 0)
}

/// Runs the same events against every mode.
fn compare(arguments: &RunArguments, wanted: &RunConfig) -> Result<bool> {
    let mut load = Load::of(Form::Short).without_glance();
    (load.idle, load.long_polls) = (64, 24);
    let modes = [Mode::Ecmp, Mode::NoSecondChance, Mode::Hops(2), Mode::Hops(4)];
    for (number, mode) in modes.into_iter().enumerate() {
        let wanted = RunConfig {
            mode,
            load: load.clone(),
            careful: false,
            scenarios: Some(events::COMPARED.to_vec()),
            ..wanted.clone()
        };
        let (report, _) = run::run(&wanted)?;
        report.print();
        if let Some(failure) = &report.failure {
            bail!("{} ended early: {failure}", mode.name());
        }
        report.write(&arguments.reports.join(format!("compare-{number}.json")))?;
    }
    Ok(true)
}

fn page(folder: &Path) -> Result<bool> {
    let (mut runs, mut compared) = (Vec::new(), Vec::new());
    let entries = fs::read_dir(folder)
        .with_context(|| format!("no reports in {}: run the suite first", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    for file in files {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if !name.ends_with(".json") {
            continue;
        }
        if name.starts_with("long-") {
            runs.push(Report::read(&file)?);
        } else if name.starts_with("compare-") {
            compared.push(Report::read(&file)?);
        }
    }
    if runs.is_empty() && compared.is_empty() {
        bail!("no report of a long run or a comparison in {}", folder.display());
    }
    println!("{}", report::write_page(Path::new("docs"), &runs, &compared)?.display());
    Ok(true)
}
