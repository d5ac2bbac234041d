//! Where a daemon takes its forwarding table from.
//!
//! A [`TableSource`] reads the table's document and tells when it has changed; the daemons know
//! nothing else about it. [`open`] is the one place that decides which source a configured location
//! means. Today that is always a [`TableFile`].
//!
//! ```no_run
//! # async fn follow() -> Result<(), glb_table::LoadError> {
//! let source = glb_host::table_source::open("/etc/glb/table.toml".as_ref());
//! let mut watch = source.watch();
//! let mut document = source.read()?;
//! loop {
//!     println!("{} tables", document.parse()?.tables.len());
//!     watch.changed().await;
//!     document = source.read()?;
//! }
//! # }
//! ```

use std::{
    fmt,
    future::Future,
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use glb_table::{Format, LoadError, TableSet};
use sha2::{Digest as _, Sha256};
use tracing::warn;

use crate::{permission, watched_file::WatchedFile};

/// The SHA-256 digest of a table document.
pub type DocumentDigest = [u8; 32];

/// A place that a table can be read from.
pub trait TableSource: fmt::Debug + Send + Sync {
    /// The configured location, for messages.
    fn location(&self) -> &Path;

    /// Reads the table's document.
    ///
    /// # Errors
    /// When the source cannot be read now.
    fn read(&self) -> Result<TableDocument, LoadError>;

    /// Begins to watch for changes.
    fn watch(&self) -> Box<dyn TableWatch>;
}

/// Waits for changes of a table source.
pub trait TableWatch: Send {
    /// Returns when the source may have changed. The future can be dropped and asked for again; no
    /// change is lost.
    fn changed(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

/// The source that a configured location means.
#[must_use]
pub fn open(location: &Path) -> Arc<dyn TableSource> {
    Arc::new(TableFile::new(location))
}

/// A table's text, as it was read from its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableDocument {
    /// The location that it was read from; its extension tells the syntax.
    pub path: PathBuf,
    /// The text.
    pub bytes: Vec<u8>,
    /// The text's digest: two documents with one digest are the same table.
    pub digest: DocumentDigest,
}

impl TableDocument {
    /// A document with this text.
    #[must_use]
    pub fn new(path: &Path, bytes: Vec<u8>) -> Self {
        let digest = Sha256::digest(&bytes).into();
        Self { path: path.to_owned(), bytes, digest }
    }

    /// Parses and validates the text.
    ///
    /// # Errors
    /// When the text is not a valid table.
    pub fn parse(&self) -> Result<TableSet, LoadError> {
        glb_table::parse_bytes(&self.path, Format::of_path(&self.path), &self.bytes)
    }

    /// Parses and validates the text, and logs the table's warnings.
    ///
    /// # Errors
    /// When the text is not a valid table.
    pub fn parse_and_warn(&self) -> Result<TableSet, LoadError> {
        let tables = self.parse()?;
        if !tables.warnings.is_empty() {
            let warnings = glb_table::render(&tables.warnings, false);
            warn!(table = %self.path.display(), "the table has warnings:\n{}", warnings.trim_end());
        }
        Ok(tables)
    }

    /// The text as UTF-8.
    ///
    /// # Errors
    /// When it is not UTF-8.
    pub fn text(&self) -> Result<&str, LoadError> {
        std::str::from_utf8(&self.bytes).map_err(|error| {
            let source = io::Error::new(io::ErrorKind::InvalidData, error);
            LoadError::Io { path: self.path.clone(), source }
        })
    }
}

/// A table file on this machine.
#[derive(Debug)]
pub struct TableFile {
    path: PathBuf,
    /// The warning about the file's mode has been logged; it would be the same at every read.
    has_warned: AtomicBool,
}

impl TableFile {
    /// The table file at `path`, which need not exist yet.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), has_warned: AtomicBool::new(false) }
    }
}

impl TableSource for TableFile {
    fn location(&self) -> &Path {
        &self.path
    }

    fn read(&self) -> Result<TableDocument, LoadError> {
        let bytes = glb_table::read_bytes(&self.path)?;
        if let Some(mode) = permission::world_readable_mode(&self.path)
            && !self.has_warned.swap(true, Ordering::Relaxed)
        {
            let path = self.path.display();
            warn!(
                "the hash keys in {path} can be read by everybody on this machine (mode {mode:o}): run \
                 `chmod o-r {path}`, after making sure that the daemon's own user or group can still \
                 read it"
            );
        }
        Ok(TableDocument::new(&self.path, bytes))
    }

    fn watch(&self) -> Box<dyn TableWatch> {
        Box::new(FileWatch(WatchedFile::watch(&self.path)))
    }
}

struct FileWatch(WatchedFile);

impl TableWatch for FileWatch {
    fn changed(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(self.0.changed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_source_reads_what_was_written_and_reports_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table.toml");
        std::fs::write(&path, "one").unwrap();
        let source = open(&path);
        let mut watch = source.watch();
        let first = source.read().unwrap();
        assert_eq!((first.text().unwrap(), source.location()), ("one", &*path));
        std::fs::write(&path, "another").unwrap();
        watch.changed().await;
        let second = source.read().unwrap();
        assert_eq!(second.text().unwrap(), "another");
        assert_ne!(first.digest, second.digest);
        assert_eq!(second, TableDocument::new(&path, b"another".to_vec()));
    }

    #[test]
    fn a_missing_file_is_an_error_that_names_it() {
        let error = open(Path::new("/nowhere/table.toml")).read().unwrap_err();
        assert!(error.render(false).contains("/nowhere/table.toml"), "{}", error.render(false));
    }
}
