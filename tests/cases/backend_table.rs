//! A backend reads the other backends from the directors' table file, and serves metrics.

use std::{fs, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use glb_lab::{Daemon, Lab, Node, Plan, State, TableFile, http};

use crate::support::build;

const PATIENCE: Duration = Duration::from_secs(10);

/// Reads the value of one metric.
fn metric(lab: &Lab, address: SocketAddr, name: &str) -> Result<u64> {
    let router = lab.netns(Node::Router)?;
    let reply = http::get_in(router, Node::Router.v4().into(), address, "/metrics")?;
    let text = String::from_utf8_lossy(&reply.body).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(line.with_context(|| format!("no {name} in: {text}"))?.parse()?)
}

#[test]
fn peer_backends_come_from_the_directors_table() -> Result<()> {
    build()?;
    let plan = |backends| Plan { backends, ..Plan::new("glb-t-rtable") };
    let lab = Lab::up(plan(3))?;
    let node = Node::Backend(1);
    let mut daemon = Daemon::redirect(&lab, node, true)?;
    let address = SocketAddr::new(node.v4().into(), 9100);
    let config = fs::read_to_string(daemon.config())?;
    let (start, _) = config.split_once("backends =").context("no backends")?;
    let more = format!("{start}table = \"table.toml\"\nmetrics = \"{address}\"\n");
    fs::write(daemon.config(), more)?;

    // Without a table the daemon does not start, because it would accept no other backend.
    let error = crate::support::refusal(&lab, &mut daemon)?;
    ensure!(error.contains("table.toml"), "{error}");

    let mut table = TableFile::new(&plan(2));
    daemon.write_table(&table.toml()?)?;
    daemon.start(&lab)?;
    ensure!(metric(&lab, address, "glb_redirect_peers")? == 1);
    let generation = metric(&lab, address, "glb_redirect_generation")?;

    // A changed state has no effect on a backend; an added backend has.
    table.set_state(Node::Backend(2), State::Draining);
    let from = daemon.process()?.log()?.len();
    daemon.write_table(&table.toml()?)?;
    std::thread::sleep(Duration::from_millis(300));
    daemon.write_table(&TableFile::new(&plan(3)).toml()?)?;
    daemon.process()?.wait_for_log("in force", from, PATIENCE)?;
    ensure!(metric(&lab, address, "glb_redirect_peers")? == 2);
    ensure!(metric(&lab, address, "glb_redirect_generation")? == generation + 1);

    // An invalid file changes nothing.
    let from = daemon.process()?.log()?.len();
    daemon.write_table("this is nothing")?;
    daemon.process()?.wait_for_log("the backends known so far stay", from, PATIENCE)?;
    ensure!(metric(&lab, address, "glb_redirect_peers")? == 2);
    ensure!(metric(&lab, address, "glb_redirect_reloads_total{result=\"failed\"}")? == 1);

    // A longer hop list leaves less room in a packet: 1600 - 44 - 40.
    let from = daemon.process()?.log()?.len();
    let longer = TableFile::new(&plan(3)).toml()?.replace("seed =", "hops = 3\nseed =");
    daemon.write_table(&longer)?;
    daemon.process()?.wait_for_log("v4=1516", from, PATIENCE)?;
    daemon.process()?.wait_for_log("in force", from, PATIENCE)?;
    ensure!(metric(&lab, address, "glb_redirect_reloads_total{result=\"ok\"}")? == 2);
    // The metrics requests themselves arrived on this interface outside any tunnel.
    let passed = "glb_redirect_packets_total{vip=\"\",reason=\"not_tunnel\"}";
    ensure!(metric(&lab, address, passed)? > 10);
    ensure!(metric(&lab, address, "glb_redirect_live_connections{vip=\"203.0.113.10\"}")? == 0);
    Ok(())
}
