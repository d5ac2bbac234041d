//! Writing the checked table and telling the director, with retries. A slow disk or a hanging
//! command delays no check: this runs beside them.

use std::{
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use glb_table::checked;
use tokio::{process::Command, sync::watch};
use tracing::{error, info, warn};

use crate::engine::Decision;

/// First wait after a failure; doubled each time.
const RETRY: Duration = Duration::from_millis(500);
/// Longest wait after a failure.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Why the checked table was not written or the director not told.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The source's text cannot carry the findings.
    #[error("{}", .0.render(false).trim_end())]
    Text(glb_table::LoadError),
    /// The disk.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The writer's thread.
    #[error("the writer broke down: {0}")]
    Thread(tokio::task::JoinError),
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
}

fn said(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!(": {stderr}") }
}

/// What has been published so far.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Times that the file was written.
    pub writes: u64,
    /// Times that it could not be.
    pub write_failures: u64,
    /// Times that the reload command ended well.
    pub reloads: u64,
    /// Times that it did not.
    pub reload_failures: u64,
    /// When the file was last written.
    pub last_write: Option<SystemTime>,
    /// What stands in the way now.
    pub trouble: Option<String>,
}

/// A record that can be read while publishing goes on.
#[derive(Clone, Debug, Default)]
pub struct SharedRecord(Arc<Mutex<Record>>);

impl SharedRecord {
    /// The record as it is now.
    #[must_use]
    pub fn get(&self) -> Record {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn edit(&self, change: impl FnOnce(&mut Record)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Where the checked table goes, and who is told.
#[derive(Clone, Debug)]
pub struct Publisher {
    /// The checked table.
    pub checked: PathBuf,
    /// The reload command, if there is one.
    pub command: Option<String>,
    /// How long it may take.
    pub timeout: Duration,
    /// What has been done.
    pub record: SharedRecord,
}

impl Publisher {
    /// Publishes the newest decision until the sender is gone.
    pub async fn run(self, mut decisions: watch::Receiver<Option<Arc<Decision>>>) {
        let mut write: Option<Arc<Decision>> = None;
        // A former checker may have been killed between its write and its reload command.
        let mut reload = false;
        let mut first = true;
        let mut wait = RETRY;
        loop {
            if write.is_none() && !reload {
                if decisions.changed().await.is_err() {
                    return;
                }
                write.clone_from(&decisions.borrow_and_update());
            }
            let done = if let Some(decision) = &write {
                let done = self.write(decision).await;
                if let Ok(changed) = done {
                    reload |= changed || first;
                    first = false;
                    write = None;
                }
                done.map(drop)
            } else {
                let done = self.reload().await;
                reload &= done.is_err();
                done
            };
            match done {
                Ok(()) => {
                    wait = RETRY;
                    self.record.edit(|record| record.trouble = None);
                }
                Err(problem) => {
                    error!(again_in_ms = wait.as_millis(), "{problem}");
                    self.record.edit(|record| record.trouble = Some(problem.to_string()));
                    if let Ok(gone) = tokio::time::timeout(wait, decisions.changed()).await {
                        if gone.is_err() {
                            return;
                        }
                        decisions.mark_changed();
                    }
                    wait = (wait * 2).min(RETRY_MAX);
                }
            }
            // What is newer replaces what could not be written.
            if decisions.has_changed().unwrap_or(false) {
                write.clone_from(&decisions.borrow_and_update());
            }
        }
    }

    /// Writes the table if it differs from what stands there; returns whether it did.
    async fn write(&self, decision: &Arc<Decision>) -> Result<bool, PublishError> {
        let (decision, path) = (Arc::clone(decision), self.checked.clone());
        let work = tokio::task::spawn_blocking(move || replace(&decision, &path));
        let done = work.await.map_err(PublishError::Thread).and_then(|done| done);
        match &done {
            Ok(true) => {
                info!(file = %self.checked.display(), "checked table written");
                self.record.edit(|record| {
                    record.writes += 1;
                    record.last_write = Some(SystemTime::now());
                });
            }
            Ok(false) => {}
            Err(_) => self.record.edit(|record| record.write_failures += 1),
        }
        done
    }

    async fn reload(&self) -> Result<(), PublishError> {
        let Some(command) = &self.command else { return Ok(()) };
        let done = run_command(command, self.timeout).await;
        self.record.edit(|record| match done {
            Ok(()) => record.reloads += 1,
            Err(_) => record.reload_failures += 1,
        });
        if done.is_ok() {
            info!(command, "reload command done");
        }
        done
    }
}

fn replace(decision: &Decision, path: &Path) -> Result<bool, PublishError> {
    let source = &decision.source;
    let text = checked::enter(&source.path, &source.text, &decision.findings)
        .map_err(PublishError::Text)?;
    if std::fs::read(path).is_ok_and(|old| old == text.as_bytes()) {
        return Ok(false);
    }
    glb_table::write::replace(path, text.as_bytes())
        .map_err(|source| PublishError::Write { path: path.to_owned(), source })?;
    Ok(true)
}

async fn run_command(command: &str, limit: Duration) -> Result<(), PublishError> {
    let start = |source| PublishError::Start { command: command.to_owned(), source };
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
            Err(PublishError::Failed { command, status, stderr })
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
            Err(PublishError::Hangs { command: command.to_owned(), after: limit })
        }
    }
}

#[cfg(test)]
mod tests;
