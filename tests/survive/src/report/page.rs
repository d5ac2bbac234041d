//! The page `docs/reliability.md`.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{EventSummary, KindReport, Report, by_name, chart};

/// Writes the page and its chart from runs of the suite and from a comparison.
///
/// # Errors
/// When a file cannot be written.
pub(crate) fn write_page(docs: &Path, runs: &[Report], compared: &[Report]) -> Result<PathBuf> {
    let page = docs.join("reliability.md");
    let text = page_text(runs, compared)?;
    fs::write(&page, text).with_context(|| format!("cannot write {}", page.display()))?;
    if !compared.is_empty() {
        let file = docs.join(CHART);
        fs::write(&file, chart::svg(compared)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(page)
}

/// The chart's file name, next to the page.
const CHART: &str = "reliability.svg";

fn page_text(runs: &[Report], compared: &[Report]) -> Result<String> {
    let mut to = String::new();
    to += INTRODUCTION;
    if !runs.is_empty() {
        results(&mut to, runs)?;
    }
    if !compared.is_empty() {
        comparison(&mut to, compared)?;
    }
    to += METHOD;
    Ok(to)
}

const INTRODUCTION: &str = "\
# What breaks, and what does not

<!-- Written by `./x survive --page`: change tests/survive/src/report/page.rs instead. -->

`./x survive` runs every known failure and maintenance event against a fleet under load: two directors,
five backends, real git, real OpenStack Glance, idle connections, long polls and short requests, over
IPv4 and IPv6. Each connection has a record with its verdict: verified, or broken at a certain time by a
certain event. The damage that an event may do is fixed before the event begins. One more broken
connection fails the run.

";

fn results(to: &mut String, runs: &[Report]) -> Result<()> {
    let minutes: f64 = runs.iter().map(|run| run.seconds / 60.0).sum();
    let seeds: Vec<String> = runs.iter().map(|run| run.seed.to_string()).collect();
    let machine = &runs[0].machine;
    let sum = |of: fn(&Report) -> usize| runs.iter().map(of).sum::<usize>();
    let broken = sum(|run| run.broken.len());
    let bad = sum(|run| run.not_allowed().count());
    let connections = sum(Report::connections);
    writeln!(to, "## The last runs\n")?;
    let smallest = runs.iter().map(|run| run.images.0).min().unwrap_or_default();
    let largest = runs.iter().map(|run| run.images.1).max().unwrap_or_default();
    writeln!(
        to,
        "{minutes:.0} minutes in {} run{} (seed{} {}), {} hops, images of {smallest} to {largest} MB, \
         on {} × {}, Linux {}: {connections} connections, {} verified, {} broken as allowed, **{bad} broken that were not allowed to**.\n",
        runs.len(),
        if runs.len() == 1 { "" } else { "s" },
        if runs.len() == 1 { "" } else { "s" },
        seeds.join(", "),
        runs[0].mode.hops(),
        machine.processors,
        machine.processor,
        machine.kernel,
        connections - broken,
        broken - bad,
    )?;
    writeln!(
        to,
        "| event | times | alive | broken | allowed | may break | second chances | worst stall | retransmits |"
    )?;
    writeln!(to, "|---|--:|--:|--:|--:|---|--:|--:|--:|")?;
    for (name, event) in by_name(runs.iter()) {
        let EventSummary { times, rule, alive, broken, allowed, .. } = event;
        writeln!(
            to,
            "| {name} | {times} | {alive} | {broken} | {allowed} | {rule} | {} | {:.1} s | {} |",
            event.second_chances, event.worst_stall, event.retransmits
        )?;
    }
    to.push_str(
        "\n*alive*: connections that were open when the event began, summed over all times. *second \
         chances*: packets that one backend forwarded to another until every connection had shown a sign \
         of life. *worst stall*: the longest time that a connection made no progress although data was \
         owed to it; for git only the sent data counts, because a thinking git looks like a stall. \
         *retransmits*: TCP segments that clients and backends sent again.\n\n",
    );
    for run in runs {
        if let Some(failure) = &run.failure {
            writeln!(to, "**Seed {} ended early**: {failure}\n", run.seed)?;
        }
    }
    for note in runs.iter().flat_map(|run| &run.notes) {
        writeln!(to, "{note}\n")?;
    }
    writeln!(to, "| connections | number | verified | broken | allowed | bytes | oldest |")?;
    writeln!(to, "|---|--:|--:|--:|--:|--:|--:|")?;
    for (name, kind) in kinds(runs) {
        writeln!(
            to,
            "| {name} | {} | {} | {} | {} | {} | {:.0} s |",
            kind.connections,
            kind.verified,
            kind.broken,
            kind.allowed,
            bytes(kind.bytes),
            kind.oldest
        )?;
    }
    let worst = |of: fn(&Report) -> f64| runs.iter().map(of).fold(0.0, f64::max) * 1e3;
    writeln!(
        to,
        "\nLatency of short requests from the SYN to the last byte, in the slowest run: median {:.1} ms, 99th \
         percentile {:.1} ms, maximum {:.0} ms. Other programs ran on the machine at the same time.\n",
        worst(|run| run.latency.median),
        worst(|run| run.latency.p99),
        worst(|run| run.latency.worst),
    )?;
    Ok(())
}

fn kinds(runs: &[Report]) -> Vec<(String, KindReport)> {
    let mut all: Vec<(String, KindReport)> = Vec::new();
    for kind in runs.iter().flat_map(|run| &run.kinds) {
        match all.iter_mut().find(|(name, _)| *name == kind.name) {
            Some((_, sum)) => {
                sum.connections += kind.connections;
                sum.verified += kind.verified;
                sum.broken += kind.broken;
                sum.allowed += kind.allowed;
                sum.bytes += kind.bytes;
                sum.oldest = sum.oldest.max(kind.oldest);
            }
            None => all.push((kind.name.clone(), kind.clone())),
        }
    }
    all
}

fn bytes(count: u64) -> String {
    match count {
        0..1_000_000 => format!("{:.0} KB", count as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.0} MB", count as f64 / 1e6),
        _ => format!("{:.1} GB", count as f64 / 1e9),
    }
}

fn comparison(to: &mut String, compared: &[Report]) -> Result<()> {
    writeln!(to, "## Compared\n")?;
    writeln!(
        to,
        "The same events in the same lab, without the waits that the plan asks for (`./x survive \
         --compare`, seed {}), with git, idle connections, long polls and short requests. Each cell shows \
         the broken connections of those that were open.\n",
        compared[0].seed
    )?;
    let by_mode: Vec<(String, BTreeMap<String, EventSummary>)> = compared
        .iter()
        .map(|report| (report.mode.name(), by_name(std::iter::once(report))))
        .collect();
    writeln!(
        to,
        "| event | {} |",
        by_mode.iter().map(|(mode, _)| mode.as_str()).collect::<Vec<_>>().join(" | ")
    )?;
    writeln!(to, "|---|{}", "--:|".repeat(by_mode.len()))?;
    for name in chart::event_names(compared) {
        let cells = by_mode.iter().map(|(_, events)| match events.get(&name) {
            Some(event) => format!("{} of {}", event.broken, event.alive),
            None => "–".to_owned(),
        });
        writeln!(to, "| {name} | {} |", cells.collect::<Vec<_>>().join(" | "))?;
    }
    let totals = compared.iter().map(|report| {
        let broken: usize = report.events.iter().map(|event| event.broken).sum();
        format!("**{broken}**")
    });
    writeln!(to, "| all | {} |", totals.collect::<Vec<_>>().join(" | "))?;
    writeln!(to, "\n![Broken connections by event]({CHART})\n")?;
    to.push_str(
        "Without directors, the router spreads connections over the backends, and a change of the backends \
         moves connections of other backends too. With two hops and no waits, a backend that is removed at \
         once loses its connections, and so can a further change beyond the number of hops. `glb-director \
         table plan` reports both before the change.\n\n",
    );
    Ok(())
}

const METHOD: &str = "\
## Method

- **Fleet.** Network namespaces hold the clients, a router with BIRD (BGP, BFD, ECMP by flow), two
  directors (XDP in native mode) with BIRD and a health checker each, and five backends with nginx, git
  daemon, Glance and a small server of the suite. Repositories, images and Glance's database
  (PostgreSQL) are shared, so any backend serves any request.
- **Records.** Next to the JSON report of a run is a list of all its connections, one per line: addresses
  and ports, backend, times, verdict. A client opens the record of a connection before its SYN. Nothing is
  retried: a broken connection stays broken. A clone is verified with `git fsck --full` and a comparison of
  refs, an upload with Glance's own SHA-512, a download with the SHA-512 of the upload. git connects to a
  relay on its loopback, which forwards each connection from its own client address at the job's pace.
- **Holder.** The server's answer names the backend, and the suite reads the backends' socket tables. The
  table of a machine that goes down is read after its cable is unplugged. A connection that no table showed
  in time belongs to the first hop of its row.
- **Allowed damage.** A table change waits until the code behind `glb-director table plan` calls it safe for
  flows that live as long as the suite's connections. Then it may break nothing. A process or machine that
  ends may break its own connections.
- **Attribution.** After each event every open connection must show a sign of life before the next event
  begins, so damage belongs to the event before it. In the long form, connections that are silent for a
  minute live through several events; their damage is attributed to an event whose rule covers it, or else
  to the last one. A client that waits for data treats its connection as broken after 12 s (short form) or
  30 s (long and fleet form) of silence.
- **Packet loss.** A stream of pings from 24 client addresses measures how long packets are lost. In the
  fleet form this is limited: 200 ms for planned changes, 2 s for failures without notice.
- **Forms.** The short form (every event once, seed 1) and the fleet form (directors, routers and daemons
  only, with connections that stay open through all events) are part of `./x test`. The long form has
  images of hundreds of MB and a repository of 128 MB, and runs as long as `--minutes` says.

```
./x survive --minutes 30 --seed 7        # the long form
./x survive --form short                 # every event once
./x survive --form fleet --directors 3   # events of directors, routers and daemons, with packet loss
./x survive --only drain                 # one scenario
./x survive --compare                    # ECMP, no second chance, two and four hops
./x survive --page                       # this page, from the runs in target/survive
```
";
