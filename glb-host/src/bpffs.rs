//! The pin folder: a folder on a BPF file system in which a daemon pins its programs, maps and
//! links.
//!
//! Pinned objects outlive the daemon, so that packets are forwarded while it is stopped or
//! restarts.

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
    /// The path is not on a BPF file system.
    #[error(
        "cannot pin in {}: {} is not on a BPF file system.\n  \
         Mount one (mount -t bpf -o mode=0755 bpf /sys/fs/bpf), or set `bpffs_dir` to a folder on one.",
        folder.display(),
        looked_at.display()
    )]
    NotBpffs {
        /// As configured.
        folder: PathBuf,
        /// The nearest existing folder above the path.
        looked_at: PathBuf,
    },
    /// The folder is a mount point, or holds pins of another program.
    #[error(
        "cannot use pin folder {}: {what}, and a daemon removes everything in its pin folder.\n  \
         Set `bpffs_dir` to a folder of its own, such as /sys/fs/bpf/{owner}.",
        folder.display()
    )]
    NotOwn {
        /// As configured.
        folder: PathBuf,
        /// The fault of the folder.
        what: String,
        /// The program that wanted to use it.
        owner: String,
    },
    /// The path cannot be a pin folder's.
    #[error(
        "cannot use pin folder {}: {why}.\n  Give an absolute path such as /sys/fs/bpf/{owner}.",
        folder.display()
    )]
    BadName {
        /// As configured.
        folder: PathBuf,
        /// The fault of the path.
        why: &'static str,
        /// The program that wanted to use it.
        owner: String,
    },
    /// A system call failed.
    #[error(
        "pin folder {}: cannot {action} {}: {source}{}", folder.display(), path.display(),
        hint(source, folder)
    )]
    Io {
        /// As configured.
        folder: PathBuf,
        /// The attempted action.
        action: &'static str,
        /// The path of the attempt.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Another daemon has locked this folder.
    #[error(
        "cannot lock pin folder {}: {owner} holds it.\n  \
         Stop that daemon first (its pinned program goes on forwarding), or give this daemon a \
         folder of its own.",
        folder.display()
    )]
    Locked {
        /// As configured.
        folder: PathBuf,
        /// The process that holds the lock, as far as it is known.
        owner: String,
    },
}

/// Returns the advice for an I/O error.
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

/// Only the owner may open the folder: a process that can open it can lock it.
const MODE: u32 = 0o700;

/// A folder on a BPF file system that belongs to one program.
///
/// A marker inside names the program. A folder that is not empty and has no marker belongs to
/// somebody else and is never touched.
#[derive(Clone, Debug)]
pub struct PinFolder {
    path: PathBuf,
    owner: String,
}

/// The lock on a pin folder; the kernel releases it when the daemon dies.
#[derive(Debug)]
pub struct PinLock(Flock<fs::File>);

impl PinLock {
    /// Returns whether the folder is still the one that was locked, and not a new one of the same
    /// name.
    #[must_use]
    pub fn is_current(&self, pins: &PinFolder) -> bool {
        let identity = |found: fs::Metadata| (found.dev(), found.ino());
        let locked = self.0.metadata().map(identity).ok();
        locked.is_some() && fs::metadata(&pins.path).map(identity).ok() == locked
    }
}

