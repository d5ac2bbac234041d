//! The directors' table, watched.

use std::path::PathBuf;

use glb_host::watched_file::WatchedFile;

use crate::config::Config;

/// The table file that fellow backends are read from, if there is one.
pub(super) struct Table(Option<(PathBuf, WatchedFile)>);

impl Table {
    pub(super) fn watch(config: &Config) -> Self {
        Self(config.table.as_ref().map(|table| {
            let path = table.path.clone();
            let file = WatchedFile::watch(&path);
            (path, file)
        }))
    }

    /// Watches the file that the configuration names now.
    pub(super) fn follow(&mut self, config: &Config) {
        let watched = self.0.as_ref().map(|(path, _)| path);
        if watched != config.table.as_ref().map(|table| &table.path) {
            *self = Self::watch(config);
        }
    }

    /// Returns when the file is another one. Nothing is lost if it is given up half-way.
    pub(super) async fn changed(&mut self) {
        match &mut self.0 {
            Some((_, file)) => file.changed().await,
            None => std::future::pending().await,
        }
    }
}
