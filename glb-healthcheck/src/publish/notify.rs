//! Telling the director that there is a new table: by a command, or at its control socket.

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

use crate::config::Tell;

/// Why the director was not told.
#[derive(Debug, thiserror::Error)]
pub enum TellError {
    /// The reload command cannot be started.
    #[error("cannot run `{command}`: {source}")]
    Start {
        /// The command.
        command: String,
        /// Why not.
        source: io::Error,
    },
    /// The reload command failed.
    #[error("`{command}` ended with {status}{}", said(.stderr))]
    Failed {
        /// The command.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it said.
        stderr: String,
    },
    /// The reload command hangs.
    #[error("`{command}` did not end within {} ms and was killed", after.as_millis())]
    Hangs {
        /// The command.
        command: String,
        /// The limit.
        after: Duration,
    },
    /// The director is not there, or refuses the table.
    #[error("the director did not take the table: {0}")]
    Director(#[from] ClientError),
    /// The thread that asks it.
    #[error("the thread that asks the director broke down: {0}")]
    Thread(tokio::task::JoinError),
}

fn said(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!(": {stderr}") }
}

pub(super) async fn tell(how: &Tell, limit: Duration) -> Result<(), TellError> {
    match how {
        Tell::Command(command) => {
            run(command, limit).await?;
            info!(command, "reload command done");
        }
        Tell::Director(socket) => {
            let socket = socket.clone();
            let asked = tokio::task::spawn_blocking(move || ask(&socket, limit));
            let Done { generation, changed, milliseconds, warning } =
                asked.await.map_err(TellError::Thread)??;
            if !warning.is_empty() {
                warn!("the director warns: {warning}");
            }
            // It may have seen the new file before it was asked.
            info!(generation, changed, milliseconds, "in force at the director");
        }
    }
    Ok(())
}

/// What is asked of the director.
#[derive(Serialize)]
#[serde(tag = "request", rename_all = "snake_case")]
enum Request {
    Reload {},
}

/// So much of its answer is used here.
#[derive(Deserialize)]
struct Done {
    generation: u64,
    changed: bool,
    milliseconds: f64,
    warning: String,
}

fn ask(socket: &Path, limit: Duration) -> Result<Done, ClientError> {
    Client::connect(socket)?.ask(&Request::Reload {}, limit)
}

async fn run(command: &str, limit: Duration) -> Result<(), TellError> {
    let start = |source| TellError::Start { command: command.to_owned(), source };
    let child = Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // A group of its own, so that what the shell started ends with it.
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
            Err(TellError::Failed { command, status, stderr })
        }
        Ok(Err(source)) => Err(start(source)),
        Err(_) => {
            let group = group.and_then(|id| i32::try_from(id).ok());
            if let Some(group) = group {
                use nix::{sys::signal, unistd::Pid};
                if let Err(problem) = signal::killpg(Pid::from_raw(group), signal::SIGKILL) {
                    warn!(command, %problem, "the hanging command was not killed");
                }
            }
            Err(TellError::Hangs { command: command.to_owned(), after: limit })
        }
    }
}
