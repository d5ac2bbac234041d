//! Pinned per-CPU counters of another shape than this release's: what they have counted is taken over
//! as far as it fits.

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
};

use aya::maps::{MapData, MapType};

use crate::{bpf_loader::LoadError, sys};

/// A pinned per-CPU array that this release makes otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterLayout {
    /// Bytes of an element on each CPU, a multiple of 8.
    pub value: u32,
    /// Elements.
    pub entries: u32,
}

/// What is in the way of the counters' new place while the old program still counts at the old one.
fn backup_pin(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-before");
    PathBuf::from(name)
}

/// If a per-CPU array of another shape is pinned at `path`, puts it backup_pin and pins one of this shape
/// with its values; says what was there. Values that are longer than an element here are cut off.
///
/// # Errors
/// When it is no such array at all, or the kernel says no; nothing has changed then.
pub fn migrate(path: &Path, needed: CounterLayout) -> Result<Option<String>, LoadError> {
    if !path.exists() {
        return Ok(None);
    }
    let name = path.to_string_lossy().into_owned();
    let error = |action, source: io::Error| LoadError::map(action, &name, source);
    let old = MapData::from_pin(path).map_err(|e| LoadError::map("open", &name, e))?;
    let info = old.info().map_err(|e| LoadError::map("look at", &name, e))?;
    let kind = info.map_type().map_err(|e| LoadError::map("look at", &name, e))?;
    let found = CounterLayout { value: info.value_size(), entries: info.max_entries() };
    if matches!(kind, MapType::PerCpuArray) && found == needed {
        return Ok(None);
    }
    let said = format!("{kind:?} of {} × {} bytes", found.entries, found.value);
    let new = sys::per_cpu_array(needed.value, needed.entries)
        .map_err(|source| error("make anew", source))?;
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
        // As it was, as far as that can be had.
        fs::rename(backup_pin(path), path).ok();
        return Err(error("pin", source));
    }
    tracing::debug!(fd = new.as_raw_fd(), path = %path.display(), "counters made anew");
    Ok(Some(said))
}

/// The old array goes: the program that counts in the new one is in force.
///
/// # Errors
/// When its pin cannot be removed.
pub fn commit(path: &Path) -> io::Result<()> {
    match fs::remove_file(backup_pin(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// If an array was put backup_pin by somebody who did not come to an end, takes it back, unless `in_use`
/// (the maps of the program in force) has the new one.
///
/// # Errors
/// When the kernel says no.
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
