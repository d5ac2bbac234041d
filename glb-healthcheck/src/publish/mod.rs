//! Writing the checked table and telling the director, with retries. A slow disk or a hanging
//! command delays no check: this runs beside them.

pub(crate) mod drains;
mod notify;

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use glb_table::health_overlay;
use tokio::sync::{oneshot, watch};
use tracing::{error, info, warn};

use crate::{config::Tell, engine::Decision};
pub use notify::TellError;

/// First wait after a failure; doubled each time.
const RETRY: Duration = Duration::from_millis(500);
/// Longest wait after a failure.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// How often it is looked whether the table is still there.
const LOOK: Duration = Duration::from_secs(1);

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
    /// Why the file is not as it should be.
    pub not_written: Option<String>,
    /// Why the director was not told of it.
    pub not_told: Option<String>,
}

impl Record {
    /// What stands in the way now.
    #[must_use]
    pub fn trouble(&self) -> Option<&str> {
        self.not_written.as_deref().or(self.not_told.as_deref())
    }
}

/// Waits for something to do, or until what failed may be tried again.
#[derive(Debug, Default)]
struct Retry {
    /// How long to wait; None if nothing failed.
    wait: Option<Duration>,
}

impl Retry {
    /// Returns whether there is anything to do ever again.
    async fn wait<T>(&self, news: &mut watch::Receiver<T>) -> bool {
        match self.wait {
            None => news.changed().await.is_ok(),
            Some(wait) => match tokio::time::timeout(wait, news.changed()).await {
                Ok(news) => news.is_ok(),
                Err(_) => true,
            },
        }
    }

    /// Takes what came of it; returns what stands in the way.
    fn after(&mut self, done: Result<(), PublishError>) -> Option<String> {
        let Err(problem) = done else {
            self.wait = None;
            return None;
        };
        let wait = self.wait.map_or(RETRY, |wait| (wait * 2).min(RETRY_MAX));
        error!(again_in_ms = wait.as_millis(), "{problem}");
        self.wait = Some(wait);
        Some(problem.to_string())
    }
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
        decisions: watch::Receiver<Option<Arc<Decision>>>,
        published: oneshot::Sender<()>,
    ) {
        // A director that takes its time, or hangs, delays no write: it may be watching the file.
        let (written, news) = watch::channel(());
        tokio::join!(self.write_all(decisions, published, written), self.tell_all(news));
    }

    async fn write_all(
        &self,
        mut decisions: watch::Receiver<Option<Arc<Decision>>>,
        published: oneshot::Sender<()>,
        written: watch::Sender<()>,
    ) {
        let mut published = Some(published);
        let mut retry = Retry::default();
        let mut is_there = false;
        loop {
            // What is newer replaces what could not be written.
            let goes_on = tokio::select! {
                goes_on = retry.wait(&mut decisions) => goes_on,
                () = self.gone(), if is_there => {
                    warn!(file = %self.checked.display(), "somebody removed the checked table: it is written anew");
                    true
                }
            };
            if !goes_on {
                return;
            }
            let Some(decision) = decisions.borrow_and_update().clone() else { continue };
            let done = self.write(&decision).await;
            is_there = done.is_ok();
            if let Ok(changed) = done {
                // A former checker may have been killed between its write and its word to the
                // director.
                let first = published.take();
                if changed || first.is_some() {
                    written.send_replace(());
                }
                // Whether or not anybody waits for it.
                first.map(|first| first.send(()));
            }
            let trouble = retry.after(done.map(drop));
            self.record.edit(|record| record.not_written = trouble);
        }
    }

    /// Waits until the table is not there.
    async fn gone(&self) {
        loop {
            tokio::time::sleep(LOOK).await;
            let path = self.checked.clone();
            let there = tokio::task::spawn_blocking(move || path.try_exists()).await;
            if matches!(there, Ok(Ok(false))) {
                return;
            }
        }
    }

    async fn tell_all(&self, mut written: watch::Receiver<()>) {
        let mut retry = Retry::default();
        while retry.wait(&mut written).await {
            written.mark_unchanged();
            let trouble = retry.after(self.reload().await);
            self.record.edit(|record| record.not_told = trouble);
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
        let done = notify::tell(tell, self.timeout).await;
        self.record.edit(|record| match done {
            Ok(()) => record.reloads += 1,
            Err(_) => record.reload_failures += 1,
        });
        Ok(done?)
    }
}

fn replace(decision: &Decision, path: &Path) -> Result<bool, PublishError> {
    let source = &decision.source;
    let text = health_overlay::apply(&source.path, &source.text, &decision.findings)
        .map_err(PublishError::Text)?;
    let failed = |source| PublishError::Write { path: path.to_owned(), source };
    drains::write(path, &decision.drains).map_err(failed)?;
    if fs::read(path).is_ok_and(|old| old == text.as_bytes()) {
        return Ok(false);
    }
    // A new file may be read by those who may read the source: both hold the same keys.
    let mode = fs::metadata(&source.path).map_or(0o600, |found| found.permissions().mode() & 0o666);
    glb_table::atomic_file::replace_or_create(path, text.as_bytes(), mode).map_err(failed)?;
    Ok(true)
}

#[cfg(test)]
mod tests;
