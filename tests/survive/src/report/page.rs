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

`./x survive` puts a fleet to work and does to it all that can happen to one: two directors, five
backends, real git, real OpenStack Glance, connections that are silent for a minute, long polls and
short requests, over IPv4 and IPv6. Every connection has an account: it is verified, or it is broken, and
then it is said when, by which event, and whether that event was allowed to break it. What an event
may break stands before it begins; one broken connection more, and the run fails.

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
        "| event | times | alive | broken | allowed | may break | second chances | worst stall | sent again |"
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
        "\n*alive*: connections that were open when the event began, over all times. *second chances*: \
         packets that one backend handed to another until all was proved well. *worst stall*: the longest \
         that a connection stood still although something was owed to it; of git, only what it sends is \
         watched, since nobody can tell its thinking from a stall. *sent again*: TCP segments, of clients and \
         backends.\n\n",
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
        "\nShort requests, from the SYN to the last byte, the worse of the runs: median {:.1} ms, 99th \
         percentile {:.1} ms, worst {:.0} ms. The machine did other work meanwhile.\n",
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
        "The same events, one after the other without the waits that the plan would ask for (`./x survive \
         --compare`, seed {}), on the same lab, with git, idle connections, long polls and short requests: \
         broken connections of those that were alive.\n",
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
        "Without directors, the router spreads connections over the backends itself, and a change of the \
         set moves others' connections too. With two hops and no waits, a backend that is taken out at once \
         takes its connections with it, and so may one change more than the hops allow; `glb-director table \
         plan` says so before.\n\n",
    );
    Ok(())
}

const METHOD: &str = "\
## How it is done

- **The fleet.** Network namespaces: clients, a router with BIRD (BGP, BFD, ECMP by flow), two directors
  (XDP in native mode) with BIRD and a health checker each, five backends with nginx, git daemon, Glance
  and a small server of the suite's own. Repositories, images and Glance's database (PostgreSQL) are
  shared, so any backend serves any request.
- **Accounts.** Beside each run's report (JSON) lies a list of all its connections, one a line: addresses and
  ports, backend, times, verdict. A client opens a connection's account before its SYN. Nothing is tried
  twice: whatever breaks is broken. A clone is verified by `git fsck --full` and by comparing refs, an upload by Glance's own
  SHA-512 against ours, a download by ours against both. git speaks to a relay on its loopback that leads
  each connection on from an address of its own, at the job's pace.
- **Whose is it?** Answers name their backend, and the backends' socket tables are read; of a machine that
  goes down they are read when its cable is out already. A connection that no table showed in time
  belongs to the first hop of its row.
- **What is allowed.** A change of the table waits until the code behind `glb-director table plan` says that no
  flow can break, with a flow's life as long as the suite's connections live; then it may break nothing.
  A process that ends may take its own connections with it, and so may a machine.
- **After each event** every living connection must show a sign of life before the next event begins, so
  what is broken is known to be this event's doing. In the long form those that are silent for a minute
  live through several events from one word to the next; of these the one to blame is one whose rule
  covers the connection, or else the last. A client that is owed something takes its connection
  to be broken after 12 s (short form) or 30 s (long form) of silence.
- **Two forms.** The short one (every event once, seed 1) is part of `./x test`; the long one has images of
  hundreds of MB, a repository of 128 MB, and goes on for as long as it is told.

```
./x survive --minutes 30 --seed 7        # the long form
./x survive --form short                 # every event once
./x survive --only drain                 # one scenario
./x survive --compare                    # ECMP, no second chance, two and four hops
./x survive --page                       # this page, from the runs in target/survive
```
";
