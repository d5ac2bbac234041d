//! Tracing a director's decisions.

use std::{fs, net::IpAddr};

use anyhow::{Context, Result, bail, ensure};
use glb_lab::{Family, Fleet, Plan, State, client, command, interrupt, vip};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    support::{ask_everybody, build, everybody_answers},
    trace_client::{PATIENCE, TraceClient, is_plain, packets, traffic},
};

fn fleet(name: &str) -> Result<Fleet> {
    build()?;
    Fleet::up(Plan { backends: 2, ..Plan::new(name) }, 1, true)
}

/// Returns row and hops from `glb-director table lookup`, which computes the hash independently.
fn looked_up(fleet: &Fleet, source: &str) -> Result<Value> {
    let director = &fleet.directors[0];
    let mut lookup = fleet.lab.netns(director.node())?.command(glb_lab::Program::Director.path()?);
    lookup.args(["table", "lookup", "-o", "json"]);
    lookup.arg(director.config().with_file_name("table.toml"));
    lookup.args([source, &format!("{}:80", vip(Family::V4))]);
    Ok(serde_json::from_str(&command::output(&mut lookup)?)?)
}

#[test]
fn director_trace_names_table_row_and_hops() -> Result<()> {
    let mut fleet = fleet("glb-t-dtrace")?;
    let daemon = &fleet.directors[0];
    let source = client(Family::V4, 103).to_string();
    let words = ["trace", "-o", "json", "-n", "3", &source, "port", "80"];
    let mut watcher = TraceClient::start(&fleet, daemon, &words)?;
    while watcher.child.try_wait()?.is_none() {
        traffic(&fleet)?;
    }
    let lines = watcher.json()?;
    ensure!(lines.len() == 3, "{lines:?}");
    let expected = looked_up(&fleet, &source)?;
    for line in &lines {
        ensure!(line["source"] == *source && line["verdict"] == "sent", "{line}");
        ensure!(line["reason"] == "encapsulated" && line["table"].is_string(), "{line}");
        ensure!(line["row"] == expected["main"]["row"], "{line} and {expected}");
        let hops: Vec<&Value> = expected["hops"]
            .as_array()
            .context("no hops")?
            .iter()
            .map(|hop| &hop["address"])
            .collect();
        let shown: Vec<&Value> = line["hops"].as_array().context("no hops")?.iter().collect();
        ensure!(shown == hops, "{line} and {expected}");
    }
    is_plain(&mut fleet.directors[0], 1)?;
    // The generation in force is unchanged, and there is no rollback target.
    let mut status = fleet.directors[0].command(&fleet.lab, "status")?;
    let text = command::output(status.args(["-o", "json"]))?;
    let status: Value = serde_json::from_str(&text)?;
    ensure!(status["generation"] == 1, "{text}");
    ensure!(!fleet.lab.bpf().join("director1/trace").exists(), "what showed decisions is pinned");

    let mut refused = fleet.directors[0].command(&fleet.lab, "trace")?;
    let refused = command::finish(refused.args(["table", "nobody"]))?;
    let text = String::from_utf8_lossy(&refused.stderr);
    ensure!(!refused.status.success() && text.contains("cannot trace table \"nobody\""), "{text}");
    everybody_answers(&fleet.lab)
}

#[test]
fn director_trace_may_end_in_any_way() -> Result<()> {
    let mut fleet = fleet("glb-t-dwatch")?;
    let mut watcher = TraceClient::start(&fleet, &fleet.directors[0], &["trace"])?;
    traffic(&fleet)?;
    watcher.signal(Signal::SIGKILL)?;
    is_plain(&mut fleet.directors[0], 1)?;
    drop(watcher);

    // The table changes meanwhile. The trace continues with the new generation and its rows.
    watcher =
        TraceClient::start(&fleet, &fleet.directors[0], &["trace", "-o", "json", "port", "80"])?;
    let node = fleet.redirects[0].node();
    fleet.table.set_state(node, State::Draining);
    fleet.reload()?;
    let log = |fleet: &mut Fleet| fleet.directors[0].process()?.log();
    // The file change and the signal cause one reload or two. The trace restarts after each.
    interrupt::wait("the new generation's decisions", PATIENCE, || {
        Ok((log(&mut fleet)?.matches("trace started").count() >= 3).then_some(()))
    })?;
    for _ in 0..3 {
        traffic(&fleet)?;
    }
    watcher.signal(Signal::SIGTERM)?;
    let lines = watcher.json()?;
    let other = fleet.redirects[1].node().v4();
    let last = lines.last().context("nothing was seen")?;
    ensure!(last["hops"][0] == IpAddr::from(other).to_string(), "{last}");
    is_plain(&mut fleet.directors[0], 2)?;

    // The daemon is killed meanwhile. The program continues to forward, and the next daemon adopts
    // it and restores the plain program.
    let mut watcher = TraceClient::start(&fleet, &fleet.directors[0], &["trace"])?;
    fleet.directors[0].end(Signal::SIGKILL)?;
    interrupt::wait("the watcher's end", PATIENCE, || Ok(watcher.child.try_wait()?))?;
    ask_everybody(&fleet.lab)?;
    let lenses = fleet.lab.bpf().join("director1/trace");
    ensure!(lenses.exists(), "this test tests nothing");
    fleet.directors[0].start(&fleet.lab)?;
    let text = log(&mut fleet)?;
    ensure!(text.contains("adopting the generation that forwards"), "{text}");
    ensure!(!lenses.exists(), "what showed decisions is still pinned");
    let mut status = fleet.directors[0].command(&fleet.lab, "status")?;
    let text = command::output(status.args(["-o", "json"]))?;
    ensure!(serde_json::from_str::<Value>(&text)?["generation"] == 2, "{text}");
    ask_everybody(&fleet.lab)
}

