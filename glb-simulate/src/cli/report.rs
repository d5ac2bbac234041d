//! Formats results for people.

use std::collections::BTreeSet;

use glb_table::{
    plan::{Plan, format_duration},
    text::{columns, percent},
};

use super::seconds;
use crate::{Lifetimes, Load, MaintenanceReport, Report, Spread};

/// Number of worst steps that are shown; the JSON output has all steps.
const WORST_STEPS: usize = 10;

/// Describes the workload and the broken flows.
fn flows_text(report: &Report) -> String {
    let Lifetimes { min, max, pareto_alpha } = report.lifetimes;
    let mut text = format!(
        "{} concurrent flows, lifetimes from {} to {} (Pareto, alpha {pareto_alpha}, mean {:.1}s); \
         {} flows in total, {} of them alive at a change; seed {}\n",
        thousands(report.flows),
        seconds(min),
        seconds(max),
        report.mean_lifetime,
        thousands(report.flows_in_total),
        thousands(report.simulated),
        report.seed,
    );
    let broken = report.broken;
    let of = report.simulated.max(1);
    text.push_str(&format!(
        "broken: {} ({}): {} reset, {} sent to a dead hop, {} moved to another table or none\n",
        thousands(broken.all()),
        percent(broken.all() as f64 / of as f64),
        thousands(broken.reset),
        thousands(broken.dead_hop),
        thousands(broken.moved),
    ));
    text
}

/// Formats a simulated sequence, with the plan's verdicts.
pub(super) fn sequence_text(plan: &Plan, report: &Report) -> String {
    let mut text = String::new();
    for step in &plan.steps {
        let verdict = match &step.risk {
            Some(risk) if !risk.safe => "unsafe",
            Some(_) => "safe",
            None => "-",
        };
        text.push_str(&format!("step {}: {} ({verdict})\n", step.step, step.what));
    }
    text.push_str(if plan.safe { "safe: no step can break an established flow\n" } else { "" });
    text.push_str("\nsimulated: ");
    text.push_str(&if report.flows > 0 { flows_text(report) } else { "\n".to_owned() });
    if report.flows > 0 {
        let head = ["step", "at", "live", "reset", "dead hop", "moved", "ended", "down", ""];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for step in &report.steps {
            let broken = step.broken;
            let numbers =
                [step.live, broken.reset, broken.dead_hop, broken.moved, step.ended, step.down];
            let mut row = vec![step.step.to_string(), format_duration(step.at)];
            row.extend(numbers.map(thousands));
            row.push(step.what.clone());
            rows.push(row);
        }
        text.push_str(&columns(&rows, &[0, 1, 2, 3, 4, 5, 6, 7]));
        text.push_str(&load_text(report));
    }
    if !report.traced.is_empty() {
        text.push_str("traced flows\n");
        let head = ["client", "VIP", "backend", "result"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for flow in &report.traced {
            let result = match (flow.broken_by, flow.cause, flow.backend) {
                (Some(step), Some(cause), _) => format!("broken by step {step}: {}", cause.name()),
                (.., None) => "no bind matches".to_owned(),
                _ => "lives".to_owned(),
            };
            let backend = flow.backend.map_or("-".to_owned(), |backend| backend.to_string());
            rows.push(vec![flow.client.to_string(), flow.vip.to_string(), backend, result]);
        }
        text.push_str(&columns(&rows, &[]));
    }
    text
}

/// Formats the spread of the load over all steps.
fn load_text(report: &Report) -> String {
    let loads: Vec<&Load> = report.steps.iter().flat_map(|step| &step.load).collect();
    let head = ["load", "max: mean", "worst", "hashing", "deviation: mean", "worst", "hashing"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let names: BTreeSet<&str> = loads.iter().map(|load| load.table.as_str()).collect();
    for name in names {
        let of = |what: &str, spread: &dyn Fn(&Load) -> Spread| {
            let all: Vec<Spread> =
                loads.iter().filter(|load| load.table == name).map(|load| spread(load)).collect();
            let column = |value: &dyn Fn(&Spread) -> f64| {
                let values = all.iter().map(value);
                let mean = values.clone().sum::<f64>() / all.len() as f64;
                (mean, values.fold(0.0, f64::max))
            };
            let (max, worst) = column(&|spread| spread.max);
            let (by_hashing, _) = column(&|spread| spread.expected_max);
            let (deviation, worst_deviation) = column(&|spread| spread.deviation);
            let (deviation_by_hashing, _) = column(&|spread| spread.expected_deviation);
            let values = [max, worst, by_hashing, deviation, worst_deviation, deviation_by_hashing];
            let mut row = vec![format!("{name}: {what}")];
            row.extend(values.iter().map(|value| format!("{value:.3}")));
            row
        };
        rows.push(of("rows", &|load| load.rows));
        rows.push(of("flows", &|load| load.flows));
    }
    format!(
        "the largest load of a backend and the standard deviation, in units of the fair share; \"hashing\" \
         is what hashing alone gives\n{}",
        columns(&rows, &[1, 2, 3, 4, 5, 6])
    )
}

/// Formats a simulated maintenance.
pub(super) fn maintenance_text(report: &MaintenanceReport, step_interval: u64) -> String {
    let flows = &report.report;
    let mut text = format!(
        "{} backends, rows of {} hops; {} changes, at least {} apart, over {}\n",
        report.backends,
        report.hops,
        thousands(flows.steps.len() as u64 - 1),
        format_duration(step_interval),
        format_duration(flows.seconds)
    );
    text.push_str(&flows_text(flows));
    text.push_str(&format!(
        "broken by the operator's changes: {}; the operator {}\n",
        thousands(report.broken_by_operator),
        match report.follows_plan {
            true => format!(
                "asked the plan before each change, and waited {} times for {}",
                report.waits,
                seconds(flows.lifetimes.max)
            ),
            false => "ignored the plan".to_owned(),
        }
    ));
    let head =
        ["change", "times", "deferred", "reset", "dead hop", "moved", "died with their backend"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for (kind, of) in &report.kinds {
        let broken = of.broken;
        let numbers =
            [of.times, of.deferred, broken.reset, broken.dead_hop, broken.moved, of.ended];
        let mut row = vec![kind.name().to_owned()];
        row.extend(numbers.map(thousands));
        rows.push(row);
    }
    text.push_str(&columns(&rows, &[1, 2, 3, 4, 5, 6]));
    text.push_str(&load_text(flows));
    let mut worst: Vec<_> = flows.steps.iter().filter(|step| step.broken.all() > 0).collect();
    worst.sort_by_key(|step| std::cmp::Reverse(step.broken.all()));
    if !worst.is_empty() {
        text.push_str("the worst steps\n");
    }
    let rows: Vec<Vec<String>> = worst
        .iter()
        .take(WORST_STEPS)
        .map(|step| {
            let share = percent(step.broken.all() as f64 / (step.live + step.broken.all()) as f64);
            vec![
                format!("step {}", step.step),
                format_duration(step.at),
                step.what.clone(),
                format!("{} flows broken, {share} of the live ones", thousands(step.broken.all())),
            ]
        })
        .collect();
    text.push_str(&columns(&rows, &[1]));
    text
}

/// Formats a number with thousands separators.
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