impl PinFolder {
    /// Creates the folder if it is missing, checks it, and writes `owner`'s marker.
    ///
    /// # Errors
    /// When it is not on a BPF file system, belongs to another program, or cannot be created.
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
        // On a file system that all users may write to, another one may have created it meanwhile.
        folder.check_user()?;
        folder.close()?;
        folder.write_marker()?;
        Ok(folder)
    }

    /// Creates the folder again after it has been removed.
    pub(crate) fn create_again(&self) -> Result<Self, PinFolderError> {
        Self::create(&self.path, &self.owner)
    }

    fn new(path: &Path, owner: &str) -> Self {
        Self { path: path.to_owned(), owner: owner.to_owned() }
    }

    /// Writes the marker that names the folder's owner.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn write_marker(&self) -> Result<(), PinFolderError> {
        let marker = self.marker();
        fs::create_dir_all(&marker).map_err(|source| self.error("make", &marker, source))
    }

    /// Checks that the folder is a real one of this process's user or of root: its owner can replace
    /// pins.
    fn check_user(&self) -> Result<(), PinFolderError> {
        let found = fs::symlink_metadata(&self.path)
            .map_err(|source| self.error("read", &self.path, source))?;
        let (user, own) = (found.uid(), nix::unistd::geteuid().as_raw());
        let what = if !found.is_dir() {
            "it is not a folder".to_owned()
        } else if user != own && user != 0 {
            format!(
                "user {user} owns it, and this process is user {own}. If that user took the name, \
                 remove the folder and forbid it (chmod 0755 on the BPF file system's mount point)"
            )
        } else {
            return Ok(());
        };
        let (folder, owner) = (self.path.clone(), self.owner.clone());
        Err(PinFolderError::NotOwn { folder, what, owner })
    }

    /// Restricts the mode of a folder that an administrator or a former release created.
    fn close(&self) -> Result<(), PinFolderError> {
        let found =
            fs::metadata(&self.path).map_err(|source| self.error("look at", &self.path, source))?;
        if found.mode() & 0o7777 == MODE {
            return Ok(());
        }
        fs::set_permissions(&self.path, fs::Permissions::from_mode(MODE))
            .map_err(|source| self.error("set the mode of", &self.path, source))
    }

    /// Runs the checks of [`PinFolder::create`] without creating anything.
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

    /// Opens the folder; returns `None` if it does not exist.
    ///
    /// # Errors
    /// When it is not on a BPF file system, or not `owner`'s.
    pub fn open(path: &Path, owner: &str) -> Result<Option<Self>, PinFolderError> {
        if !path.is_dir() {
            return Ok(None);
        }
        Self::check_file_system(path, path)?;
        let folder = Self::new(path, owner);
        folder.check_owner(false)?;
        Ok(Some(folder))
    }

    /// Returns whether the folder has its owner's marker.
    #[must_use]
    pub fn has_marker(&self) -> bool {
        self.marker().is_dir()
    }

    fn marker(&self) -> PathBuf {
        self.path.join(format!("owned-by-{}", self.owner))
    }

    /// Checks that the path components to create are valid names on a BPF file system.
    fn check_name(path: &Path, existing: &Path, owner: &str) -> Result<(), PinFolderError> {
        let wrong = |why| {
            Err(PinFolderError::BadName { folder: path.to_owned(), why, owner: owner.to_owned() })
        };
        if path.components().any(|part| matches!(part, Component::ParentDir)) {
            return wrong("`..` in the path could lead out of the BPF file system");
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
            return error("it is the mount point of a BPF file system".into());
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
            Some(name) => error(format!("it holds `{name}`, which {owner} did not create")),
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

    /// Removes the folder and everything in it.
    ///
    /// If the folder itself may not be removed (an administrator created it for the daemon's user),
    /// it stays, empty.
    ///
    /// # Errors
    /// When the kernel refuses.
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

    /// Mounts a BPF file system in a mount namespace of the calling thread, for tests and
    /// benchmarks.
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
        // This is where BPF file systems are mounted. Another place (such as /tmp) might hide files
        // that the test needs.
        let folder = Path::new("/sys/fs/bpf");
        mount(Some("bpf"), folder, Some("bpf"), MsFlags::empty(), none)?;
        Self::create(&folder.join("pins"), "tests").map_err(io::Error::other)
    }

    /// Creates a folder inside this one, and this one with its marker if it has been removed.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn make(&self, path: &Path) -> Result<(), PinFolderError> {
        self.write_marker()?;
        fs::create_dir_all(path).map_err(|source| self.error("make", path, source))
    }

    /// Removes a folder inside this one with all pins in it. A missing folder is not an error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&self, path: &Path) -> Result<(), PinFolderError> {
        match fs::remove_dir_all(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(self.error("remove", path, source))
            }
            _ => Ok(()),
        }
    }

    /// Locks the folder for this process.
    ///
    /// # Errors
    /// When another process has locked it.
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

    /// Returns the folder's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns a path inside the folder.
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

/// Describes the process that holds the folder's lock.
///
/// The kernel only names processes of this PID namespace.
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

    /// Runs `test` on a BPF file system that also holds another program's folder.
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
    fn folders_of_other_programs_are_refused() {
        beside(|root| {
            refused(PinFolder::create(root, "me"), "mount point");
            refused(PinFolder::create(&root.join("others"), "me"), "`precious`");
            assert!(PinFolder::open(&root.join("others"), "me").is_err());
            let own = PinFolder::create(&root.join("mine/deep"), "me").unwrap();
            refused(PinFolder::create(own.path(), "you"), "it belongs to me");
            assert!(PinFolder::open(own.path(), "you").is_err());
            // Creating it again is fine; after a removal it is gone.
            PinFolder::create(own.path(), "me").unwrap();
            PinFolder::open(own.path(), "me").unwrap().unwrap().remove_all().unwrap();
            assert!(PinFolder::open(own.path(), "me").unwrap().is_none());
        });
    }

    #[test]
    fn the_folder_is_closed_to_other_users() {
        beside(|root| {
            let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
            let folder = PinFolder::create(&root.join("new"), "me").unwrap();
            assert_eq!(mode(folder.path()), 0o700);
            // A folder with another mode: of a former release, or changed by an administrator.
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
    fn folders_of_other_users_are_refused_on_a_bpffs_of_any_mode() {
        beside(|root| {
            fs::set_permissions(root, fs::Permissions::from_mode(0o1777)).unwrap();
            let taken = root.join("taken");
            fs::create_dir(&taken).unwrap();
            std::os::unix::fs::chown(&taken, Some(4711), Some(4711)).unwrap();
            refused(PinFolder::create(&taken, "me"), "user 4711 owns it");
            assert!(!taken.join("owned-by-me").exists());
            let link = root.join("link");
            std::os::unix::fs::symlink(&taken, &link).unwrap();
            refused(PinFolder::create(&link, "me"), "not a folder");
            PinFolder::create(&root.join("free"), "me").unwrap();
        });
    }

    #[test]
    fn invalid_paths_are_refused() {
        beside(|root| {
            refused(PinFolder::create(&root.join("a.b"), "me"), "no dots");
            refused(PinFolder::create(&root.join("a/../../b"), "me"), "`..`");
            assert!(!root.join("a").exists());
        });
    }
}
