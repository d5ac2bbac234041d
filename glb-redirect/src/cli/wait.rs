//! `glb-redirect wait`

use std::{
    path::Path,
    process::ExitCode,
    thread::sleep,
    time::{Duration, Instant},
};

use glb_host::{exit_code, packet_trace::print_note};

use super::connections::age;
use crate::{
    config::Config,
    connections::{
        ConnectionAges, ConnectionReport, PIN, any_vip_is_local, no_local_vip_message, report,
    },
};

/// Time between two listings of the sockets.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Time between two progress messages while the number of connections does not change.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

pub(super) fn until_drained(
    file: &Path,
    timeout: Option<Duration>,
    quiet: Duration,
) -> anyhow::Result<ExitCode> {
    let config = Config::load(file)?;
    let mut ages = ConnectionAges::read(&config.bpffs_dir.join(PIN));
    let start = Instant::now();
    let mut told: Option<(usize, Instant)> = None;
    let mut empty_since = None;
    let mut seen = false;
    loop {
        let report = report(&config.vips, &mut ages)?;
        let now = Instant::now();
        if report.live == 0 {
            // In another network namespace than the service's, no connection is visible.
            if !seen && !any_vip_is_local(&config.vips) {
                return Err(anyhow::Error::msg(no_local_vip_message(&config.vips)));
            }
            // A client that retries its SYN has no socket here for a moment.
            let since = *empty_since.get_or_insert(now);
            if now - since >= quiet {
                let after = age((now - start).as_secs_f64());
                super::print(&format!("drained: no live connection after {after}"))?;
                return Ok(ExitCode::SUCCESS);
            }
        } else {
            (seen, empty_since) = (true, None);
        }
        if timeout.is_some_and(|timeout| now - start >= timeout) {
            let after = age((now - start).as_secs_f64());
            print_note(&format!("not drained after {after}: {}", connections_left(&report)));
            return Ok(ExitCode::from(exit_code::TIMED_OUT));
        }
        let tell = told.is_none_or(|(live, at)| {
            let pause =
                if live == report.live { PROGRESS_INTERVAL } else { Duration::from_secs(1) };
            now - at >= pause
        });
        if tell {
            print_note(&connections_left(&report));
            told = Some((report.live, now));
        }
        sleep(POLL_INTERVAL);
    }
}

fn connections_left(report: &ConnectionReport) -> String {
    let oldest = report.oldest_seconds.map(|seconds| format!(", the oldest is {}", age(seconds)));
    let vips: Vec<String> = report
        .vips
        .iter()
        .filter(|(_, connections)| connections.live > 0)
        .map(|(vip, connections)| format!("{vip}: {}", connections.live))
        .collect();
    let by_vip = if vips.is_empty() { String::new() } else { format!(" ({})", vips.join(", ")) };
    format!("{} live connections{by_vip}{}", report.live, oldest.unwrap_or_default())
}
