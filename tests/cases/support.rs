//! Helpers shared by several test files.

use std::{net::SocketAddr, process::Command, sync::OnceLock, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use glb_lab::{
    Daemon, Family, Fleet, GitClone, INTERFACE, Lab, Node, Plan, client, command, http, interrupt,
    repository, vip,
};

/// Builds the daemons and the lab's program. Cargo does not know that these tests run them, and
/// stale binaries would prove nothing.
pub(crate) fn build() -> Result<()> {
    static BUILT: OnceLock<Result<(), String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build.current_dir(env!("CARGO_MANIFEST_DIR"));
        // The whole workspace is built, because building a part would recompile shared dependencies
        // with other features.
        build.args(["build", "--quiet", "--locked", "--bins", "--workspace"]);
        command::run(build.args(["--exclude", "glb-ebpf"])).map_err(|error| format!("{error:#}"))
    });
    built.clone().map_err(anyhow::Error::msg)
}

/// A fleet with slow client links, so that a clone takes about five seconds.
pub(crate) fn fleet(name: &str) -> Result<Fleet> {
    build()?;
    Fleet::up(Plan { client_mbit: Some(40), ..Plan::new(name) }, 24, true)
}

/// Requests the VIP's page from client address `number`.
pub(crate) fn ask(lab: &Lab, family: Family, number: u16) -> Result<http::Reply> {
    let to = SocketAddr::new(vip(family), 80);
    http::get_in(lab.netns(Node::Client)?, client(family, number), to, "/")
}

/// Sends requests from many addresses over both families. Every request must be answered.
pub(crate) fn ask_everybody(lab: &Lab) -> Result<()> {
    for number in 100..120 {
        for family in [Family::V4, Family::V6] {
            ask(lab, family, number)?;
        }
    }
    Ok(())
}

/// Sends requests from many addresses over both families. Every request must be answered, and every
/// backend must answer some.
pub(crate) fn everybody_answers(lab: &Lab) -> Result<()> {
    let mut answers = std::collections::BTreeMap::<_, u32>::new();
    for number in 100..120 {
        for family in [Family::V4, Family::V6] {
            *answers.entry(ask(lab, family, number)?.to_string()).or_default() += 1;
        }
    }
    ensure!(answers.len() == usize::from(lab.plan().backends), "{answers:?}");
    Ok(())
}

/// Waits until the clone has reached this share.
pub(crate) fn reaches(clone: &mut GitClone, percent: u8) -> Result<()> {
    interrupt::wait(&format!("{percent} % of the clone"), Duration::from_secs(30), || {
        if clone.percent()? >= percent {
            return Ok(Some(()));
        }
        if let Some((status, _)) = clone.finished()? {
            bail!("the clone ended with {status}: {:?}", clone.complaints()?);
        }
        Ok(None)
    })
}

/// Waits for the end of the clone, which must be complete.
pub(crate) fn ends_well(clone: &mut GitClone, fleet: &Fleet) -> Result<()> {
    let limit = Duration::from_secs(60);
    let (status, _) = interrupt::wait("the end of the clone", limit, || clone.finished())?;
    ensure!(status.success(), "{:?}", clone.complaints()?);
    ensure!(repository::head(clone.target())? == fleet.head);
    command::run(repository::in_repository(clone.target()).args(["fsck", "--full"]))
}

/// Returns whether an XDP program is attached to the node's interface.
pub(crate) fn has_program(lab: &Lab, node: Node) -> Result<bool> {
    let mut ip = lab.netns(node)?.command("ip");
    let shown = command::output(ip.args(["-details", "link", "show", "dev", INTERFACE]))?;
    Ok(shown.contains("prog/xdp"))
}

/// Returns the kernel's id of the program on a node's interface.
pub(crate) fn program_id(lab: &Lab, node: Node) -> Result<u32> {
    let mut ip = lab.netns(node)?.command("ip");
    let shown = command::output(ip.args(["-details", "link", "show", "dev", INTERFACE]))?;
    let after = shown.split("prog/xdp id ").nth(1).context("no program")?;
    Ok(after.split_whitespace().next().context("no number")?.parse()?)
}

/// Starts a daemon that must fail, and returns its output. It must end quickly with exit status 1,
/// without a panic and without colours.
pub(crate) fn refusal(lab: &Lab, daemon: &mut Daemon) -> Result<String> {
    daemon.spawn(lab)?;
    let process = daemon.process()?;
    let status = process.wait(Duration::from_secs(10))?;
    let log = process.log()?;
    ensure!(status.code() == Some(1), "it ended with {status}: {log}");
    ensure!(!log.contains("panicked"), "{log}");
    ensure!(!log.contains('\u{1b}'), "{log:?}");
    ensure!(!log.contains("error: error"), "{log}");
    Ok(log)
}
