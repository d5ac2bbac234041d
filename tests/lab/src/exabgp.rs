//! ExaBGP on a director, which receives its announcements through a pipe.

use std::{fs, path::Path, process::Command};

use anyhow::Result;
use nix::{sys::stat::Mode, unistd::mkfifo};

use crate::{command, plan::Node, topology::Lab};

/// ExaBGP looks for its pipes in /run only.
const PIPES: [&str; 2] = ["exabgp.in", "exabgp.out"];

/// The folder of a director that ExaBGP sees as /run.
pub(crate) const RUN: &str = "exabgp-run";

/// The configuration of the ExaBGP on `node`.
pub(crate) fn config(node: Node) -> String {
    format!(
        "neighbor {router} {{
  router-id {id};
  local-address {id};
  local-as 65010;
  peer-as 65001;
  family {{ ipv4 unicast; ipv6 unicast; }}
}}
",
        id = node.v4(),
        router = Node::Router.v4(),
    )
}

/// The command that starts ExaBGP.
pub(crate) fn command(lab: &Lab, node: Node, config: &Path) -> Result<Command> {
    command::require(&[("exabgp", "exabgp")])?;
    let run = lab.folder(node)?.join(RUN);
    if !run.is_dir() {
        fs::create_dir(&run)?;
        for pipe in PIPES {
            mkfifo(&run.join(pipe), Mode::S_IRUSR | Mode::S_IWUSR)?;
        }
    }
    fs::copy(config, run.join("exabgp.conf"))?;
    let mut unshare = lab.netns(node)?.command("unshare");
    unshare.args([
        "--mount",
        "sh",
        "-c",
        "mount --bind \"$0\" /run && exec exabgp /run/exabgp.conf",
    ]);
    unshare.arg(run);
    unshare.envs([("exabgp_daemon_drop", "false"), ("exabgp_daemon_user", "root")]);
    // The lab reads this output to detect that ExaBGP is ready.
    unshare.env("exabgp_log_destination", "stdout");
    Ok(unshare)
}
