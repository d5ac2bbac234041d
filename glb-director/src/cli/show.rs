//! `glb-director show`

use std::{process::ExitCode, time::Duration};

use clap::Subcommand;
use serde::{Serialize, de::DeserializeOwned};

use super::{AskArgs, Output, columns::columns};
use crate::{
    control::Command as Ask,
    probe_results::ProbeResult,
    views::{BackendView, BindView, GenerationView, TableView},
};

/// How long the daemon may take to answer; a reload does not delay the answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The number of rows of every table.
const ROWS: f64 = 65_536.0;

#[derive(Clone, Copy, Debug, Subcommand)]
pub(super) enum What {
    /// Tables in force, with sent and dropped packets
    Tables,
    /// Backends: state, health, share of new flows, next hop
    Backends,
    /// Binds: the addresses and ports of each table
    Binds,
    /// Pinned generations, and the interfaces they are attached to
    Generations,
}

pub(super) fn execute(args: &AskArgs, what: What) -> anyhow::Result<ExitCode> {
    match what {
        What::Tables => show(args, &Ask::Tables, tables),
        What::Backends => show(args, &Ask::Backends, backends),
        What::Binds => show(args, &Ask::Binds, binds),
        What::Generations => show(args, &Ask::Generations, generations),
    }
}

fn show<T: DeserializeOwned + Serialize>(
    args: &AskArgs,
    ask: &Ask,
    text: fn(&[T]) -> String,
) -> anyhow::Result<ExitCode> {
    let answer: Vec<T> = args.connect()?.ask(ask, ANSWER_TIMEOUT)?;
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&answer)?),
        Output::Table => print!("{}", text(&answer)),
    }
    Ok(ExitCode::SUCCESS)
}

fn tables(views: &[TableView]) -> String {
    let head = ["TABLE", "HOPS", "BINDS", "BACKENDS", "TAKING", "SENT", "DROPPED", "DIGEST"];
    let rows = views.iter().map(|view| {
        [
            view.name.clone(),
            view.hops.to_string(),
            view.binds.to_string(),
            view.backends.to_string(),
            view.taking_new.to_string(),
            view.sent.packets.to_string(),
            view.dropped.packets.to_string(),
            format!("{:.8}/{:.8}", view.membership_digest, view.order_digest),
        ]
    });
    columns(head, "<>>>>>><", rows)
}

fn backends(views: &[BackendView]) -> String {
    let head = ["TABLE", "BACKEND", "STATE", "HEALTH", "FIRST", "SENT", "PROBES", "NEXT HOP"];
    let rows = views.iter().map(|view| {
        let first = view.rows.first().copied().unwrap_or(0);
        let next_hop = match (&view.next_hop, &view.next_hop_error) {
            (Some(hop), _) => format!("{} {}", hop.interface, hop.mac),
            (None, Some(why)) => format!("NONE: {why}"),
            (None, None) => String::new(),
        };
        [
            view.table.clone(),
            view.address.to_string(),
            view.state.clone(),
            if view.healthy { "healthy".into() } else { "UNHEALTHY".into() },
            format!("{:.1} %", f64::from(first) * 100.0 / ROWS),
            view.sent.packets.to_string(),
            probes(&view.probes),
            next_hop,
        ]
    });
    columns(head, "<<<<>><<", rows)
}

/// The prober's results for a backend, in a few words.
fn probes(results: &[ProbeResult]) -> String {
    let worst = results.iter().max_by_key(|one| one.losses);
    let Some(worst) = worst else { return "-".to_owned() };
    if worst.losses > 0 {
        let every = results.iter().all(|one| one.losses > 0);
        let what = if every { "LOST".to_owned() } else { format!("LOST at {} bytes", worst.bytes) };
        return what;
    }
    if let Some(error) = results.iter().find_map(|one| one.error.as_ref()) {
        return format!("not sent: {error}");
    }
    let slowest = results.iter().filter_map(|one| one.milliseconds).fold(0.0, f64::max);
    format!("{slowest:.1} ms")
}

fn binds(views: &[BindView]) -> String {
    let rows = views.iter().map(|view| {
        let ports = if view.first_port == view.last_port {
            view.first_port.to_string()
        } else {
            format!("{}-{}", view.first_port, view.last_port)
        };
        [view.table.clone(), view.prefix.clone(), view.proto.clone(), ports]
    });
    columns(["TABLE", "ADDRESS", "PROTO", "PORTS"], "<<<<", rows)
}

fn generations(views: &[GenerationView]) -> String {
    let rows = views.iter().map(|view| {
        let since = view.age_seconds.map(|age| format!("for {}", super::status::span(age)));
        [
            view.number.to_string(),
            since.unwrap_or_else(|| "kept".into()),
            view.interfaces.join(","),
            view.membership_digest
                .as_ref()
                .map_or_else(String::new, |digest| format!("{digest:.16}")),
        ]
    });
    columns(["GENERATION", "IN FORCE", "INTERFACES", "MEMBERSHIP"], "><<<", rows)
}
