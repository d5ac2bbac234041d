//! `glb-director table plan`

use std::{net::IpAddr, path::Path};

use anyhow::{anyhow, bail};
use clap::Args;
use glb_table::{
    flow_safety::{RiskReport, TableRisk},
    plan::{self, DEFAULT_FLOW_AGE, MaintenanceStep, Plan, Step, format_duration, parse_duration},
    simulate::Report,
};
use serde::Serialize;

use super::{
    print::{self, percent},
    simulate,
};
use crate::cli::Output;

#[derive(Args, Debug)]
pub(in crate::cli) struct Arguments {
    /// What is done, in order: table files as they come into force; `drained=ADDRESS,…` where
    /// backends are known to hold no flow any more; `wait=4h` where time passes, `wait` for as long
    /// as a flow lives. With --drain or --changes, the one table file to begin with.
    #[arg(required_unless_present = "backends", value_name = "STEP")]
    steps: Vec<String>,
    /// Print the steps of a safe rolling maintenance of these backends.
    #[arg(long, value_delimiter = ',', value_name = "BACKEND")]
    drain: Vec<IpAddr>,
    /// With --drain: how many are out at once; less than a row has hops.
    #[arg(long, default_value_t = 1, value_name = "N", requires = "drain", value_parser = clap::value_parser!(u16).range(1..=3))]
    at_once: u16,
    /// How long a flow lives at most: seconds, or a number with s, m, h or d.
    #[arg(long, default_value = "1d", value_name = "AGE", value_parser = age)]
    flow_age: u64,
    #[command(flatten)]
    simulate: simulate::Simulating,
}

pub(super) fn age(text: &str) -> Result<u64, String> {
    parse_duration(text).filter(|seconds| *seconds > 0).ok_or_else(|| {
        format!(
            "write seconds, or a number with s, m, h or d, for instance {}",
            format_duration(DEFAULT_FLOW_AGE)
        )
    })
}

pub(super) fn execute(arguments: &Arguments, output: Output) -> anyhow::Result<()> {
    if !arguments.drain.is_empty() {
        return drain(arguments, output);
    }
    if arguments.simulate.is_generated() {
        let file = match &arguments.steps[..] {
            [] => None,
            [file] => Some(print::load(Path::new(file), output)?),
            more => bail!("--changes begins with one table file; {} were given", more.len()),
        };
        return arguments.simulate.maintenance(file, arguments.flow_age, output);
    }
    let steps = arguments
        .steps
        .iter()
        .map(|text| step(text, output))
        .collect::<anyhow::Result<Vec<_>>>()?;
    if !steps.iter().any(|step| matches!(step, Step::Activate { .. })) {
        bail!("a plan needs a table file to begin with");
    }
    let plan = plan::evaluate(&steps, arguments.flow_age);
    let simulation = arguments.simulate.sequence(&steps, arguments.flow_age)?;
    match output {
        Output::Json => print::json(&Answer { plan: &plan, simulation: simulation.as_ref() })?,
        Output::Table => {
            let simulated = simulation.as_ref().map(simulate::sequence_text).unwrap_or_default();
            print::out(&(text(&plan) + &simulated))?;
        }
    }
    match plan.first_unsafe {
        None => Ok(()),
        Some(step) => bail!("step {step} ({}) is unsafe", arguments.steps[step - 1]),
    }
}

/// What is printed for programs.
#[derive(Serialize)]
struct Answer<'p> {
    #[serde(flatten)]
    plan: &'p Plan,
    #[serde(skip_serializing_if = "Option::is_none")]
    simulation: Option<&'p Report>,
}

