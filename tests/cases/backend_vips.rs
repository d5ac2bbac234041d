//! A backend's VIPs on lo: only those of the configuration in force, and addresses added by others
//! stay.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use glb_lab::{Daemon, Lab, Node, Plan, command};
use nix::sys::signal::Signal;

use crate::support::{build, refusal};

const NODE: Node = Node::Backend(1);

/// Returns which of `addresses` are on lo.
fn on_lo(lab: &Lab, addresses: &[&'static str]) -> Result<Vec<&'static str>> {
    let mut ip = lab.netns(NODE)?.command("ip");
    let shown = command::output(ip.args(["-oneline", "address", "show", "dev", "lo"]))?;
    let there = |address: &&&str| shown.contains(&format!(" {address}/"));
    Ok(addresses.iter().filter(there).copied().collect())
}

fn reload(daemon: &mut Daemon, config: &str) -> Result<()> {
    fs::write(daemon.config(), config)?;
    let process = daemon.process()?;
    let from = process.log()?.len();
    process.signal(Signal::SIGHUP)?;
    process.wait_for_log("in force", from, Duration::from_secs(10))
}

#[test]
fn lo_has_the_vips_in_force_and_foreign_addresses_stay() -> Result<()> {
    const CONFIGURED: [&str; 2] = ["203.0.113.10", "2001:db8::10"];
    const ADMINS: [&str; 2] = ["192.0.2.98", "2001:db8::98"];
    const NEW: [&str; 2] = ["192.0.2.99", "2001:db8::99"];
    build()?;
    let lab = Lab::up(Plan { backends: 2, ..Plan::new("glb-t-vips") })?;
    let mut daemon = Daemon::redirect(&lab, NODE, true)?;
    let good = fs::read_to_string(daemon.config())?;
    let lists = CONFIGURED.iter().all(|vip| good.contains(vip));
    ensure!(lists && on_lo(&lab, &CONFIGURED)?.is_empty(), "{good}");
    lab.netns(NODE)?
        .ip("address add 192.0.2.98/32 dev lo\naddress add 2001:db8::98/128 dev lo nodad\n\
             tuntap add dev plain mode tun\nlink set plain up")?;
    let more = good.replace(
        "vips = [",
        "vips = [\"192.0.2.98\", \"2001:db8::98\", \"192.0.2.99\", \"2001:db8::99\", ",
    );
    // The interface exists, and cannot carry the program.
    let refused = more.replace("\"eth0\"", "\"plain\"");
    ensure!(more != good && refused != more, "{good}");

    // A start that fails.
    fs::write(daemon.config(), &refused)?;
    let error = refusal(&lab, &mut daemon)?;
    ensure!(on_lo(&lab, &CONFIGURED)?.is_empty() && on_lo(&lab, &NEW)?.is_empty(), "{error}");
    ensure!(on_lo(&lab, &ADMINS)? == ADMINS, "{error}");

    // A reload that fails.
    fs::write(daemon.config(), &good)?;
    daemon.start(&lab)?;
    ensure!(on_lo(&lab, &CONFIGURED)? == CONFIGURED);
    for refused in [refused, more.replace("\"eth0\"", "\"eth77\"")] {
        fs::write(daemon.config(), refused)?;
        daemon.hangup_refused()?;
        ensure!(on_lo(&lab, &NEW)?.is_empty());
        ensure!(on_lo(&lab, &CONFIGURED)? == CONFIGURED && on_lo(&lab, &ADMINS)? == ADMINS);
    }

    // A reload that works, with a restart in between.
    reload(&mut daemon, &more)?;
    ensure!(on_lo(&lab, &NEW)? == NEW);
    daemon.end(Signal::SIGTERM)?;
    daemon.start(&lab)?;
    reload(&mut daemon, &good)?;
    ensure!(on_lo(&lab, &NEW)?.is_empty(), "left on lo");
    ensure!(on_lo(&lab, &CONFIGURED)? == CONFIGURED);
    ensure!(on_lo(&lab, &ADMINS)? == ADMINS, "somebody else's was taken off");
    Ok(())
}
