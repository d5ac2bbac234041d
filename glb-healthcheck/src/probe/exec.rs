//! The `exec` check: runs a command, which passes with exit status 0.

use std::process::Stdio;

use tokio::process::Command;

use super::{CurrentStep, Failure};
use crate::{check::Target, config::ExecUser};

/// The command's search path; the daemon's own environment is not passed on.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(super) async fn run(
    target: &Target,
    command: &[String],
    user: Option<ExecUser>,
    step: &CurrentStep,
) -> Result<(), Failure> {
    step.set("command");
    let failed = |source| Failure::Io { step: "command", source };
    let (program, arguments) =
        command.split_first().ok_or_else(|| Failure::Setup("the command is empty".into()))?;
    let mut process = Command::new(program);
    if let Some(ExecUser { uid, gid }) = user.filter(|user| user.uid != own_uid()) {
        // This also clears the supplementary groups; the new user has no capabilities.
        process.uid(uid).gid(gid);
    }
    let mut child = process
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .env("GLB_BACKEND", target.address.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // A process group, so that a timeout also kills the command's child processes.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let mut group = ProcessGroup(child.id());
    let status = child.wait().await.map_err(failed)?;
    group.0 = None;
    if status.success() { Ok(()) } else { Err(Failure::Command(status)) }
}

fn own_uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// Kills the command's process group when it is dropped before the command has ended.
struct ProcessGroup(Option<u32>);

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        use nix::{sys::signal, unistd::Pid};
        if let Some(group) = self.0.and_then(|id| i32::try_from(id).ok()) {
            // The command may have ended in the meantime.
            signal::killpg(Pid::from_raw(group), signal::SIGKILL).ok();
        }
    }
}
