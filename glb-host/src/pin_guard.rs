//! Descriptors of what a daemon has pinned: should somebody remove the pins, nothing of it ends, and
//! it can be pinned again.

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

/// Programs, maps and links by where they are to be pinned.
#[derive(Debug, Default)]
pub struct PinGuard(BTreeMap<PathBuf, Kept>);

#[derive(Debug)]
struct Kept {
    object: OwnedFd,
    /// The pin's number: another pin at its place has another one.
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
    /// Holds what is pinned in these folders now, and what was before. What is pinned elsewhere is let
    /// go.
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

    /// Whether something is held that is to be pinned there.
    #[must_use]
    pub fn holds(&self, path: &Path) -> bool {
        self.0.contains_key(path)
    }

    /// Whether the folder is the one that was locked, and all is pinned there that should be.
    #[must_use]
    pub fn are_intact(&self, pins: &PinFolder, lock: &PinLock) -> bool {
        pins.has_marker()
            && lock.is_current(pins)
            && self.0.iter().all(|(path, kept)| kept.is_pinned(path))
    }

    /// Makes the folder again and locks it, should it be gone, and pins again what is not pinned, in
    /// place of whatever is there instead; how many.
    ///
    /// # Errors
    /// When the kernel says no, or another process has the folder now.
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

    /// Lets go of everything: what is not pinned either ends.
    pub fn release(&mut self) {
        self.0.clear();
    }
}
