//! Whose agents want no new connections, kept beside the checked table: there a backend that the
//! operator drains looks the same, and an agent says its wish only once.

use std::{
    collections::HashSet,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use glb_table::atomic_file;
use tracing::warn;

/// The file of a checked table.
pub(crate) fn file(checked: &Path) -> PathBuf {
    let mut path = checked.as_os_str().to_owned();
    path.push(".drains");
    path.into()
}

/// What a former checker has left.
pub(crate) fn read(checked: &Path) -> HashSet<IpAddr> {
    let path = file(checked);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return HashSet::new(),
        Err(error) => {
            warn!("{}: {error}: no agent's wish is remembered", path.display());
            return HashSet::new();
        }
    };
    serde_json::from_slice(&text).unwrap_or_else(|error| {
        warn!("{}: {error}: no agent's wish is remembered", path.display());
        HashSet::new()
    })
}

/// Leaves it for the next one, before the table says it: after a kill between the two the table is as
/// it was, and the agent asks again.
pub(super) fn write(checked: &Path, drains: &[IpAddr]) -> io::Result<()> {
    let path = file(checked);
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
