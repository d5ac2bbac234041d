//! `bench method`: compares two estimates of a known cost.
//!
//! A program takes a number of equal steps, each of which depends on the one before. The true cost of
//! [`MORE`] steps is a sixteenth of the cost of sixteen times as many. That cost is about as large as
//! the floor of `bench packet`. Each estimate then has to find it.

use std::fmt::Write as _;

use clap::Args;

use crate::{
    harness::{Harness, Net, Workload, XDP_TX, quantile, rounds},
    packet,
};

/// Options of `bench method`.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Number of experiments; each gives one line of estimates.
    #[arg(long, default_value_t = 12)]
    times: usize,
    /// Rounds of each experiment.
    #[arg(long, default_value_t = 61)]
    rounds: usize,
    /// Packets in each run.
    #[arg(long, default_value_t = 100_000)]
    packets: u32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Steps that every program takes, so that the processor cannot overlap them with `rearm`.
const BASE: u32 = 60;
/// Steps whose cost is estimated.
const MORE: u32 = 10;
/// How many times [`MORE`] steps are measured for the true cost.
const FACTOR: u32 = 16;

#[derive(Debug, serde::Serialize)]
struct Estimates {
    true_ns: f64,
    net: Net,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let workload = Workload { name: "v4 64 B", length: 64, is_v6: false, flows: 1 };
    let mut harness = Harness::new(workload, packet::packet(workload), [0; 7])?;
    let chain = harness.own("chain")?;
    let steps = [BASE, BASE + MORE, BASE + FACTOR * MORE];
    let mut found = Vec::new();
    for _ in 0..arguments.times {
        let times = rounds(arguments.rounds, steps.len(), |index| {
            harness.set_steps(steps[index])?;
            harness.time(&chain, XDP_TX, arguments.packets)
        })?;
        // A cost sixteen times as large, so that noise weighs a sixteenth.
        let many = Net::of(&times[2], &times[0]);
        let true_ns = many.median_ns / f64::from(FACTOR);
        found.push(Estimates { true_ns, net: Net::of(&times[1], &times[0]) });
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&found)?);
    } else {
        print!("{}", show(&found));
    }
    Ok(())
}

fn show(found: &[Estimates]) -> String {
    let mut text =
        format!("{:>8} {:>22} {:>22}\n", "truth", "difference of p10s", "median of differences");
    let mut errors = [const { Vec::new() }; 2];
    for Estimates { true_ns, net } in found {
        let estimates = [net.p10_ns, net.median_ns];
        for (errors, estimate) in errors.iter_mut().zip(estimates) {
            errors.push(estimate / true_ns - 1.0);
        }
        let [a, b] = estimates;
        // Writing to a string does not fail.
        let _written = writeln!(text, "{true_ns:>8.2} {a:>22.2} {b:>22.2}");
    }
    let mut line = |name: &str, share| {
        let of = errors.each_mut().map(|errors| 100.0 * quantile(errors, share));
        let [a, b] = of.map(|percent| format!("{percent:+.1} %"));
        let _written = writeln!(text, "{name:>8} {a:>22} {b:>22}");
    };
    line("lowest", 0.0);
    line("median", 0.5);
    line("highest", 1.0);
    text
}
