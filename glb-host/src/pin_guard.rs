//! Guards a daemon's pins: descriptors keep the pinned objects alive if somebody removes the pins,
//! so that they can be pinned again.

use std::{
    collections::BTreeMap,
    fs, io,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use crate::{
    bpffs::{PinFolder, PinFolderError, PinLock},
    sys,
};

/// Descriptors of pinned programs, maps and links, by path.
#[derive(Debug, Default)]
pub struct PinGuard(BTreeMap<PathBuf, Kept>);

#[derive(Debug)]
struct Kept {
    object: OwnedFd,
    /// The pin's inode: another pin with the same path has another one.
    inode: Option<u64>,
}

impl Kept {
    fn is_pinned(&self, path: &Path) -> bool {
        let inode = inode(path);
        inode.is_some() && inode == self.inode
    }
}

fn inode(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path).map(|found| found.ino()).ok()
}

impl PinGuard {
    /// Holds everything that is pinned in these folders now or was before; releases pins elsewhere.
    ///
    /// # Errors
    /// When a pin cannot be opened.
    pub fn hold(&mut self, pins: &PinFolder, folders: &[PathBuf]) -> Result<(), PinFolderError> {
        self.0.retain(|path, _| folders.iter().any(|folder| path.starts_with(folder)));
        for folder in folders {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                let inode = inode(&path);
                match sys::open_pin(&path) {
                    Ok(object) => drop(self.0.insert(path, Kept { object, inode })),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(pins.error("open", &path, error)),
                }
            }
        }
        Ok(())
    }

    /// Returns whether an object for this path is held.
    #[must_use]
    pub fn holds(&self, path: &Path) -> bool {
        self.0.contains_key(path)
    }

    /// Returns whether the folder is the locked one and has all pins.
    #[must_use]
    pub fn are_intact(&self, pins: &PinFolder, lock: &PinLock) -> bool {
        pins.has_marker()
            && lock.is_current(pins)
            && self.0.iter().all(|(path, kept)| kept.is_pinned(path))
    }

    /// Recreates and locks the folder if it is gone, and pins missing objects again; returns how
    /// many.
    ///
    /// Anything else in a pin's place is replaced.
    ///
    /// # Errors
    /// When the kernel refuses, or another process has locked the folder.
    pub fn repin(&mut self, pins: &PinFolder, lock: &mut PinLock) -> Result<usize, PinFolderError> {
        if lock.is_current(pins) {
            pins.write_marker()?;
        } else {
            *lock = pins.create_again()?.lock()?;
        }
        let mut count = 0;
        for (path, kept) in self.0.iter_mut().filter(|(path, kept)| !kept.is_pinned(path)) {
            pins.make(path.parent().unwrap_or(Path::new("/")))?;
            match fs::remove_file(path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(pins.error("remove", path, source));
                }
                _ => {}
            }
            crate::pin(&kept.object, path)
                .map_err(|source| pins.error("pin again", path, source))?;
            kept.inode = inode(path);
            count += 1;
        }
        Ok(count)
    }

    /// Closes all descriptors: objects without a pin end.
    pub fn release(&mut self) {
        self.0.clear();
    }
}
