//! Tracing a backend's decisions under traffic, with clients that end in every way.

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use glb_lab::{Fleet, Plan, client, command, interrupt, vip};
use nix::sys::signal::Signal;

use crate::{
    support::{build, everybody_answers, program_id},
    trace_client::{PATIENCE, TraceClient, is_plain, packets, traffic},
};

fn fleet(name: &str) -> Result<Fleet> {
    build()?;
    Fleet::up(Plan { backends: 2, ..Plan::new(name) }, 1, true)
}

#[test]
fn backend_trace_shows_filtered_decisions() -> Result<()> {
    let mut fleet = fleet("glb-t-rtrace")?;
    let daemon = &fleet.redirects[0];
    let client = client(glb_lab::Family::V4, 103).to_string();
    let mut all =
        TraceClient::start(&fleet, daemon, &["trace", "-o", "json", "-n", "20", "port", "80"])?;
    while all.child.try_wait()?.is_none() {
        traffic(&fleet)?;
    }
    let lines = all.json()?;
    ensure!(lines.len() == 20, "{lines:?}");
    let count = |reason: &str| lines.iter().filter(|line| line["reason"] == reason).count();
    ensure!(count("taken_syn") > 0 && count("taken_established") > 0, "{lines:?}");
    for line in &lines {
        let tunnel = &line["tunnel"]["destination"];
        ensure!(*tunnel == daemon.node().v4().to_string() && line["interface"] == "eth0", "{line}");
    }
    is_plain(&mut fleet.redirects[0], 1)?;

    // Only one client's packets appear, on whichever backend they land.
    let words = ["trace", "-o", "json", &client, "port", "80"];
    let mut watchers: Vec<TraceClient> = fleet
        .redirects
        .iter()
        .map(|daemon| TraceClient::start(&fleet, daemon, &words))
        .collect::<Result<_>>()?;
    traffic(&fleet)?;
    let mut seen = Vec::new();
    for watcher in &mut watchers {
        watcher.signal(Signal::SIGINT)?;
        seen.extend(watcher.json()?);
    }
    ensure!(!seen.is_empty() && seen.iter().all(|line| line["source"] == *client), "{seen:?}");
    is_plain(&mut fleet.redirects[0], 2)?;
    everybody_answers(&fleet.lab)
}

#[test]
fn backend_trace_may_end_in_any_way() -> Result<()> {
    let mut fleet = fleet("glb-t-rwatch")?;
    let watcher = TraceClient::start(&fleet, &fleet.redirects[0], &["trace"])?;
    // Only one trace runs at a time. The error for the second names the first.
    let mut second = fleet.redirects[0].command(&fleet.lab, "trace")?;
    let refused = command::finish(&mut second)?;
    let text = String::from_utf8_lossy(&refused.stderr);
    let pid = format!("process {}", watcher.child.id());
    ensure!(!refused.status.success() && text.contains(&pid), "{text}");

    traffic(&fleet)?;
    watcher.signal(Signal::SIGKILL)?;
    is_plain(&mut fleet.redirects[0], 1)?;

    // The client ends with a summary on request.
    let mut watcher = TraceClient::start(&fleet, &fleet.redirects[0], &["trace"])?;
    traffic(&fleet)?;
    watcher.signal(Signal::SIGINT)?;
    let lines = watcher.lines()?;
    ensure!(watcher.said.contains("packets: "), "{}", watcher.said);
    ensure!(lines.iter().any(|line| line.contains("taken_syn")), "{lines:?}");
    is_plain(&mut fleet.redirects[0], 2)?;

    // The client hangs. The daemon ends the trace at its time limit.
    let watcher = TraceClient::start(&fleet, &fleet.redirects[0], &["trace", "--time", "2s"])?;
    watcher.signal(Signal::SIGSTOP)?;
    is_plain(&mut fleet.redirects[0], 3)?;
    drop(watcher);

    // The configuration changes meanwhile. The trace continues with the new generation.
    let mut watcher = TraceClient::start(&fleet, &fleet.redirects[0], &["trace", "-o", "json"])?;
    let daemon = &mut fleet.redirects[0];
    let config = fs::read_to_string(daemon.config())?;
    fs::write(daemon.config(), config + "unknown_senders = \"pass\"\n")?;
    let from = daemon.process()?.log()?.len();
    daemon.process()?.signal(Signal::SIGHUP)?;
    daemon.process()?.wait_for_log("in force", from, PATIENCE)?;
    traffic(&fleet)?;
    watcher.signal(Signal::SIGTERM)?;
    ensure!(!watcher.json()?.is_empty(), "nothing was seen after the change");
    is_plain(&mut fleet.redirects[0], 4)?;

    // The daemon ends. It restores the plain program and says so.
    let mut watcher = TraceClient::start(&fleet, &fleet.redirects[0], &["trace"])?;
    let daemon = &mut fleet.redirects[0];
    let from = daemon.process()?.log()?.len();
    daemon.process()?.signal(Signal::SIGTERM)?;
    daemon.process()?.wait_for_log("trace ended", from, PATIENCE)?;
    interrupt::wait("the watcher's end", PATIENCE, || Ok(watcher.child.try_wait()?))?;
    everybody_answers(&fleet.lab)
}

