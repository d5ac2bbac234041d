//! `glb-redirect connections`

use std::{
    io::{self, Write as _},
    path::Path,
    thread::sleep,
    time::Duration,
};

use glb_host::packet_trace::print_note;

use super::Output;
use crate::{
    config::Config,
    connections::{
        ConnectionAges, ConnectionReport, PIN, VipConnections, any_vip_is_local,
        no_local_vip_message, report,
    },
};

pub(super) fn execute(
    file: &Path,
    watch: bool,
    interval: Duration,
    output: Output,
) -> anyhow::Result<()> {
    let config = Config::load(file)?;
    let mut ages = ConnectionAges::read(&config.bpffs_dir.join(PIN));
    let mut out = io::stdout().lock();
    let mut has_warned = false;
    loop {
        let report = report(&config.vips, &mut ages)?;
        if !has_warned && report.live == 0 && !any_vip_is_local(&config.vips) {
            has_warned = true;
            print_note(&format!("note: {}", no_local_vip_message(&config.vips)));
        }
        let written = match output {
            Output::Table => out.write_all(table(&report).as_bytes()),
            // A line for each report, so that a reader of the stream can split it.
            Output::Json if watch => writeln!(out, "{}", serde_json::to_string(&report)?),
            Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&report)?),
        };
        match written.and_then(|()| out.flush()) {
            // The reader of the pipe has ended.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            other => other?,
        }
        if !watch {
            return Ok(());
        }
        sleep(interval);
        if matches!(output, Output::Table) {
            writeln!(out)?;
        }
    }
}

fn table(report: &ConnectionReport) -> String {
    let mut rows = vec![["VIP", "live", "oldest", "time-wait", "by state"].map(str::to_owned)];
    for (vip, connections) in &report.vips {
        rows.push([
            vip.to_string(),
            connections.live.to_string(),
            connections.oldest_seconds.map_or_else(|| "-".to_owned(), age),
            connections.time_wait.to_string(),
            states(connections),
        ]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let (a, b, c, d) = (width(0), width(1), width(2), width(3));
    rows.iter()
        .map(|[vip, live, oldest, over, states]| {
            let line = format!("{vip:<a$}  {live:>b$}  {oldest:>c$}  {over:>d$}  {states}");
            format!("{}\n", line.trim_end())
        })
        .collect()
}

fn states(connections: &VipConnections) -> String {
    let states = connections.states.iter().map(|(state, count)| format!("{count} {state}"));
    states.collect::<Vec<_>>().join(", ")
}

/// A span of time for people: two units at most.
pub(super) fn age(seconds: f64) -> String {
    let whole = seconds as u64;
    match (whole / 86_400, whole / 3_600 % 24, whole / 60 % 60, whole % 60) {
        (0, 0, 0, seconds) => format!("{seconds}s"),
        (0, 0, minutes, seconds) => format!("{minutes}m{seconds:02}s"),
        (0, hours, minutes, _) => format!("{hours}h{minutes:02}m"),
        (days, hours, ..) => format!("{days}d{hours:02}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn age_shows_the_two_largest_units() {
        for (seconds, text) in
            [(0.9, "0s"), (59.0, "59s"), (61.0, "1m01s"), (3_660.0, "1h01m"), (90_000.0, "1d01h")]
        {
            assert_eq!(age(seconds), text);
        }
    }
}
