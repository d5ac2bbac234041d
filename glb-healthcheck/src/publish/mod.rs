//! Writes the output table and asks the director to reload, with retries. It runs beside the probes,
//! so a slow disk or a hanging reload command delays no check.

pub(crate) mod agent_drains;
pub(crate) mod foreign;
mod notify;

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use glb_host::{failpoints, watched_file::WatchedFile};
use glb_table::{Format, health_overlay, write_mark};
use tokio::sync::{oneshot, watch};
use tracing::{error, info, warn};

use crate::{
    config::{Config, ReloadMethod},
    engine::TableUpdate,
};
pub use notify::NotifyError;

/// Delay before the first retry; doubled with each failure.
const RETRY_DELAY: Duration = Duration::from_millis(500);
/// Longest delay before a retry.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(30);
/// How often the publisher checks that the output still exists.
const EXISTENCE_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Why the output was not written, or the director not notified.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The health cannot be entered into the input's text.
    #[error("{}", .0.render(false).trim_end())]
    Text(glb_table::LoadError),
    /// The file cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// The writer's thread panicked.
    #[error("the writer's thread failed: {0}")]
    Thread(tokio::task::JoinError),
    /// The director was not notified.
    #[error(transparent)]
    Notify(#[from] NotifyError),
}

/// The results of publishing so far.
#[derive(Clone, Debug, Default)]
pub struct PublishRecord {
    /// Successful writes of the output.
    pub writes: u64,
    /// Failed writes of the output.
    pub write_failures: u64,
    /// Changes of the output by other programs, which were overwritten.
    pub foreign_changes: u64,
    /// Successful reload requests to the director.
    pub reloads: u64,
    /// Failed reload requests to the director.
    pub reload_failures: u64,
    /// Time of the last successful write.
    pub last_write: Option<SystemTime>,
    /// Why the output is not up to date.
    pub write_problem: Option<String>,
    /// Why the director is not up to date.
    pub notify_problem: Option<String>,
}

impl PublishRecord {
    /// Returns the error that prevents publishing now.
    #[must_use]
    pub fn problem(&self) -> Option<&str> {
        self.write_problem.as_deref().or(self.notify_problem.as_deref())
    }
}

/// The delay before the next attempt.
#[derive(Debug, Default)]
struct Retry {
    /// `None` if the last attempt succeeded.
    delay: Option<Duration>,
}

impl Retry {
    /// Waits for news, or until a failed attempt is due for a retry. Returns whether news can still
    /// come.
    async fn wait<T>(&self, news: &mut watch::Receiver<T>) -> bool {
        match self.delay {
            None => news.changed().await.is_ok(),
            Some(delay) => match tokio::time::timeout(delay, news.changed()).await {
                Ok(news) => news.is_ok(),
                Err(_) => true,
            },
        }
    }

    /// Records an attempt's result and returns its error.
    fn record(&mut self, result: Result<(), PublishError>) -> Option<String> {
        let Err(error) = result else {
            self.delay = None;
            return None;
        };
        let delay = self.delay.map_or(RETRY_DELAY, |delay| (delay * 2).min(RETRY_DELAY_MAX));
        error!(%error, retry_in_ms = delay.as_millis(), "publishing failed");
        self.delay = Some(delay);
        Some(error.to_string())
    }
}

/// A [`PublishRecord`] shared between the publisher and the event loop.
#[derive(Clone, Debug, Default)]
pub struct SharedPublishRecord(Arc<Mutex<PublishRecord>>);

