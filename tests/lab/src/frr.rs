//! FRR on a director: zebra reads the kernel's routes, bgpd announces them, bfdd watches the router.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use nix::unistd::{User, chown};

use crate::{
    bgp_daemons,
    daemons::Program,
    plan::{AnnounceMethod, Node},
    topology::Lab,
};

/// The folder of FRR's daemons on Debian.
const DAEMONS: &str = "/usr/lib/frr";

/// The configuration of one of FRR's daemons on a director.
pub(crate) fn config(program: Program, node: Node) -> String {
    let (id, id6, router) = (node.v4(), node.v6(), Node::Router.v4());
    match program {
        Program::Bgpd => format!(
            "router bgp 65010
 bgp router-id {id}
 no bgp ebgp-requires-policy
 no bgp default ipv4-unicast
 neighbor {router} remote-as 65001
 neighbor {router} bfd
 neighbor {router} timers connect 1
 address-family ipv4 unicast
  redistribute kernel route-map VIPS
  neighbor {router} activate
 exit-address-family
 address-family ipv6 unicast
  redistribute kernel route-map VIPS
  neighbor {router} activate
  neighbor {router} route-map SIX out
 exit-address-family
!
route-map VIPS permit 10
 match interface {tun}
!
route-map SIX permit 10
 set ipv6 next-hop global {id6}
!
",
            tun = bgp_daemons::TUN,
        ),
        Program::Bfdd => format!(
            "bfd
 peer {router}
  receive-interval 50
  transmit-interval 50
  detect-multiplier 3
 !
!
"
        ),
        _ => String::new(),
    }
}

/// The command that starts an FRR daemon.
pub(crate) fn command(lab: &Lab, program: Program, node: Node, config: &Path) -> Result<Command> {
    let path = Path::new(DAEMONS).join(program.name());
    if !path.is_file() {
        bail!(
            "not found: {}; `./x setup` installs it, or: apt-get install --no-install-recommends frr",
            path.display()
        );
    }
    let folder = folder(lab, node)?;
    let mut frr = lab.netns(node)?.command(path);
    frr.arg("-f").arg(config).arg("-z").arg(folder.join("zserv")).arg("--vty_socket").arg(&folder);
    frr.arg("-i").arg(folder.join(program.name()).with_extension("pid"));
    // No telnet port; the log goes to stdout, where the lab collects logs.
    frr.args(["-P", "0", "--log", "stdout"]);
    if program == Program::Bfdd {
        frr.arg("--bfdctl").arg(folder.join("bfdd.sock"));
    }
    Ok(frr)
}

/// Returns whether an FRR daemon answers.
pub(crate) fn is_ready(lab: &Lab, program: Program, node: Node) -> Result<bool> {
    let terminal = folder(lab, node)?.join(program.name()).with_extension("vty");
    Ok(UnixStream::connect(terminal).is_ok())
}

/// The folder of FRR's sockets. The daemons run as a separate user.
fn folder(lab: &Lab, node: Node) -> Result<PathBuf> {
    debug_assert_eq!(lab.plan().method, AnnounceMethod::Frr);
    let folder = lab.folder(node)?.join("frr");
    if !folder.is_dir() {
        let user = User::from_name("frr")?.context("no user frr: FRR's package makes it")?;
        fs::create_dir(&folder)?;
        chown(&folder, Some(user.uid), Some(user.gid))?;
    }
    Ok(folder)
}
