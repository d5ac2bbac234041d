//! The director's control socket, as an operator uses it.

use std::{
    fs,
    os::unix::{fs::MetadataExt as _, net::UnixStream},
    process::Output,
};

use anyhow::{Result, ensure};
use glb_lab::{Daemon, Lab, Node, Plan, Program, TableFile, command};
use nix::sys::signal::Signal;

use crate::support::{build, refusal};

const DIRECTOR: Node = Node::Director(1);

fn director(name: &str) -> Result<(Lab, Daemon)> {
    build()?;
    let lab = Lab::up(Plan { backends: 2, ..Plan::new(name) })?;
    let director = Daemon::director(&lab, DIRECTOR, &TableFile::new(lab.plan()))?;
    Ok((lab, director))
}

fn ask(lab: &Lab, director: &Daemon, words: &[&str]) -> Result<(Output, String)> {
    let mut ask = director.command(lab, words[0])?;
    let output = command::finish(ask.args(&words[1..]))?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text += &String::from_utf8_lossy(&output.stderr);
    Ok((output, text))
}

#[test]
fn status_and_reload_report_state_with_stable_exit_codes() -> Result<()> {
    let (lab, mut director) = director("glb-t-control")?;
    let (output, text) = ask(&lab, &director, &["status"])?;
    ensure!(output.status.code() == Some(3) && text.contains("no daemon answers"), "{text}");
    // The advice names a setting that exists.
    ensure!(text.contains("`control.socket`"), "{text}");
    let mut fleet = lab.netns(DIRECTOR)?.command(Program::Director.path()?);
    let nobody = lab.scratch().join("nobody.sock");
    let output = command::finish(fleet.args(["fleet", "status", "--targets"]).arg(&nobody))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.code() == Some(3) && text.contains("no daemon answers"), "{text}");
    ensure!(text.contains("nobody.sock") && !text.contains("--config"), "{text}");

    director.start(&lab)?;
    let (output, text) = ask(&lab, &director, &["status"])?;
    ensure!(output.status.code() == Some(0) && text.contains("generation   1"), "{text}");

    let (output, text) = ask(&lab, &director, &["reload", "--force"])?;
    ensure!(output.status.code() == Some(0) && text.contains("generation 2"), "{text}");

    director.write_table("nonsense")?;
    let (output, text) = ask(&lab, &director, &["reload"])?;
    ensure!(output.status.code() == Some(1) && text.contains("table.toml"), "{text}");
    let (output, text) = ask(&lab, &director, &["status", "-o", "json"])?;
    ensure!(output.status.code() == Some(4) && text.contains("reload_failed"), "{text}");
    ensure!(text.contains("\"generation\": 2"), "{text}");

    director.write_table(&TableFile::new(lab.plan()).toml()?)?;
    ask(&lab, &director, &["reload", "--force"])?;
    let (output, text) = ask(&lab, &director, &["status"])?;
    ensure!(output.status.code() == Some(0) && text.contains("none"), "{text}");
    Ok(())
}

#[test]
fn stale_control_socket_is_replaced_and_live_one_is_kept() -> Result<()> {
    let (lab, mut director) = director("glb-t-socket")?;
    let socket = director.config().with_file_name("control.sock");
    director.start(&lab)?;
    ensure!(fs::metadata(&socket)?.mode() & 0o777 == 0o660);
    let pid = director.id().unwrap_or_default().to_string();

    // A second director with other pins and the same socket.
    let config = fs::read_to_string(director.config())?;
    let other = director.config().with_file_name("other.toml");
    fs::write(&other, config.replace("/director1\"", "/other\""))?;
    let mut second = lab.netns(DIRECTOR)?.command(glb_lab::Program::Director.path()?);
    let output = command::finish(second.args(["run", "--config"]).arg(&other))?;
    let text = String::from_utf8_lossy(&output.stderr);
    for words in ["control.sock", &pid, "control.socket"] {
        ensure!(text.contains(words), "{words:?} is missing in: {text}");
    }
    ensure!(!lab.bpf().join("other").exists(), "the refused director left its pins");

    director.end(Signal::SIGKILL)?;
    ensure!(socket.exists());
    director.start(&lab)?;
    ensure!(ask(&lab, &director, &["status"])?.0.status.success());
    director.end(Signal::SIGTERM)?;
    ensure!(!socket.exists(), "the socket outlives an orderly end");

    fs::write(&socket, "not a socket")?;
    let text = refusal(&lab, &mut director)?;
    ensure!(text.contains("a file of this name exists"), "{text}");
    ensure!(fs::read_to_string(&socket)? == "not a socket");
    Ok(())
}

#[test]
fn unprivileged_users_may_query_but_not_change() -> Result<()> {
    let (lab, mut director) = director("glb-t-peer")?;
    let mut config = fs::read_to_string(director.config())?;
    config += "control.mode = \"0666\"\ncontrol.operators = \"4711\"\n";
    fs::write(director.config(), config)?;
    director.start(&lab)?;
    let socket = director.config().with_file_name("control.sock");
    // The parent folders belong to root.
    let as_user = |groups: &str, words: &[&str]| -> Result<(Option<i32>, String)> {
        let mut command = lab.netns(DIRECTOR)?.command("setpriv");
        command.args(["--reuid=65534", "--regid=65534", groups]);
        command.arg(glb_lab::Program::Director.path()?).args(words);
        let output = command::finish(command.arg("--socket").arg(&socket))?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok((output.status.code(), text))
    };
    let (code, text) = as_user("--clear-groups", &["status"])?;
    ensure!(code == Some(0), "{text}");
    let (code, text) = as_user("--clear-groups", &["reload"])?;
    ensure!(code == Some(5) && text.contains("65534") && text.contains("operators"), "{text}");
    let (code, text) = as_user("--groups=4711", &["reload", "--force"])?;
    ensure!(code == Some(0), "{text}");
    Ok(())
}

#[test]
fn a_thousand_silent_connections_do_not_delay_a_reload() -> Result<()> {
    let (lab, mut director) = director("glb-t-crowd")?;
    director.start(&lab)?;
    let socket = director.config().with_file_name("control.sock");
    let crowd: Vec<_> =
        (0..1000).map(|_| UnixStream::connect(&socket)).collect::<Result<_, _>>()?;
    director.reload(&TableFile::new(lab.plan()))?;
    drop(crowd);
    let begun = std::time::Instant::now();
    while !ask(&lab, &director, &["status"])?.0.status.success() {
        ensure!(begun.elapsed() < std::time::Duration::from_secs(20));
    }
    Ok(())
}
