//! The table file as it was read.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Once,
};

use glb_host::permission;
use glb_table::{Format, LoadError, TableSet};
use sha2::{Digest as _, Sha256};
use tracing::warn;

use super::{
    Error,
    state_dir::{Record, Sum},
};

/// A table file's contents.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) bytes: Vec<u8>,
    pub(super) sum: Sum,
}

impl Source {
    /// Reads the file.
    pub(super) fn read(path: &Path) -> Result<Self, Error> {
        // Said once: it is the same at every reload.
        static SAID: Once = Once::new();
        let bytes = glb_table::read_bytes(path).map_err(Error::Table)?;
        if let Some(mode) = permission::world_readable_mode(path) {
            let path = path.display();
            SAID.call_once(|| {
                warn!(
                    "{path} holds hash keys and can be read by everybody on this machine (mode \
                     {mode:o}); `chmod o-r {path}` ends that, the daemon's user or group must keep it"
                );
            });
        }
        Ok(Self::new(path, bytes))
    }

    /// What a record says that the file was.
    pub(super) fn of(record: &Record) -> Self {
        Self::new(&record.path, record.text.clone().into_bytes())
    }

    fn new(path: &Path, bytes: Vec<u8>) -> Self {
        let sum = Sha256::digest(&bytes).into();
        Self { path: path.to_owned(), bytes, sum }
    }

    /// What it means.
    pub(super) fn tables(&self) -> Result<TableSet, Error> {
        glb_table::parse_bytes(&self.path, Format::of_path(&self.path), &self.bytes)
            .map_err(Error::Table)
    }

    /// What it means; doubts are logged.
    pub(super) fn parse(&self) -> Result<TableSet, Error> {
        let tables = self.tables()?;
        if !tables.warnings.is_empty() {
            warn!("{}", glb_table::render(&tables.warnings, false).trim_end());
        }
        Ok(tables)
    }

    /// As a record of a generation.
    pub(super) fn record(&self, number: u64, release: &str) -> Result<Record, Error> {
        let text = String::from_utf8(self.bytes.clone()).map_err(|error| {
            let source = io::Error::new(io::ErrorKind::InvalidData, error);
            Error::Table(LoadError::Io { path: self.path.clone(), source })
        })?;
        Ok(Record { number, path: self.path.clone(), text, release: release.to_owned() })
    }
}
