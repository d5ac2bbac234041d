//! `glb-director status`

use std::{process::ExitCode, time::Duration};

use glb_host::exit_code;

use super::{AskArgs, Output};
use crate::{control::Command, probe_results::ProberState, status::Status};

/// How long the daemon may take to answer; a reload does not delay the answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn execute(args: &AskArgs) -> anyhow::Result<ExitCode> {
    let status: Status = args.connect()?.ask(&Command::Status, ANSWER_TIMEOUT)?;
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&status)?),
        Output::Table => print!("{}", text(&status)),
    }
    let well = status.problems.is_empty();
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::from(exit_code::PROBLEM) })
}

fn text(status: &Status) -> String {
    let mut lines = vec![(
        "daemon",
        format!(
            "{:?}, release {}, process {}, up {}",
            status.phase,
            status.release,
            status.pid,
            span(status.uptime_seconds)
        ),
    )];
    if let (Some(number), Some(age)) = (status.generation, status.generation_age_seconds) {
        lines.push(("generation", format!("{number}, in force for {}", span(age))));
    }
    for interface in &status.interfaces {
        let generation =
            interface.generation.map_or_else(|| "none".to_owned(), |number| number.to_string());
        let mode = interface.mode.as_deref().unwrap_or("not attached");
        lines.push(("interface", format!("{}, {mode}, generation {generation}", interface.name)));
    }
    let digests = [("membership", &status.membership_digest), ("order", &status.order_digest)];
    for (name, digest) in digests {
        if let Some(digest) = digest {
            lines.push((name, digest.chars().take(16).collect()));
        }
    }
    for one in &status.announce.announcements {
        let (state, prefixes, method) = (one.state_name(), one.prefixes.join(", "), &one.method);
        let reason =
            if one.reason.is_empty() { String::new() } else { format!(": {}", one.reason) };
        let text = format!("{} ({prefixes}) by {method}: {state}{reason}", one.name);
        lines.push(("announcement", text));
    }
    for one in &status.announce.announcements {
        for session in &one.sessions {
            let exports = match session.exports {
                Some(false) => ", does not export it",
                Some(true) | None => "",
            };
            let text = format!("{} for {}: {}{exports}", session.name, one.name, session.info);
            lines.push(("session", text));
        }
    }
    if let Some(drain) = &status.announce.drain {
        lines.push(("drain", format!("{}, for {}", drain.message, span(drain.seconds))));
    }
    let answering = status.probes.iter().filter(|one| one.is_answered()).count();
    let probes = match &status.prober {
        ProberState::Disabled => "disabled".to_owned(),
        ProberState::Paused => "paused while the director is drained".to_owned(),
        ProberState::Unavailable(why) => format!("unavailable: {why}"),
        ProberState::Running => format!("{answering} of {} answered", status.probes.len()),
    };
    lines.push(("probes", probes));
    let reloads = format!("{} succeeded, {} failed", status.reloads, status.failed_reloads);
    lines.push(("reloads", reloads));
    if let Some(last) = &status.last_reload {
        let how = if last.error.is_some() { "failed" } else { "succeeded" };
        let took = last.seconds * 1000.0;
        lines.push((
            "last reload",
            format!("{how}, {} ago, took {took:.0} ms", span(last.age_seconds)),
        ));
    }
    for problem in &status.problems {
        lines.push(("PROBLEM", format!("{}: {}", problem.name, problem.message)));
    }
    if status.problems.is_empty() {
        lines.push(("problems", "none".into()));
    }
    lines.into_iter().map(|(name, text)| format!("{name:<12} {text}\n")).collect()
}

/// Formats a time span with at most two units.
pub(super) fn span(seconds: f64) -> String {
    let whole = seconds as u64;
    let (days, hours, minutes) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60);
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{minutes} min {} s", whole % 60),
        3600..86_400 => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}
