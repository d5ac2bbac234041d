//! The folder on a BPF file system in which a daemon pins its objects: it is what makes them
//! outlive the daemon.

use std::{
    fs, io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

/// Why a pin folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PinFolderError {
    /// Nothing is mounted there that can hold pins.
    #[error(
        "`pin = \"{}\"`: {} is not on a BPF file system, so nothing can be pinned there.\n  \
         Mount one (mount -t bpf bpf /sys/fs/bpf) or name a folder on one.",
        folder.display(),
        looked_at.display()
    )]
    NotBpffs {
        /// As configured.
        folder: PathBuf,
        /// The nearest folder that exists.
        looked_at: PathBuf,
    },
    /// A system call said no.
    #[error("`pin = \"{}\"`: cannot {action} {}: {source}", folder.display(), path.display())]
    Io {
        /// As configured.
        folder: PathBuf,
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another daemon works with this folder.
    #[error(
        "`pin = \"{}\"`: another process holds this folder.\n  \
         Stop it first (it keeps forwarding while it is restarted), or give this one a folder of \
         its own.",
        folder.display()
    )]
    Locked {
        /// As configured.
        folder: PathBuf,
    },
}

/// A folder on a BPF file system.
#[derive(Clone, Debug)]
pub struct PinFolder {
    path: PathBuf,
}

/// Held while a daemon owns its pin folder; the kernel lets go of it when the daemon dies.
#[derive(Debug)]
pub struct PinLock(#[expect(dead_code, reason = "held for its effect")] Flock<OwnedFd>);

impl PinFolder {
    /// Makes the folder if it is missing and checks that pins can live in it.
    ///
    /// # Errors
    /// When it is not on a BPF file system or cannot be made.
    pub fn create(path: &Path) -> Result<Self, PinFolderError> {
        let existing = path
            .ancestors()
            .find(|folder| folder.is_dir())
            .map_or_else(|| PathBuf::from("/"), Path::to_path_buf);
        Self::check(path, &existing)?;
        let folder = Self { path: path.to_owned() };
        folder.make(path)?;
        Ok(folder)
    }

    /// A folder on a BPF file system of its own, for tests and benchmarks: nobody else sees it, and
    /// it goes with the thread that calls this (whose mount namespace becomes its own).
    ///
    /// # Errors
    /// Without the permission to mount.
    pub fn private() -> io::Result<Self> {
        use nix::{
            mount::{MsFlags, mount},
            sched::{CloneFlags, unshare},
        };
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        let folder = std::env::temp_dir();
        mount(Some("bpf"), &folder, Some("bpf"), MsFlags::empty(), none)?;
        Self::create(&folder.join("pins")).map_err(io::Error::other)
    }

    /// The folder, if it is there.
    ///
    /// # Errors
    /// When it is there but not on a BPF file system.
    pub fn open(path: &Path) -> Result<Option<Self>, PinFolderError> {
        if !path.is_dir() {
            return Ok(None);
        }
        Self::check(path, path)?;
        Ok(Some(Self { path: path.to_owned() }))
    }

    fn check(folder: &Path, existing: &Path) -> Result<(), PinFolderError> {
        let found = statfs(existing).map_err(|errno| PinFolderError::Io {
            folder: folder.to_owned(),
            action: "look at",
            path: existing.to_owned(),
            source: errno.into(),
        })?;
        if found.filesystem_type() == BPF_FS_MAGIC {
            Ok(())
        } else {
            Err(PinFolderError::NotBpffs {
                folder: folder.to_owned(),
                looked_at: existing.to_owned(),
            })
        }
    }

    /// Makes a folder inside this one (or this one).
    ///
    /// # Errors
    /// When the kernel says no.
    pub fn make(&self, path: &Path) -> Result<(), PinFolderError> {
        fs::create_dir_all(path).map_err(|source| self.error("make", path, source))
    }

    /// Removes a folder inside this one (or this one) with all pins in it. What is not there is
    /// not an error.
    ///
    /// # Errors
    /// When the kernel says no.
    pub fn remove(&self, path: &Path) -> Result<(), PinFolderError> {
        match fs::remove_dir_all(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(self.error("remove", path, source))
            }
            _ => Ok(()),
        }
    }

    /// Takes the folder for this process.
    ///
    /// # Errors
    /// When another process has it.
    pub fn lock(&self) -> Result<PinLock, PinFolderError> {
        let folder =
            fs::File::open(&self.path).map_err(|source| self.error("open", &self.path, source))?;
        match Flock::lock(OwnedFd::from(folder), FlockArg::LockExclusiveNonblock) {
            Ok(lock) => {
                tracing::debug!(folder = %self.path.display(), fd = lock.as_raw_fd(), "pin folder locked");
                Ok(PinLock(lock))
            }
            Err((_, Errno::EWOULDBLOCK)) => {
                Err(PinFolderError::Locked { folder: self.path.clone() })
            }
            Err((_, errno)) => Err(self.error("lock", &self.path, errno.into())),
        }
    }

    /// The folder itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A place inside the folder.
    #[must_use]
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    fn error(&self, action: &'static str, path: &Path, source: io::Error) -> PinFolderError {
        PinFolderError::Io { folder: self.path.clone(), action, path: path.to_owned(), source }
    }
}