fn step(text: &str, output: Output) -> anyhow::Result<Step> {
    if let Some(list) = text.strip_prefix("drained=") {
        let parse = |address: &str| {
            address.trim().parse().map_err(|_| {
                anyhow!("\"{address}\" in {text} is no address: drained=10.0.2.21,10.0.2.22")
            })
        };
        return Ok(Step::MarkDrained(list.split(',').map(parse).collect::<anyhow::Result<_>>()?));
    }
    if text == "wait" {
        return Ok(Step::Wait(None));
    }
    if let Some(time) = text.strip_prefix("wait=") {
        let seconds = parse_duration(time).ok_or_else(|| {
            anyhow!("\"{time}\" in {text} is no time: wait=90s, wait=15m, wait=4h")
        })?;
        return Ok(Step::Wait(Some(seconds)));
    }
    Ok(Step::Activate { name: text.to_owned(), set: print::load(Path::new(text), output)? })
}

fn drain(arguments: &Arguments, output: Output) -> anyhow::Result<()> {
    let [file] = &arguments.steps[..] else {
        bail!(
            "--drain plans from one table file, the one in force; {} were given",
            arguments.steps.len()
        );
    };
    let set = print::load(Path::new(file), output)?;
    let todo = plan::rolling_maintenance(
        &set,
        &arguments.drain,
        usize::from(arguments.at_once),
        arguments.flow_age,
    )
    .map_err(|error| anyhow!("{file}: {error}"))?;
    match output {
        Output::Json => print::json(&todo),
        Output::Table => print::out(&todo_text(file, &todo)),
    }
}

fn text(plan: &Plan) -> String {
    let mut text = String::new();
    let mut first = true;
    for judged in &plan.steps {
        text.push_str(&format!("step {}: {}\n", judged.step, judged.what));
        match &judged.judgement {
            Some(_) if first => {
                first = false;
                text.push_str("  in force from here on\n");
            }
            Some(judgement) => text.push_str(&judgement_text(judgement)),
            None => {}
        }
    }
    text.push_str(if plan.safe { "safe: no step can break an established flow\n" } else { "" });
    text
}

fn judgement_text(judgement: &RiskReport) -> String {
    let mut text = String::new();
    for table in &judgement.tables {
        text.push_str(&table_text(table));
    }
    text.push_str(if judgement.safe { "  safe\n" } else { "  UNSAFE\n" });
    text
}

fn table_text(table: &TableRisk) -> String {
    let mut text = String::new();
    let name = &table.table;
    if table.removed {
        return format!("  table \"{name}\" is gone: all its flows are lost\n");
    }
    if table.rows_at_risk > 0 {
        let share = percent(table.at_risk);
        text.push_str(&format!(
            "  table \"{name}\": up to {share} of flows could break, in {} rows\n",
            table.rows_at_risk
        ));
        for lost in table.lost.iter().take(5) {
            text.push_str(&format!(
                "    {} may hold flows in {} of them, and {}\n",
                lost.backend, lost.rows, lost.why
            ));
        }
        if table.lost.len() > 5 {
            text.push_str(&format!("    … and {} more backends\n", table.lost.len() - 5));
        }
    }
    for bind in &table.binds_lost {
        text.push_str(&format!(
            "  table \"{name}\": bind {bind} is no longer its own: its flows are lost\n"
        ));
    }
    if table.handshakes > 0.0 {
        let share = percent(table.handshakes);
        text.push_str(&format!(
            "  table \"{name}\": {share} of handshakes in flight may be tried again\n"
        ));
    }
    text
}

fn todo_text(file: &str, todo: &[MaintenanceStep]) -> String {
    let mut text = String::new();
    for todo in todo {
        text.push_str(&format!("{}. {}\n", todo.step, todo.what));
        for command in &todo.commands {
            text.push_str(&format!("     {}\n", command.replace(" FILE ", &format!(" {file} "))));
        }
        let handshakes = todo
            .judgement
            .iter()
            .flat_map(|judgement| &judgement.tables)
            .map(|table| table.handshakes);
        let most = handshakes.fold(0.0, f64::max);
        if most > 0.0 {
            text.push_str(&format!(
                "     safe; {} of handshakes in flight may be tried again\n",
                percent(most)
            ));
        }
    }
    text.push_str(
        "a director loads the changed file by itself; `glb-director reload` waits until it is in force\n",
    );
    text
}
