//! `bench failover`: measures the time from a backend's death to the active generation without it, by
//! kind of death.

use std::{thread, time::Duration};

use anyhow::ensure;
use clap::Args;
use glb_lab::{BackendFault, CheckedFleet, Plan, ProbeTiming};

use crate::harness::quantile;

/// Options of `bench failover`.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Time from one probe to the next, in milliseconds.
    #[arg(long, default_value_t = 1000)]
    interval: u64,
    /// Time that an answer may take, in milliseconds.
    #[arg(long, default_value_t = 500)]
    timeout: u64,
    /// Number of failures in a row that mark a backend unhealthy.
    #[arg(long, default_value_t = 2)]
    fall: u32,
    /// Number of deaths of each kind.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    ensure!(
        arguments.timeout < arguments.interval,
        "the timeout must be shorter than the interval"
    );
    let Arguments { interval, timeout, fall, rounds } = *arguments;
    let (interval, timeout) = (Duration::from_millis(interval), Duration::from_millis(timeout));
    let pace = ProbeTiming { interval, timeout, fall };
    let noticed = pace.noticed();
    let mut fleet =
        CheckedFleet::up(Plan::new("glb-bench-failover"), pace, "hold_down = \"0ms\"\n")?;
    println!(
        "from a death to the active generation, ms; a probe every {} ms, timeout {} ms, {fall} failures \
         mark a backend unhealthy; {} backends, {rounds} deaths of each kind",
        interval.as_millis(),
        timeout.as_millis(),
        fleet.servers.len(),
    );
    println!(
        "{:<22} {:>9} {:>9} {:>9} {:>9}   slowest beyond interval x fall",
        "", "written", "active", "quickest", "slowest"
    );
    let all = vec![true; fleet.servers.len()];
    let mut one_less = all.clone();
    one_less[0] = false;
    let mut worst = f64::MIN;
    for illness in BackendFault::ALL {
        let (mut written, mut in_force) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            // Each death at another point of the interval.
            thread::sleep(interval * round / rounds.max(1));
            let mark = fleet.mark()?;
            fleet.strike(0, illness)?;
            let took = fleet.in_force(&mark, &one_less)?;
            written.push(took.written.as_secs_f64() * 1e3);
            in_force.push(took.in_force.as_secs_f64() * 1e3);
            let mark = fleet.mark()?;
            fleet.heal(0, illness)?;
            fleet.in_force(&mark, &all)?;
        }
        let most = quantile(&mut in_force, 1.0);
        let beyond = most - noticed.as_secs_f64() * 1e3;
        worst = worst.max(beyond);
        println!(
            "{:<22} {:>9.0} {:>9.0} {:>9.0} {most:>9.0}   {beyond:+.0}",
            illness.to_string(),
            quantile(&mut written, 0.5),
            quantile(&mut in_force, 0.5),
            quantile(&mut in_force, 0.0),
        );
    }
    println!("the slowest took {worst:+.0} ms more than interval x fall");
    Ok(())
}
