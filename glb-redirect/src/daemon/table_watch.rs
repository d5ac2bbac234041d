//! The directors' table, watched for changes.

use std::path::PathBuf;

use glb_host::table_source;

use crate::config::Config;

/// The table that the configuration names, if it names one.
pub(super) struct TableWatch(Option<(PathBuf, Box<dyn table_source::TableWatch>)>);

impl TableWatch {
    /// Starts to watch the table.
    pub(super) fn start(config: &Config) -> Self {
        Self(config.table.as_ref().map(|table| {
            let location = table.source.location().to_owned();
            (location, table.source.watch())
        }))
    }

    /// Watches the table that a reloaded configuration names, if it is another one.
    pub(super) fn follow_config(&mut self, config: &Config) {
        let watched = self.0.as_ref().map(|(location, _)| location.as_path());
        if watched != config.table.as_ref().map(|table| table.source.location()) {
            *self = Self::start(config);
        }
    }

    /// Returns when the table may have changed. Cancellation loses no change.
    pub(super) async fn changed(&mut self) {
        match &mut self.0 {
            Some((_, watch)) => watch.changed().await,
            None => std::future::pending().await,
        }
    }
}
