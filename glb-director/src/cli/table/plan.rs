//! `glb-director table plan`

use std::{net::IpAddr, path::Path, process::ExitCode, time::Duration};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use glb_host::{duration, exit_code};
use glb_table::{
    flow_safety::{RiskReport, TableRisk},
    plan::{self, MaintenanceStep, Plan, Step, StepArgument},
    text::percent,
};

use super::print;
use crate::cli::Output;

#[derive(Args, Debug)]
pub(in crate::cli) struct Arguments {
    /// The steps in order: table files as they come into force, `mark-drained=ADDRESS,…` for backends
    /// that hold no flows any more, `wait=4h` for time that passes, `wait` for one --flow-age. With
    /// --drain: the table file in force.
    #[arg(required = true, value_name = "STEP")]
    steps: Vec<String>,
    /// Print the steps of a safe rolling maintenance of these backends.
    #[arg(long, value_delimiter = ',', value_name = "BACKEND")]
    drain: Vec<IpAddr>,
    /// With --drain: number of backends that are out of service at once, less than a row has hops.
    #[arg(long, default_value_t = 1, value_name = "N", requires = "drain", value_parser = clap::value_parser!(u16).range(1..=3))]
    max_unavailable: u16,
    /// Longest lifetime of a flow.
    #[arg(long, default_value = "1d", value_name = "DURATION", value_parser = duration::parse_positive)]
    flow_age: Duration,
}

pub(super) fn execute(arguments: &Arguments, output: Output) -> anyhow::Result<ExitCode> {
    if !arguments.drain.is_empty() {
        return drain(arguments, output);
    }
    let steps = arguments
        .steps
        .iter()
        .map(|text| step(text, output))
        .collect::<anyhow::Result<Vec<_>>>()?;
    if !steps.iter().any(|step| matches!(step, Step::Activate { .. })) {
        bail!("the plan has no table file: the first step is the table in force");
    }
    let plan = plan::evaluate(&steps, arguments.flow_age.as_secs());
    match output {
        Output::Json => print::json(&plan)?,
        Output::Table => print::out(&text(&plan))?,
    }
    Ok(match plan.first_unsafe {
        None => ExitCode::SUCCESS,
        Some(step) => {
            let name = &arguments.steps[step - 1];
            let message =
                format!("step {step} ({name}) is unsafe: it could break established flows");
            print::exit_with(exit_code::UNSAFE, &message)
        }
    })
}

fn step(text: &str, output: Output) -> anyhow::Result<Step> {
    Ok(match StepArgument::parse(text)? {
        StepArgument::MarkDrained(backends) => Step::MarkDrained(backends),
        StepArgument::Wait(None) => Step::Wait(None),
        StepArgument::Wait(Some(time)) => {
            let time = duration::parse(time).with_context(|| format!("step \"{text}\""))?;
            Step::Wait(Some(time.as_secs()))
        }
        StepArgument::TableFile(file) => {
            Step::Activate { name: text.to_owned(), set: print::load(file, output)? }
        }
    })
}

fn drain(arguments: &Arguments, output: Output) -> anyhow::Result<ExitCode> {
    let [file] = &arguments.steps[..] else {
        bail!(
            "--drain takes one table file, the one in force; {} were given",
            arguments.steps.len()
        );
    };
    let set = print::load(Path::new(file), output)?;
    let steps = plan::rolling_maintenance(
        &set,
        &arguments.drain,
        usize::from(arguments.max_unavailable),
        arguments.flow_age.as_secs(),
    )
    .map_err(|error| anyhow!("{file}: {error}"))?;
    match output {
        Output::Json => print::json(&steps)?,
        Output::Table => print::out(&maintenance_text(file, &steps))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn text(plan: &Plan) -> String {
    let mut text = String::new();
    let mut first = true;
    for step in &plan.steps {
        text.push_str(&format!("step {}: {}\n", step.step, step.what));
        match &step.risk {
            Some(_) if first => {
                first = false;
                text.push_str("  taken as the table in force\n");
            }
            Some(risk) => text.push_str(&risk_text(risk)),
            None => {}
        }
    }
    text.push_str(if plan.safe { "safe: no step can break an established flow\n" } else { "" });
    text
}

fn risk_text(risk: &RiskReport) -> String {
    let mut text = String::new();
    for table in &risk.tables {
        text.push_str(&table_text(table));
    }
    text.push_str(if risk.safe { "  safe\n" } else { "  UNSAFE\n" });
    text
}

fn table_text(table: &TableRisk) -> String {
    let mut text = String::new();
    let name = &table.table;
    if table.removed {
        return format!("  table \"{name}\" is removed: all its flows break\n");
    }
    if table.rows_at_risk > 0 {
        let share = percent(table.at_risk);
        text.push_str(&format!(
            "  table \"{name}\": up to {share} of flows could break, in {} rows\n",
            table.rows_at_risk
        ));
        for lost in table.lost.iter().take(5) {
            text.push_str(&format!(
                "    {} may hold flows in {} of these rows, and {}\n",
                lost.backend, lost.rows, lost.reason
            ));
        }
        if table.lost.len() > 5 {
            text.push_str(&format!("    … and {} more backends\n", table.lost.len() - 5));
        }
    }
    for bind in &table.binds_lost {
        text.push_str(&format!("  table \"{name}\": bind {bind} is removed: its flows break\n"));
    }
    if table.handshakes > 0.0 {
        let share = percent(table.handshakes);
        text.push_str(&format!(
            "  table \"{name}\": {share} of the handshakes in flight may have to be retried\n"
        ));
    }
    text
}

fn maintenance_text(file: &str, steps: &[MaintenanceStep]) -> String {
    let mut text = String::new();
    for step in steps {
        text.push_str(&format!("{}. {}\n", step.step, step.what));
        for command in &step.commands {
            text.push_str(&format!("     {}\n", command.replace(" FILE ", &format!(" {file} "))));
        }
        let handshakes =
            step.risk.iter().flat_map(|risk| &risk.tables).map(|table| table.handshakes);
        let most = handshakes.fold(0.0, f64::max);
        if most > 0.0 {
            text.push_str(&format!(
                "     safe; {} of the handshakes in flight may have to be retried\n",
                percent(most)
            ));
        }
    }
    text.push_str(
        "The director loads a changed file automatically; `glb-director reload` waits until it is in force.\n",
    );
    text
}
