//! Writing the checked table and telling the director, with retries. A slow disk or a hanging
//! command delays no check: this runs beside them.

mod tell;

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use glb_table::checked;
use tokio::sync::{oneshot, watch};
use tracing::{error, info};

use crate::{config::Tell, engine::Decision};
pub use tell::TellError;

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
    /// The director.
    #[error(transparent)]
    Tell(#[from] TellError),
}

/// What has been published so far.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Times that the file was written.
    pub writes: u64,
    /// Times that it could not be.
    pub write_failures: u64,
    /// Times that the director was told.
    pub reloads: u64,
    /// Times that it could not be.
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
    /// How the director is told, if it has to be.
    pub tell: Option<Tell>,
    /// How long that may take.
    pub timeout: Duration,
    /// What has been done.
    pub record: SharedRecord,
}

impl Publisher {
    /// Publishes the newest decision until the sender is gone. Says once when the file is as it should
    /// be for the first time.
    pub async fn run(
        self,
        mut decisions: watch::Receiver<Option<Arc<Decision>>>,
        published: oneshot::Sender<()>,
    ) {
        let mut write: Option<Arc<Decision>> = None;
        // A former checker may have been killed between its write and its word to the director.
        let mut reload = false;
        let mut published = Some(published);
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
                    let first = published.take();
                    reload |= changed || first.is_some();
                    // Whether or not anybody waits for it.
                    first.map(|first| first.send(()));
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
        let Some(tell) = &self.tell else { return Ok(()) };
        let done = tell::tell(tell, self.timeout).await;
        self.record.edit(|record| match done {
            Ok(()) => record.reloads += 1,
            Err(_) => record.reload_failures += 1,
        });
        Ok(done?)
    }
}

fn replace(decision: &Decision, path: &Path) -> Result<bool, PublishError> {
    let source = &decision.source;
    let text = checked::enter(&source.path, &source.text, &decision.findings)
        .map_err(PublishError::Text)?;
    if fs::read(path).is_ok_and(|old| old == text.as_bytes()) {
        return Ok(false);
    }
    // A new file may be read by those who may read the source: both hold the same keys.
    let mode = fs::metadata(&source.path).map_or(0o600, |found| found.permissions().mode() & 0o666);
    glb_table::write::replace_or_create(path, text.as_bytes(), mode)
        .map_err(|source| PublishError::Write { path: path.to_owned(), source })?;
    Ok(true)
}

#[cfg(test)]
mod tests;
