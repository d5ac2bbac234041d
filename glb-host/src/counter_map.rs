//! Migrating pinned per-CPU counters to this release's layout; the values are kept as far as they
//! fit.

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
};

use aya::maps::{MapData, MapType};

use crate::{bpf_loader::LoadError, sys};

/// The layout of a pinned per-CPU array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterLayout {
    /// Bytes of an element on each CPU, a multiple of 8.
    pub value: u32,
    /// The number of elements.
    pub entries: u32,
}

/// Returns the pin of the old array, kept while the old program still counts into it.
fn backup_pin(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-before");
    PathBuf::from(name)
}

/// Replaces a pinned per-CPU array of another layout by one of this layout with the same values;
/// returns the old layout as text.
///
/// Longer values are truncated.
///
/// # Errors
/// When it is not a per-CPU array, or the kernel refuses; nothing has changed then.
pub fn migrate(path: &Path, needed: CounterLayout) -> Result<Option<String>, LoadError> {
    if !path.exists() {
        return Ok(None);
    }
    let name = path.to_string_lossy().into_owned();
    let error = |action, source: io::Error| LoadError::map(action, &name, source);
    let old = MapData::from_pin(path).map_err(|e| LoadError::map("open", &name, e))?;
    let info = old.info().map_err(|e| LoadError::map("read", &name, e))?;
    let kind = info.map_type().map_err(|e| LoadError::map("read", &name, e))?;
    let found = CounterLayout { value: info.value_size(), entries: info.max_entries() };
    if matches!(kind, MapType::PerCpuArray) && found == needed {
        return Ok(None);
    }
    let said = format!("{kind:?} of {} × {} bytes", found.entries, found.value);
    let new = sys::per_cpu_array(needed.value, needed.entries)
        .map_err(|source| error("create", source))?;
    if matches!(kind, MapType::PerCpuArray) {
        let cpus = aya::util::nr_cpus().map_err(|(_, source)| error("count CPUs for", source))?;
        let stride = |value: u32| value.next_multiple_of(8) as usize;
        let (mut from, mut to) =
            (vec![0; stride(found.value) * cpus], vec![0; stride(needed.value) * cpus]);
        let length = stride(found.value).min(stride(needed.value));
        for index in 0..found.entries.min(needed.entries) {
            sys::map_lookup(old.fd().as_fd(), index, &mut from)
                .map_err(|source| error("read", source))?;
            if from.iter().all(|byte| *byte == 0) {
                continue;
            }
            let values = from.chunks(stride(found.value)).zip(to.chunks_mut(stride(needed.value)));
            for (from, to) in values {
                to[..length].copy_from_slice(&from[..length]);
            }
            sys::map_update(new.as_fd(), index, &to).map_err(|source| error("write", source))?;
        }
    }
    fs::rename(path, backup_pin(path)).map_err(|source| error("put backup_pin", source))?;
    if let Err(source) = sys::pin(new.as_fd(), path) {
        // Restores the old pin as far as possible.
        fs::rename(backup_pin(path), path).ok();
        return Err(error("pin", source));
    }
    tracing::debug!(fd = new.as_raw_fd(), path = %path.display(), "counters migrated");
    Ok(Some(said))
}

/// Removes the old array after the program that uses the new one is active.
///
/// # Errors
/// When its pin cannot be removed.
pub fn commit(path: &Path) -> io::Result<()> {
    match fs::remove_file(backup_pin(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Finishes or undoes a migration that was interrupted.
///
/// If `in_use` (the maps of the active program) has the new array, the old one is removed;
/// otherwise it is restored.
///
/// # Errors
/// When the kernel refuses.
pub fn recover(path: &Path, in_use: &[u32]) -> io::Result<()> {
    if !backup_pin(path).exists() {
        return Ok(());
    }
    let id = MapData::from_pin(path)
        .and_then(|data| data.info())
        .map(|info| info.id())
        .map_err(io::Error::other);
    match id {
        Ok(id) if in_use.contains(&id) => commit(path),
        _ => fs::rename(backup_pin(path), path),
    }
}