#[test]
fn killed_backend_daemon_under_trace_is_restored() -> Result<()> {
    let mut fleet = fleet("glb-t-rtkill")?;
    let node = fleet.redirects[0].node();
    let plain = program_id(&fleet.lab, node)?;
    let mut watcher = TraceClient::start(&fleet, &fleet.redirects[0], &["trace"])?;
    traffic(&fleet)?;
    let shows = program_id(&fleet.lab, node)?;
    ensure!(shows != plain, "this test tests nothing");
    fleet.redirects[0].end(Signal::SIGKILL)?;
    interrupt::wait("the watcher's end", PATIENCE, || Ok(watcher.child.try_wait()?))?;

    // The daemon is gone. The trace program continues to handle packets.
    everybody_answers(&fleet.lab)?;
    ensure!(program_id(&fleet.lab, node)? == shows);
    let taken = |fleet: &Fleet| -> Result<u64> {
        let counters = fleet.redirects[0].redirect_counters(&fleet.lab)?;
        Ok(counters.reasons.get("taken_syn").map_or(0, |count| count.packets))
    };
    let before = taken(&fleet)?;
    fleet.redirects[0].start(&fleet.lab)?;
    ensure!(program_id(&fleet.lab, node)? != shows, "what showed decisions is still in force");
    everybody_answers(&fleet.lab)?;
    let after = taken(&fleet)?;
    ensure!(after > before, "{before}, then {after}");

    // The new daemon can trace, too.
    let mut watcher = TraceClient::start(&fleet, &fleet.redirects[0], &["trace"])?;
    traffic(&fleet)?;
    watcher.signal(Signal::SIGINT)?;
    ensure!(!watcher.lines()?.is_empty(), "nothing was seen");
    is_plain(&mut fleet.redirects[0], 1)
}

#[test]
fn backend_capture_has_received_and_delivered_packets() -> Result<()> {
    let fleet = fleet("glb-t-rcapture")?;
    let daemon = &fleet.redirects[0];
    let file = daemon.config().with_file_name("out.pcapng");
    let path = file.to_str().context("an odd path")?;
    let words = ["capture", "-w", path, "-n", "10", "verdict", "taken"];
    let mut watcher = TraceClient::start(&fleet, daemon, &words)?;
    while watcher.child.try_wait()?.is_none() {
        traffic(&fleet)?;
    }
    watcher.lines()?;
    ensure!(watcher.said.contains("10 packets in"), "{}", watcher.said);
    let packets = packets(&file)?;
    ensure!(packets.len() == 20, "{}", packets.len());
    let vip = vip(glb_lab::Family::V4).to_string();
    for pair in packets.chunks(2) {
        let [before, after] = pair else { bail!("an odd number of packets") };
        // The 40 bytes of tunnel headers are removed, and the rest is unchanged.
        ensure!(before.data[54..] == after.data[14..] && before.time == after.time);
        let destination = after.data[30..34].iter().map(ToString::to_string).collect::<Vec<_>>();
        ensure!(destination.join(".") == vip, "{destination:?}");
    }
    // A full disk ends the capture with the reason, and the plain program returns.
    let mut full = TraceClient::spawn(&fleet, daemon, &["capture", "-w", "/dev/full", "-n", "20"])?;
    interrupt::wait("the end of the capture", PATIENCE, || {
        traffic(&fleet)?;
        Ok(full.child.try_wait()?)
    })?;
    full.says("cannot write /dev/full")?;
    let mut table = daemon.command(&fleet.lab, "trace")?;
    let refused = command::finish(table.args(["table", "git"]))?;
    let text = String::from_utf8_lossy(&refused.stderr);
    ensure!(!refused.status.success() && text.contains("has no tables"), "{text}");
    let bytes = fs::read(&file)?;
    ensure!(bytes.windows(17).any(|window| window == b"taken (taken_syn)"));
    Ok(())
}