#[test]
fn director_capture_has_received_and_sent_packets() -> Result<()> {
    let mut fleet = fleet("glb-t-dcapture")?;
    let daemon = &fleet.directors[0];
    let file = daemon.config().with_file_name("out.pcapng");
    let path = file.to_str().context("an odd path")?;
    let words = ["capture", "-w", path, "-n", "10", "--snap", "200", "verdict", "sent", "tcp"];
    let before = daemon.director_counters(&fleet.lab)?.packets("encapsulated");
    let mut watcher = TraceClient::start(&fleet, daemon, &words)?;
    while watcher.child.try_wait()?.is_none() {
        traffic(&fleet)?;
    }
    watcher.lines()?;
    let packets = packets(&file)?;
    ensure!(packets.len() == 20, "{}", packets.len());
    for pair in packets.chunks(2) {
        let [before, after] = pair else { bail!("an odd number of packets") };
        ensure!(before.data.len() <= 200 && after.data.len() <= 200);
        let growth = (after.length - before.length) as usize;
        // A sent packet contains the received packet unchanged behind the outer headers.
        let common = (after.data.len() - growth).min(before.data.len()) - 14;
        ensure!(after.data[14 + growth..][..common] == before.data[14..][..common]);
        ensure!(after.data[36..38] == [0x4c, 0x43], "not the tunnel's port");
    }
    let bytes = fs::read(&file)?;
    ensure!(bytes.windows(19).any(|window| window == b"sent (encapsulated)"));
    is_plain(&mut fleet.directors[0], 1)?;
    // Each traced packet was counted exactly once.
    let after = fleet.directors[0].director_counters(&fleet.lab)?.packets("encapsulated");
    ensure!(after >= before + 10, "{before} {after}");
    everybody_answers(&fleet.lab)
}

/// A live capture is replayed next to the running director: the decisions are the same, and nothing
/// is counted.
#[test]
fn capture_is_replayed_next_to_the_running_director() -> Result<()> {
    let fleet = fleet("glb-t-replay")?;
    let daemon = &fleet.directors[0];
    let file = daemon.config().with_file_name("live.pcapng");
    let path = file.to_str().context("an odd path")?;
    let words = ["capture", "-w", path, "-n", "6", "verdict", "sent", "tcp"];
    let mut watcher = TraceClient::start(&fleet, daemon, &words)?;
    while watcher.child.try_wait()?.is_none() {
        traffic(&fleet)?;
    }
    let live = packets(&file)?;
    let before = daemon.director_counters(&fleet.lab)?;
    // The pins of the capture disappear shortly after it ends.
    interrupt::wait("the end of what captured", std::time::Duration::from_secs(30), || {
        let pins = glb_lab::files_below(&fleet.lab.bpf())?;
        let is_lens = |pin: &std::path::PathBuf| pin.iter().any(|part| part == "trace");
        Ok((!pins.iter().any(is_lens)).then_some(()))
    })?;
    let pins = glb_lab::files_below(&fleet.lab.bpf())?;
    let out = daemon.config().with_file_name("again.pcapng");
    let mut replay = daemon.command(&fleet.lab, "replay")?;
    replay.arg(&file).args(["-o", "json", "--include", "sent", "-w"]).arg(&out);
    let text = command::output(&mut replay)?;
    let again = packets(&out)?;
    let lines: Vec<Value> =
        text.lines().map(serde_json::from_str).collect::<Result<_, serde_json::Error>>()?;
    ensure!(lines.len() == live.len() && again.len() == live.len() / 2, "{text}");
    for (index, pair) in live.chunks(2).enumerate() {
        let [_, sent] = pair else { bail!("an odd number of packets") };
        // The bytes are equal, including MAC addresses, because the next hops come from the kernel.
        ensure!(again[index].data == sent.data, "packet {index}");
        ensure!(lines[2 * index]["egress"]["synthetic"] == false, "{}", lines[2 * index]);
        ensure!(lines[2 * index]["reason"] == "encapsulated", "{}", lines[2 * index]);
        // A packet sent by a director matches no VIP.
        ensure!(lines[2 * index + 1]["reason"] == "no_bind", "{}", lines[2 * index + 1]);
    }
    let after = daemon.director_counters(&fleet.lab)?;
    ensure!(after.packets("encapsulated") == before.packets("encapsulated"));
    ensure!(glb_lab::files_below(&fleet.lab.bpf())? == pins, "something was pinned");
    Ok(())
}
