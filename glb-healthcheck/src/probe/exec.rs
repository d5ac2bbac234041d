//! A command of the operator's: status 0 passes.

use std::process::Stdio;

use tokio::process::Command;

use super::{Failure, Step};
use crate::check::Target;

pub(super) async fn run(target: &Target, command: &[String], step: &Step) -> Result<(), Failure> {
    step.set("command");
    let failed = |source| Failure::Io { step: "command", source };
    let (program, arguments) =
        command.split_first().ok_or_else(|| Failure::Setup("no command".into()))?;
    let mut child = Command::new(program)
        .args(arguments)
        .env("GLB_BACKEND", target.address.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // A group of its own, so that a timeout ends what it started too.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let mut group = Group(child.id());
    let status = child.wait().await.map_err(failed)?;
    group.0 = None;
    if status.success() { Ok(()) } else { Err(Failure::Command(status)) }
}

/// Kills the group if the command has not ended.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        use nix::{sys::signal, unistd::Pid};
        if let Some(group) = self.0.and_then(|id| i32::try_from(id).ok()) {
            // It may have ended just now.
            signal::killpg(Pid::from_raw(group), signal::SIGKILL).ok();
        }
    }
}
