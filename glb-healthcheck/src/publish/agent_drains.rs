//! The file `OUTPUT.agent-drains`: the backends whose agents ask for draining.
//!
//! In the output such a backend looks like one that the operator drains. An agent reports `drain`
//! only once, so a restarted checker needs this file to tell the two apart.

use std::{
    collections::HashSet,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use glb_table::atomic_file;
use tracing::warn;

/// Returns the path of the file that belongs to `output`.
pub(crate) fn file(output: &Path) -> PathBuf {
    let mut path = output.as_os_str().to_owned();
    path.push(".agent-drains");
    path.into()
}

/// Reads what an earlier process has written.
pub(crate) fn read(output: &Path) -> HashSet<IpAddr> {
    let path = file(output);
    let ignored = |error: &dyn std::fmt::Display| {
        warn!(file = %path.display(), %error, "agents' earlier drain requests are lost");
        HashSet::new()
    };
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return HashSet::new(),
        Err(error) => return ignored(&error),
    };
    serde_json::from_slice(&text).unwrap_or_else(|error| ignored(&error))
}

/// Writes the file. The caller writes the output afterwards: if the process is killed between the
/// two, the output is unchanged, and the agent's next `drain` has its effect again.
pub(super) fn write(output: &Path, drains: &[IpAddr]) -> io::Result<()> {
    let path = file(output);
    if drains.is_empty() {
        return match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
    }
    let text = serde_json::to_vec(drains)?;
    if fs::read(&path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    atomic_file::replace(&path, &text)
}
