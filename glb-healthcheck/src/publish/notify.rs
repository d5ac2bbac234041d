//! Asks the director to reload, by a command or over its control socket.

use std::{
    io,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use glb_host::control::{Client, ClientError};
use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tracing::{info, warn};

use crate::config::ReloadMethod;

/// Why a reload request failed.
#[derive(Debug, thiserror::Error)]
pub enum NotifyError {
    /// The reload command cannot be started.
    #[error("cannot run `{command}`: {source}")]
    Start {
        /// The command.
        command: String,
        /// The error.
        source: io::Error,
    },
    /// The reload command failed.
    #[error("`{command}` ended with {status}{}", after_colon(.stderr))]
    Failed {
        /// The command.
        command: String,
        /// Its exit status.
        status: ExitStatus,
        /// The last line of its standard error.
        stderr: String,
    },
    /// The reload command exceeded the time limit.
    #[error("`{command}` did not end within {} ms (`reload_timeout`) and was killed", after.as_millis())]
    Timeout {
        /// The command.
        command: String,
        /// The time limit.
        after: Duration,
    },
    /// The director does not answer, or rejects the table.
    #[error("the director did not reload: {0}")]
    Director(#[from] ClientError),
    /// The request's thread panicked.
    #[error("the thread that asks the director failed: {0}")]
    Thread(tokio::task::JoinError),
}

fn after_colon(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!(": {stderr}") }
}

pub(super) async fn notify(method: &ReloadMethod, limit: Duration) -> Result<(), NotifyError> {
    match method {
        ReloadMethod::Command(command) => {
            run(command, limit).await?;
            info!(command, "reload command succeeded");
        }
        ReloadMethod::ControlSocket(socket) => {
            let socket = socket.clone();
            let request = tokio::task::spawn_blocking(move || request_reload(&socket, limit));
            let ReloadReply { generation, changed, milliseconds, warning } =
                request.await.map_err(NotifyError::Thread)??;
            if !warning.is_empty() {
                warn!(warning, "the director reports a warning");
            }
            // `changed` is false if the director noticed the new file before the request.
            info!(generation, changed, milliseconds, "in force at the director");
        }
    }
    Ok(())
}

/// The director's reload request.
#[derive(Serialize)]
#[serde(tag = "request", rename_all = "snake_case")]
enum Request {
    Reload {},
}

/// The part of the director's reply that is used here.
#[derive(Deserialize)]
struct ReloadReply {
    generation: u64,
    changed: bool,
    milliseconds: f64,
    warning: String,
}

fn request_reload(socket: &Path, limit: Duration) -> Result<ReloadReply, ClientError> {
    Client::connect(socket)?.ask(&Request::Reload {}, limit)
}

async fn run(command: &str, limit: Duration) -> Result<(), NotifyError> {
    let start = |source| NotifyError::Start { command: command.to_owned(), source };
    let child = Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // A process group, so that the shell's child processes can be killed with it.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(start)?;
    let group = child.id();
    match tokio::time::timeout(limit, child.wait_with_output()).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            let stderr = String::from_utf8_lossy(&output.stderr);
            let stderr = stderr.trim().lines().last().unwrap_or_default().to_owned();
            let (command, status) = (command.to_owned(), output.status);
            Err(NotifyError::Failed { command, status, stderr })
        }
        Ok(Err(source)) => Err(start(source)),
        Err(_) => {
            let group = group.and_then(|id| i32::try_from(id).ok());
            if let Some(group) = group {
                use nix::{sys::signal, unistd::Pid};
                if let Err(error) = signal::killpg(Pid::from_raw(group), signal::SIGKILL) {
                    warn!(command, %error, "cannot kill the reload command");
                }
            }
            Err(NotifyError::Timeout { command: command.to_owned(), after: limit })
        }
    }
}
