//! A backend's daemon follows address and interface changes of its machine.

use std::time::Duration;

use anyhow::{Result, ensure};
use glb_lab::{Daemon, INTERFACE, Lab, Node, Plan, interrupt};

use crate::support::{build, has_program};

const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn backend_follows_address_and_interface_changes() -> Result<()> {
    build()?;
    let lab = Lab::up(Plan { backends: 2, ..Plan::new("glb-t-follow") })?;
    let node = Node::Backend(1);
    let netns = lab.netns(node)?;
    let mut daemon = Daemon::redirect(&lab, node, true)?;
    daemon.start(&lab)?;
    ensure!(has_program(&lab, node)?);

    // Adds an address that directors can send to from now on, and removes one.
    for (command, own) in [
        ("address add 10.0.2.99/24 dev eth0", "10.0.2.21,10.0.2.99"),
        ("address del 10.0.2.99/24 dev eth0", "own=\"10.0.2.21,2001"),
        // The largest tunnel overhead towards another backend is that of IPv6.
        ("link set eth0 mtu 1500", "v4=1388 v6=1368"),
    ] {
        let from = daemon.process()?.log()?.len();
        netns.ip(command)?;
        daemon.process()?.wait_for_log("in force", from, PATIENCE)?;
        let log = daemon.process()?.log()?;
        ensure!(log[from..].contains(own), "{command}: {}", &log[from..]);
    }

    // The interface disappears and returns under the same name.
    let from = daemon.process()?.log()?.len();
    let port = node.to_string();
    lab.netns(Node::Router)?.ip(&format!("link del {port}"))?;
    daemon.process()?.wait_for_log("generation stays in force", from, PATIENCE)?;
    let from = daemon.process()?.log()?.len();
    lab.netns(Node::Router)?.ip(&format!(
        "link add {INTERFACE} netns {} mtu 1600 type veth peer name {port} mtu 1600\n\
         link set {port} master dc up",
        netns.name()
    ))?;
    netns.ip("address add 10.0.2.21/24 dev eth0\nlink set eth0 up")?;
    daemon.process()?.wait_for_log("in force", from, PATIENCE)?;
    interrupt::wait("the program on the new interface", PATIENCE, || {
        Ok(has_program(&lab, node)?.then_some(()))
    })
}
