//! The folder on a BPF file system in which a daemon pins its objects: it is what makes them
//! outlive the daemon.

use std::{
    fs, io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    },
    path::{Component, Path, PathBuf},
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
        "`bpffs_dir = \"{}\"`: {} is not on a BPF file system, so nothing can be pinned there.\n  \
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
    /// The folder is the whole file system, or holds what others pinned.
    #[error(
        "`bpffs_dir = \"{}\"`: {what}, and a daemon removes whatever is in its pin folder.\n  \
         Give it a folder of its own: a new one, such as /sys/fs/bpf/{owner}.",
        folder.display()
    )]
    NotOwn {
        /// As configured.
        folder: PathBuf,
        /// What is wrong with it.
        what: String,
        /// Who wanted it.
        owner: String,
    },
    /// The name cannot be one of a pin folder.
    #[error(
        "`bpffs_dir = \"{}\"`: {why}.\n  Give an absolute path such as /sys/fs/bpf/{owner}.",
        folder.display()
    )]
    BadName {
        /// As configured.
        folder: PathBuf,
        /// What is wrong with it.
        why: &'static str,
        /// Who wanted it.
        owner: String,
    },
    /// A system call said no.
    #[error(
        "`bpffs_dir = \"{}\"`: cannot {action} {}: {source}{}", folder.display(), path.display(),
        hint(source, folder)
    )]
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
        "`bpffs_dir = \"{}\"`: {owner} holds this folder.\n  \
         A daemon that runs there has to be stopped first (the pinned program goes on forwarding); \
         a second daemon needs a folder of its own.",
        folder.display()
    )]
    Locked {
        /// As configured.
        folder: PathBuf,
        /// Who, as far as the kernel says.
        owner: String,
    },
}

/// What mends a refusal.
fn hint(source: &io::Error, folder: &Path) -> String {
    let folder = folder.display();
    match source.kind() {
        io::ErrorKind::PermissionDenied => {
            let (user, group) = (nix::unistd::geteuid(), nix::unistd::getegid());
            format!(
                ".\n  This process is user {user}; as root:\n  \
                 mkdir -p {folder} && chown -R {user}:{group} {folder}\n  \
                 (the folders above it need `chmod o+x`)"
            )
        }
        io::ErrorKind::StorageFull => {
            ".\n  The BPF file system is full or has no inodes left.".into()
        }
        _ => String::new(),
    }
}

/// Nobody but the owner may open the folder: whoever can open it can lock it.
const MODE: u32 = 0o700;

/// A folder on a BPF file system that belongs to one program. A marker inside says to which: what is
/// in a folder without it is somebody else's and is never touched.
#[derive(Clone, Debug)]
pub struct PinFolder {
    path: PathBuf,
    owner: String,
}

/// Held while a daemon owns its pin folder; the kernel lets go of it when the daemon dies.
#[derive(Debug)]
pub struct PinLock(Flock<fs::File>);

impl PinLock {
    /// Whether the folder is still the one that was locked, and not one that somebody made in its
    /// place.
    #[must_use]
    pub fn is_current(&self, pins: &PinFolder) -> bool {
        let identity = |found: fs::Metadata| (found.dev(), found.ino());
        let locked = self.0.metadata().map(identity).ok();
        locked.is_some() && fs::metadata(&pins.path).map(identity).ok() == locked
    }
}

