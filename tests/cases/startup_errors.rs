//! Start-up errors of both daemons: each names the cause and the remedy.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
};

use anyhow::{Context, Result, bail, ensure};
use glb_lab::{
    Daemon, INTERFACE, Lab, Node, Plan, Program, TableFile, command, files_below, http, link,
};

use crate::support::{build, has_program, refusal};

const PROGRAMS: [Program; 2] = [Program::Director, Program::Redirect];

fn lab(name: &str) -> Result<Lab> {
    build()?;
    Lab::up(Plan { backends: 2, ..Plan::new(name) })
}

/// Prepares a daemon of this kind without starting it, and returns its node.
fn daemon(lab: &Lab, program: Program) -> Result<(Daemon, Node)> {
    Ok(match program {
        Program::Director => {
            let node = Node::Director(1);
            (Daemon::director(lab, node, &TableFile::new(lab.plan()))?, node)
        }
        Program::Redirect => (Daemon::redirect(lab, Node::Backend(1), true)?, Node::Backend(1)),
        _ => bail!("{} is not asked for here", program.name()),
    })
}

fn change_config(daemon: &Daemon, from: &str, to: &str) -> Result<()> {
    let text = fs::read_to_string(daemon.config())?;
    ensure!(text.contains(from), "{from:?} is not in {text}");
    Ok(fs::write(daemon.config(), text.replace(from, to))?)
}

fn names(error: &str, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(error.contains(word), "{word:?} is not in: {error}");
    }
    Ok(())
}

/// A daemon that did not start must leave nothing behind.
fn no_trace(lab: &Lab, node: Node) -> Result<()> {
    let pins = files_below(&lab.bpf().join(node.to_string()))?;
    ensure!(pins.is_empty(), "left: {pins:?}");
    ensure!(!has_program(lab, node)?, "a program is attached");
    Ok(())
}

#[test]
fn occupied_interface_is_rejected() -> Result<()> {
    let lab = lab("glb-t-occupied")?;
    for program in PROGRAMS {
        let (mut daemon, node) = daemon(&lab, program)?;
        let pin = lab.bpf().join(format!("other-{node}"));
        lab.netns(node)?.run(|| link::attach_pass(INTERFACE, &pin))?;
        names(&refusal(&lab, &mut daemon)?, &[INTERFACE, "already has an XDP program", "xdp off"])?;
        ensure!(has_program(&lab, node)?, "the other program was taken off");
        fs::remove_file(&pin)?;
        no_trace(&lab, node)?;
        daemon.start(&lab).context("the interface is free, and yet")?;
    }
    Ok(())
}

#[test]
fn missing_interface_is_rejected() -> Result<()> {
    let lab = lab("glb-t-nointerface")?;
    for program in PROGRAMS {
        let (mut daemon, node) = daemon(&lab, program)?;
        change_config(&daemon, "\"eth0\"", "\"eth7\"")?;
        names(&refusal(&lab, &mut daemon)?, &["eth7", "ip link"])?;
        no_trace(&lab, node)?;
    }
    Ok(())
}

#[test]
fn pin_folder_outside_a_bpffs_is_rejected() -> Result<()> {
    let lab = lab("glb-t-nobpffs")?;
    let elsewhere = lab.scratch().join("pins").display().to_string();
    for program in PROGRAMS {
        let (mut daemon, node) = daemon(&lab, program)?;
        let pins = lab.bpf().join(node.to_string()).display().to_string();
        change_config(&daemon, &pins, &elsewhere)?;
        names(&refusal(&lab, &mut daemon)?, &[&elsewhere, "mount -t bpf"])?;
        no_trace(&lab, node)?;
    }
    Ok(())
}

#[test]
fn missing_privileges_are_rejected() -> Result<()> {
    let lab = lab("glb-t-nocap")?;
    for program in PROGRAMS {
        let (daemon, node) = daemon(&lab, program)?;
        // Root without capabilities: it can read files, and nothing else works.
        let mut bare = lab.netns(node)?.command("setpriv");
        bare.args(["--bounding-set=-all", "--inh-caps=-all"]).arg(program.path()?);
        let done = command::finish(bare.arg("run").arg("--config").arg(daemon.config()))?;
        let error = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.code() == Some(1), "{}: {error}", done.status);
        ensure!(!error.contains("panicked"), "{error}");
        names(&error, &["CAP_BPF", "CAP_NET_ADMIN"])?;
        no_trace(&lab, node)?;
    }
    Ok(())
}

#[test]
fn second_daemon_on_one_pin_folder_is_rejected() -> Result<()> {
    let lab = lab("glb-t-two")?;
    for program in PROGRAMS {
        let (mut first, node) = daemon(&lab, program)?;
        first.start(&lab)?;
        let (mut second, _) = daemon(&lab, program)?;
        // Without this, the daemon would report the occupied control socket instead.
        change_config(&second, "control.sock\"", "second.sock\"")?;
        let pins = lab.bpf().join(node.to_string()).display().to_string();
        names(&refusal(&lab, &mut second)?, &[&pins])?;
        ensure!(has_program(&lab, node)?, "the second took the first one's program off");
    }
    Ok(())
}

#[test]
fn missing_or_malformed_files_are_rejected() -> Result<()> {
    let lab = lab("glb-t-files")?;
    for program in PROGRAMS {
        let (mut daemon, node) = daemon(&lab, program)?;
        change_config(&daemon, "interfaces", "interfases")?;
        names(&refusal(&lab, &mut daemon)?, &["interfases", program.name()])?;
        fs::remove_file(daemon.config())?;
        names(&refusal(&lab, &mut daemon)?, &[&daemon.config().display().to_string()])?;
        no_trace(&lab, node)?;
    }
    let (mut director, _) = daemon(&lab, Program::Director)?;
    fs::remove_file(director.config().with_file_name("table.toml"))?;
    names(&refusal(&lab, &mut director)?, &["table.toml"])
}

#[test]
fn occupied_metrics_port_is_rejected() -> Result<()> {
    let lab = lab("glb-t-port")?;
    let (mut director, node) = daemon(&lab, Program::Director)?;
    let address = SocketAddr::new(node.v4().into(), 9100);
    change_config(&director, "table =", &format!("metrics = \"{address}\"\ntable ="))?;
    let other = lab.netns(node)?.run(|| Ok(TcpListener::bind(address)?))?;
    names(&refusal(&lab, &mut director)?, &[&address.to_string(), "in use", "ss -ltnp"])?;
    no_trace(&lab, node)?;

    drop(other);
    director.start(&lab)?;
    let router = lab.netns(Node::Router)?;
    let reply = http::get_in(router, Node::Router.v4().into(), address, "/metrics")?;
    let text = String::from_utf8_lossy(&reply.body);
    ensure!(reply.status == 200 && text.contains("10.0.2.21"), "{reply}");
    Ok(())
}
