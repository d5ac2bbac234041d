//! The `control` table of a daemon's configuration.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::SocketSettings;

/// The `control` table as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawControlConfig {
    socket: Option<PathBuf>,
    mode: String,
    group: Option<String>,
    operators: Option<String>,
}

impl Default for RawControlConfig {
    fn default() -> Self {
        Self { socket: None, mode: "0660".into(), group: None, operators: None }
    }
}

/// The validated `control` table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlConfig {
    /// The socket's path and permissions.
    pub place: SocketSettings,
    /// The group whose members may request changes, besides root and the daemon's own user.
    pub operators: Option<String>,
}

impl RawControlConfig {
    /// Validates the table.
    ///
    /// A relative path is relative to `folder`, that of the configuration; `usual` is the default
    /// path.
    ///
    /// # Errors
    /// The field, its value and what would be right.
    pub fn check(
        self,
        folder: &Path,
        usual: &str,
    ) -> Result<ControlConfig, (&'static str, String, &'static str)> {
        let mode = u32::from_str_radix(&self.mode, 8).ok().filter(|mode| *mode <= 0o777);
        let Some(mode) = mode else {
            let value = format!("{:?}", self.mode);
            return Err(("control.mode", value, "give an octal number such as \"0660\""));
        };
        let socket = folder.join(self.socket.unwrap_or_else(|| usual.into()));
        let path = std::path::absolute(&socket).unwrap_or(socket);
        Ok(ControlConfig {
            place: SocketSettings { path, mode, group: self.group },
            operators: self.operators,
        })
    }
}