impl PinFolder {
    /// Makes the folder if it is missing, checks that pins can live in it, and marks it as
    /// `owner`'s.
    ///
    /// # Errors
    /// When it is not on a BPF file system, belongs to somebody else, or cannot be made.
    pub fn create(path: &Path, owner: &str) -> Result<Self, PinFolderError> {
        let existing = path
            .ancestors()
            .find(|folder| folder.is_dir())
            .map_or_else(|| PathBuf::from("/"), Path::to_path_buf);
        Self::check_name(path, &existing, owner)?;
        Self::check_file_system(path, &existing)?;
        let folder = Self::new(path, owner);
        if existing == path {
            folder.check_owner(true)?;
        }
        if let Some(above) = path.parent() {
            fs::create_dir_all(above).map_err(|source| folder.error("make", above, source))?;
        }
        match fs::DirBuilder::new().mode(MODE).create(path) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                return Err(folder.error("make", path, source));
            }
            _ => {}
        }
        folder.close()?;
        folder.write_marker()?;
        Ok(folder)
    }

    /// As [`PinFolder::create`], of this same folder, which somebody has removed.
    pub(crate) fn create_again(&self) -> Result<Self, PinFolderError> {
        Self::create(&self.path, &self.owner)
    }

    fn new(path: &Path, owner: &str) -> Self {
        Self { path: path.to_owned(), owner: owner.to_owned() }
    }

    /// Marks the folder as its owner's; it is known to be.
    ///
    /// # Errors
    /// When the kernel says no.
    pub fn write_marker(&self) -> Result<(), PinFolderError> {
        let marker = self.marker();
        fs::create_dir_all(&marker).map_err(|source| self.error("make", &marker, source))
    }

    /// Closes a folder to strangers that was made by somebody else, or by a former release.
    fn close(&self) -> Result<(), PinFolderError> {
        let found =
            fs::metadata(&self.path).map_err(|source| self.error("look at", &self.path, source))?;
        if found.mode() & 0o7777 == MODE {
            return Ok(());
        }
        fs::set_permissions(&self.path, fs::Permissions::from_mode(MODE))
            .map_err(|source| self.error("set the mode of", &self.path, source))
    }

    /// Whether `create` would find no fault with the folder; makes nothing.
    ///
    /// # Errors
    /// As [`PinFolder::create`].
    pub fn check(path: &Path, owner: &str) -> Result<(), PinFolderError> {
        let existing = path
            .ancestors()
            .find(|folder| folder.is_dir())
            .map_or_else(|| PathBuf::from("/"), Path::to_path_buf);
        Self::check_name(path, &existing, owner)?;
        Self::check_file_system(path, &existing)?;
        if existing == path { Self::new(path, owner).check_owner(true) } else { Ok(()) }
    }

    /// The folder, if it is there.
    ///
    /// # Errors
    /// When it is there but not on a BPF file system, or not `owner`'s.
    pub fn open(path: &Path, owner: &str) -> Result<Option<Self>, PinFolderError> {
        if !path.is_dir() {
            return Ok(None);
        }
        Self::check_file_system(path, path)?;
        let folder = Self::new(path, owner);
        folder.check_owner(false)?;
        Ok(Some(folder))
    }

    /// Whether the marker is there that says whose the folder is.
    #[must_use]
    pub fn has_marker(&self) -> bool {
        self.marker().is_dir()
    }

    fn marker(&self) -> PathBuf {
        self.path.join(format!("owned-by-{}", self.owner))
    }

    /// What is to be made below `existing` must have names that a BPF file system takes.
    fn check_name(path: &Path, existing: &Path, owner: &str) -> Result<(), PinFolderError> {
        let wrong = |why| {
            Err(PinFolderError::BadName { folder: path.to_owned(), why, owner: owner.to_owned() })
        };
        if path.components().any(|part| matches!(part, Component::ParentDir)) {
            return wrong("`..` in it could lead out of the BPF file system");
        }
        let new = path.strip_prefix(existing).unwrap_or(path);
        if new.to_string_lossy().contains('.') {
            return wrong("a BPF file system allows no dots in names");
        }
        Ok(())
    }

    fn check_owner(&self, may_be_empty: bool) -> Result<(), PinFolderError> {
        let owner = &self.owner;
        let error = |what: String| {
            Err(PinFolderError::NotOwn { folder: self.path.clone(), what, owner: owner.to_owned() })
        };
        let device = |path: &Path| fs::metadata(path).map(|found| found.dev());
        let outside = self.path.parent().map(device).transpose();
        let is_mount = device(&self.path).ok() != outside.ok().flatten();
        if is_mount {
            return error("it is a whole BPF file system".into());
        }
        if self.has_marker() {
            return Ok(());
        }
        let entries =
            fs::read_dir(&self.path).map_err(|source| self.error("read", &self.path, source))?;
        let names: Vec<String> = entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        if let Some(other) = names.iter().find_map(|name| name.strip_prefix("owned-by-")) {
            return error(format!("it belongs to {other}"));
        }
        match names.first() {
            Some(name) => error(format!("it holds `{name}`, which {owner} did not put there")),
            None if may_be_empty => Ok(()),
            None => error(format!("{owner} has never used it")),
        }
    }

    fn check_file_system(folder: &Path, existing: &Path) -> Result<(), PinFolderError> {
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

    /// Removes the folder with everything in it; it was marked as its program's own when it was
    /// opened. Where the folder itself may not be removed, because it was made for a user that may
    /// not write beside it, it stays, empty.
    ///
    /// # Errors
    /// When the kernel says no.
    pub fn remove_all(&self) -> Result<(), PinFolderError> {
        let error = |source| self.error("read", &self.path, source);
        match fs::read_dir(&self.path) {
            Ok(entries) => {
                for entry in entries {
                    self.remove(&entry.map_err(error)?.path())?;
                }
            }
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(error(source)),
        }
        match fs::remove_dir(&self.path) {
            Err(source) if source.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(self.error("remove", &self.path, source)),
            Ok(()) => Ok(()),
        }
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
        // Where BPF file systems are mounted: over any other place, something that is needed might
        // be hidden (a checkout below /tmp, say).
        let folder = Path::new("/sys/fs/bpf");
        mount(Some("bpf"), folder, Some("bpf"), MsFlags::empty(), none)?;
        Self::create(&folder.join("pins"), "tests").map_err(io::Error::other)
    }

    /// Makes a folder inside this one; and this one, marked, should somebody have removed it.
    ///
    /// # Errors
    /// When the kernel says no.
    pub fn make(&self, path: &Path) -> Result<(), PinFolderError> {
        self.write_marker()?;
        fs::create_dir_all(path).map_err(|source| self.error("make", path, source))
    }

    /// Removes a folder inside this one with all pins in it. What is not there is
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
        match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => {
                tracing::debug!(folder = %self.path.display(), fd = lock.as_raw_fd(), "pin folder locked");
                Ok(PinLock(lock))
            }
            Err((folder, Errno::EWOULDBLOCK)) => {
                drop(folder);
                let owner = lock_owner(&self.path);
                Err(PinFolderError::Locked { folder: self.path.clone(), owner })
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

    pub(crate) fn error(
        &self,
        action: &'static str,
        path: &Path,
        source: io::Error,
    ) -> PinFolderError {
        PinFolderError::Io { folder: self.path.clone(), action, path: path.to_owned(), source }
    }
}

/// Who holds the lock of this folder, in words. The kernel says so to whoever lives in the same process
/// namespace.
fn lock_owner(folder: &Path) -> String {
    let ours = fs::metadata(folder).map(|found| format!(":{}", found.ino()));
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let holder = ours.ok().and_then(|ours| {
        // "1: FLOCK  ADVISORY  WRITE 4711 00:1f:23 0 EOF"
        let mut lines = locks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let line = lines.find(|line| {
            line.get(1) == Some(&"FLOCK") && line.get(5).is_some_and(|file| file.ends_with(&ours))
        })?;
        line.get(4).filter(|id| **id != "0").map(|id| (*id).to_owned())
    });
    crate::describe_process(&holder.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// Runs `test` with a BPF file system that holds a folder of somebody else's.
    fn beside(test: impl FnOnce(&Path) + Send + 'static) {
        let run = move || {
            let pins = PinFolder::private().expect("this test mounts: run it as root");
            let root = pins.path().parent().unwrap().to_owned();
            fs::create_dir(root.join("others")).unwrap();
            fs::create_dir(root.join("others/precious")).unwrap();
            test(&root);
            assert!(root.join("others/precious").is_dir());
        };
        if let Err(panic) = thread::spawn(run).join() {
            std::panic::resume_unwind(panic);
        }
    }

    fn refused(result: Result<PinFolder, PinFolderError>, words: &str) {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(words), "{words:?} is missing in: {error}");
    }

    #[test]
    fn what_is_not_our_own_is_never_taken() {
        beside(|root| {
            refused(PinFolder::create(root, "me"), "a whole BPF file system");
            refused(PinFolder::create(&root.join("others"), "me"), "`precious`");
            assert!(PinFolder::open(&root.join("others"), "me").is_err());
            let own = PinFolder::create(&root.join("mine/deep"), "me").unwrap();
            refused(PinFolder::create(own.path(), "you"), "it belongs to me");
            assert!(PinFolder::open(own.path(), "you").is_err());
            // Once more, and after a removal.
            PinFolder::create(own.path(), "me").unwrap();
            PinFolder::open(own.path(), "me").unwrap().unwrap().remove_all().unwrap();
            assert!(PinFolder::open(own.path(), "me").unwrap().is_none());
        });
    }

    #[test]
    fn strangers_cannot_lock_it() {
        beside(|root| {
            let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
            let folder = PinFolder::create(&root.join("new"), "me").unwrap();
            assert_eq!(mode(folder.path()), 0o700);
            // Of a former release, or of an administrator who meant well.
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
            let folder = PinFolder::create(folder.path(), "me").unwrap();
            assert_eq!(mode(folder.path()), 0o700);
            let _lock = folder.lock().unwrap();
            let error = folder.lock().unwrap_err().to_string();
            let id = format!("process {} (", std::process::id());
            assert!(error.contains(&id), "{error}");
        });
    }

    #[test]
    fn names_that_cannot_be_are_named() {
        beside(|root| {
            refused(PinFolder::create(&root.join("a.b"), "me"), "no dots");
            refused(PinFolder::create(&root.join("a/../../b"), "me"), "`..`");
            assert!(!root.join("a").exists());
        });
    }
}