impl SharedPublishRecord {
    /// Returns a copy of the current record.
    #[must_use]
    pub fn get(&self) -> PublishRecord {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn edit(&self, change: impl FnOnce(&mut PublishRecord)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// How the director is notified.
#[derive(Clone, Debug)]
pub struct NotifyConfig {
    /// The method; `None` if the director only watches the file.
    pub method: Option<ReloadMethod>,
    /// Time limit of a request.
    pub timeout: Duration,
}

impl NotifyConfig {
    /// Returns the part of a configuration that notifies the director.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        Self { method: config.reload_method.clone(), timeout: config.reload_timeout }
    }
}

/// Writes updates to the output and notifies the director.
#[derive(Clone, Debug)]
pub struct Publisher {
    /// The output table.
    pub output: PathBuf,
    /// How the director is notified; a reload of the configuration may change it.
    pub notify: watch::Receiver<NotifyConfig>,
    /// The record of results.
    pub record: SharedPublishRecord,
}

impl Publisher {
    /// Publishes the newest update until the sender is dropped. Reports the first success over
    /// `first_write`.
    pub async fn run(
        self,
        updates: watch::Receiver<Option<Arc<TableUpdate>>>,
        first_write: oneshot::Sender<()>,
    ) {
        // Two loops: a slow or hanging director delays no write, as it may be watching the file.
        let (written, news) = watch::channel(());
        tokio::join!(self.write_updates(updates, first_write, written), self.notify_director(news));
    }

    async fn write_updates(
        &self,
        mut updates: watch::Receiver<Option<Arc<TableUpdate>>>,
        first_write: oneshot::Sender<()>,
        written: watch::Sender<()>,
    ) {
        let mut first_write = Some(first_write);
        let mut retry = Retry::default();
        let mut exists = false;
        let mut output_file = WatchedFile::watch(&self.output);
        loop {
            // A newer update replaces one that could not be written.
            let goes_on = tokio::select! {
                goes_on = retry.wait(&mut updates) => goes_on,
                () = self.removed(), if exists => {
                    warn!(file = %self.output.display(), "the output was removed: writing it again");
                    true
                }
                // This includes the publisher's own writes, after which `write` finds nothing to do.
                () = output_file.changed(), if exists => true,
            };
            if !goes_on {
                return;
            }
            let Some(update) = updates.borrow_and_update().clone() else { continue };
            let result = self.write(&update, first_write.is_some()).await;
            exists = result.is_ok();
            if let Ok(changed) = result {
                // The director is notified once after the start even if nothing changed: an earlier
                // process may have been killed between its write and its notification.
                let first = first_write.take();
                if changed || first.is_some() {
                    written.send_replace(());
                }
                // The receiver may be gone.
                first.map(|first| first.send(()));
            }
            let problem = retry.record(result.map(drop));
            self.record.edit(|record| record.write_problem = problem);
        }
    }

    /// Waits until the output does not exist.
    async fn removed(&self) {
        loop {
            tokio::time::sleep(EXISTENCE_CHECK_INTERVAL).await;
            let path = self.output.clone();
            let exists = tokio::task::spawn_blocking(move || path.try_exists()).await;
            if matches!(exists, Ok(Ok(false))) {
                return;
            }
        }
    }

    async fn notify_director(&self, mut written: watch::Receiver<()>) {
        let mut retry = Retry::default();
        while retry.wait(&mut written).await {
            written.mark_unchanged();
            let problem = retry.record(self.notify().await);
            self.record.edit(|record| record.notify_problem = problem);
        }
    }

    /// Writes the output if its content differs; returns whether it did. The first write of a process
    /// may replace a table that was in use before the checker.
    async fn write(&self, update: &Arc<TableUpdate>, first: bool) -> Result<bool, PublishError> {
        let (update, path) = (Arc::clone(update), self.output.clone());
        let work = tokio::task::spawn_blocking(move || replace_output(&update, &path, first));
        let result = work.await.map_err(PublishError::Thread).and_then(|result| result);
        let result = result.map(|written| match written {
            Written::No => false,
            Written::Yes => true,
            Written::OverOriginal { copy } => {
                let (file, copy) = (self.output.display(), copy.display());
                warn!(%file, %copy, "the output replaces a table without the checker's mark");
                true
            }
            Written::OverForeignText { copy } => {
                error!(
                    file = %self.output.display(),
                    copy = %copy.display(),
                    "another program changed the output: its version is saved and overwritten"
                );
                self.record.edit(|record| record.foreign_changes += 1);
                true
            }
        });
        match &result {
            Ok(true) => {
                info!(file = %self.output.display(), "output written");
                self.record.edit(|record| {
                    record.writes += 1;
                    record.last_write = Some(SystemTime::now());
                });
            }
            Ok(false) => {}
            Err(_) => self.record.edit(|record| record.write_failures += 1),
        }
        result
    }

    async fn notify(&self) -> Result<(), PublishError> {
        let NotifyConfig { method, timeout } = self.notify.borrow().clone();
        let Some(method) = method else { return Ok(()) };
        let result = notify::notify(&method, timeout).await;
        self.record.edit(|record| match result {
            Ok(()) => record.reloads += 1,
            Err(_) => record.reload_failures += 1,
        });
        Ok(result?)
    }
}

/// The result of a write.
#[derive(Debug)]
enum Written {
    /// The output has this content already.
    No,
    /// The output was written.
    Yes,
    /// The output was written over a table that was in use before the checker.
    OverOriginal {
        /// The saved table.
        copy: PathBuf,
    },
    /// The output was written over another program's version.
    OverForeignText {
        /// The saved version.
        copy: PathBuf,
    },
}

fn replace_output(update: &TableUpdate, path: &Path, first: bool) -> Result<Written, PublishError> {
    let input = &update.input;
    let text = health_overlay::apply(&input.path, &input.text, &update.health)
        .map_err(PublishError::Text)?;
    let origin = std::path::absolute(&input.path).unwrap_or_else(|_| input.path.clone());
    let text = write_mark::add(Format::of_path(path), &text, &origin);
    let failed = |source| PublishError::Write { path: path.to_owned(), source };
    agent_drains::write(path, &update.drains).map_err(failed)?;
    failpoints::point("drains_written").map_err(failed)?;
    let old = fs::read(path).ok();
    if old.as_ref().is_some_and(|old| old == text.as_bytes()) {
        return Ok(Written::No);
    }
    // A new output has the input's permissions, because both contain the same keys.
    let mode = fs::metadata(&input.path).map_or(0o600, |found| found.permissions().mode() & 0o666);
    let written = match old.filter(|old| !foreign::is_own(path, old)) {
        None => Written::Yes,
        Some(old) if first && !foreign::has_mark(path, &old) => Written::OverOriginal {
            copy: foreign::save_original(path, &old, mode).map_err(failed)?,
        },
        Some(old) => {
            Written::OverForeignText { copy: foreign::save(path, &old, mode).map_err(failed)? }
        }
    };
    failpoints::point("write_output").map_err(failed)?;
    glb_table::atomic_file::replace_or_create(path, text.as_bytes(), mode).map_err(failed)?;
    failpoints::point("output_written").map_err(failed)?;
    Ok(written)
}

#[cfg(test)]
mod tests;
