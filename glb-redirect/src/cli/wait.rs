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
    connections::{Ages, PIN, Survey, any_is_here, none_is_here, survey},
};

/// How often the kernel is asked.
const EVERY: Duration = Duration::from_millis(250);
/// Progress is told at least this often.
const TELL: Duration = Duration::from_secs(10);

pub(super) fn until_drained(
    file: &Path,
    timeout: Option<Duration>,
    quiet: Duration,
) -> anyhow::Result<ExitCode> {
    let config = Config::load(file)?;
    let mut ages = Ages::read(&config.pin.join(PIN));
    let start = Instant::now();
    let mut told: Option<(usize, Instant)> = None;
    let mut empty_since = None;
    let mut seen = false;
    loop {
        let survey = survey(&config.vips, &mut ages)?;
        let now = Instant::now();
        if survey.live == 0 {
            // Nothing is seen in another namespace than the service's, which is not drained by that.
            if !seen && !any_is_here(&config.vips) {
                return Err(anyhow::Error::msg(none_is_here(&config.vips)));
            }
            // A client between two attempts to connect looks like none for a moment.
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
            print_note(&format!("not drained after {after}: {}", left(&survey)));
            return Ok(ExitCode::from(exit_code::TIMED_OUT));
        }
        let tell = told.is_none_or(|(live, at)| {
            let pause = if live == survey.live { TELL } else { Duration::from_secs(1) };
            now - at >= pause
        });
        if tell {
            print_note(&left(&survey));
            told = Some((survey.live, now));
        }
        sleep(EVERY);
    }
}

fn left(survey: &Survey) -> String {
    let oldest = survey.oldest_seconds.map(|seconds| format!(", the oldest is {}", age(seconds)));
    let vips: Vec<String> = survey
        .vips
        .iter()
        .filter(|(_, of_vip)| of_vip.live > 0)
        .map(|(vip, of_vip)| format!("{vip}: {}", of_vip.live))
        .collect();
    let by_vip = if vips.is_empty() { String::new() } else { format!(" ({})", vips.join(", ")) };
    format!("{} live connections{by_vip}{}", survey.live, oldest.unwrap_or_default())
}
