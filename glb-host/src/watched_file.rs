//! Noticing that a file (the table) has changed, however it was written: over the old one, in its place
//! by a rename, or by a symbolic link that leads elsewhere.
//!
//! inotify tells at once that something happened in one of the folders on the way to the file; what
//! the file then is decides. A look every few seconds finds what inotify does not tell (network file
//! systems, a limit of watches, a folder that was replaced).

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{Instant, sleep_until},
};
use tracing::warn;

/// How often the file is looked at without having been told.
const EVERY: Duration = Duration::from_secs(2);

/// Symbolic links that are followed; more are a loop.
const MAX_LINKS: usize = 40;

/// What tells one file from another, and a changed one from what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

fn identity(path: &Path) -> Option<Identity> {
    let found = fs::metadata(path).ok()?;
    Some(Identity {
        device: found.dev(),
        inode: found.ino(),
        size: found.size(),
        modified: (found.mtime(), found.mtime_nsec()),
        changed: (found.ctime(), found.ctime_nsec()),
    })
}

#[derive(Debug)]
struct Kernel(Inotify);

impl AsFd for Kernel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Kernel {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Watches one file.
#[derive(Debug)]
pub struct WatchedFile {
    path: PathBuf,
    kernel: Option<AsyncFd<Kernel>>,
    watches: Vec<Watch>,
    /// As it was when it was last said to have changed.
    known: Option<Identity>,
    /// As the last look without being told found it, if that was something new: a file that is just
    /// being written is left alone until it rests.
    seen: Option<Identity>,
    next_look: Instant,
}

impl WatchedFile {
    /// Starts watching; the file as it is now is known.
    pub fn watch(path: &Path) -> Self {
        let kernel = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)
            .map_err(io::Error::from)
            .and_then(|kernel| {
                // SAFETY: the descriptor is the inotify instance's own, which lives as long as this.
                let file =
                    unsafe { AsyncFd::register_with_interest(Kernel(kernel), Interest::READABLE) };
                Ok(file?)
            });
        let kernel = match kernel {
            Ok(kernel) => Some(kernel),
            Err(error) => {
                warn!(%error, "no inotify: changes of the file are noticed after some seconds");
                None
            }
        };
        let mut file = Self {
            path: path.to_owned(),
            kernel,
            watches: Vec::new(),
            known: identity(path),
            seen: None,
            next_look: Instant::now() + EVERY,
        };
        file.arm();
        file
    }

    /// Waits until the file is another one than it was, and whole. Can be dropped and called again.
    pub async fn changed(&mut self) {
        loop {
            let told = match &self.kernel {
                Some(kernel) => {
                    tokio::select! {
                        ready = kernel.readable() => ready.is_ok_and(|mut ready| {
                            let relevant = drain(&kernel.get_ref().0, &self.watches);
                            ready.clear_ready();
                            relevant
                        }),
                        () = sleep_until(self.next_look) => false,
                    }
                }
                None => {
                    sleep_until(self.next_look).await;
                    false
                }
            };
            if self.look(told) {
                return;
            }
        }
    }

    /// Whether the file is a new one.
    fn look(&mut self, told: bool) -> bool {
        self.arm();
        let is_look = Instant::now() >= self.next_look;
        if is_look {
            self.next_look = Instant::now() + EVERY;
        }
        let now = identity(&self.path);
        // A file that is just not there is about to be, mostly; the one in force stays in any case.
        if now == self.known || now.is_none() {
            self.seen = None;
            return false;
        }
        if told || (is_look && self.seen == now) {
            self.known = now;
            self.seen = None;
            return true;
        }
        if is_look {
            self.seen = now;
        }
        false
    }

    /// Watches the folders that lead to the file as things are now.
    fn arm(&mut self) {
        let Some(kernel) = &self.kernel else { return };
        let kernel = &kernel.get_ref().0;
        let wanted = names(&self.path);
        let old = std::mem::take(&mut self.watches);
        for (folder, names) in wanted {
            // Again for those that are watched: a folder of the same name may be another one.
            let flags = AddWatchFlags::IN_CLOSE_WRITE
                | AddWatchFlags::IN_MOVED_TO
                | AddWatchFlags::IN_CREATE
                | AddWatchFlags::IN_MOVE_SELF
                | AddWatchFlags::IN_DELETE_SELF
                | AddWatchFlags::IN_ONLYDIR;
            match kernel.add_watch(&folder, flags) {
                Ok(watch) => self.watches.push(Watch { folder, names, watch }),
                Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                Err(error) => warn!(
                    folder = %folder.display(), %error,
                    "cannot be watched; changes of the file are noticed after some seconds"
                ),
            }
        }
        for Watch { watch, .. } in old {
            if self.watches.iter().all(|kept| kept.watch != watch) {
                // One whose folder is gone is gone as well.
                kernel.rm_watch(watch).ok();
            }
        }
    }
}

/// A folder, and the names in it that lead to the file. Two paths to one folder have one descriptor.
#[derive(Debug)]
struct Watch {
    folder: PathBuf,
    names: BTreeSet<OsString>,
    watch: WatchDescriptor,
}

/// Reads all events; whether one of them can mean a whole new file.
fn drain(kernel: &Inotify, watches: &[Watch]) -> bool {
    let mut relevant = false;
    while let Ok(events) = kernel.read_events() {
        relevant |= events.iter().any(|event| is_relevant(event, watches));
    }
    relevant
}

fn is_relevant(event: &InotifyEvent, watches: &[Watch]) -> bool {
    // About the folder itself, or an overflow.
    let Some(name) = &event.name else { return true };
    let concerned = watches.iter().filter(|watch| watch.watch == event.wd);
    let mut concerned = concerned.filter(|watch| watch.names.contains(name));
    if !event.mask.contains(AddWatchFlags::IN_CREATE) {
        return concerned.next().is_some();
    }
    // A link is whole when it has its name; what is written into a new file is told of at its end.
    concerned.any(|watch| {
        let found = fs::symlink_metadata(watch.folder.join(name));
        found.is_ok_and(|found| found.is_symlink() || found.is_dir() || found.nlink() > 1)
    })
}

/// The names, by folder, whose change can make the path lead to another file: the file's own and that
/// of each symbolic link on the way.
fn names(path: &Path) -> BTreeMap<PathBuf, BTreeSet<OsString>> {
    let mut names = BTreeMap::<PathBuf, BTreeSet<OsString>>::new();
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut rest = vec![absolute];
    let mut links = 0;
    while let Some(path) = rest.pop() {
        // Each part of the path may be a link.
        for part in path.ancestors() {
            let (Some(folder), Some(name)) = (part.parent(), part.file_name()) else { continue };
            let target = fs::read_link(part);
            if target.is_ok() || part == path {
                names.entry(folder.to_owned()).or_default().insert(name.to_owned());
            }
            let Ok(target) = target else { continue };
            links += 1;
            if links > MAX_LINKS {
                return names;
            }
            let below = path.strip_prefix(part).unwrap_or(Path::new(""));
            let target = folder.join(target);
            rest.push(if below.as_os_str().is_empty() { target } else { target.join(below) });
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::symlink, time::Duration};

    use super::*;

    async fn is_told(file: &mut WatchedFile) -> bool {
        // Less than the time after which it would be looked at anyway.
        tokio::time::timeout(Duration::from_millis(700), file.changed()).await.is_ok()
    }

    #[tokio::test]
    async fn every_way_to_save_a_file_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let path = at("table.toml");
        fs::write(&path, "1").unwrap();
        let mut file = WatchedFile::watch(&path);
        assert!(!is_told(&mut file).await);

        // In its place.
        fs::write(&path, "22").unwrap();
        assert!(is_told(&mut file).await, "written over");
        // By a rename, as most programs do.
        fs::write(at("new"), "333").unwrap();
        fs::rename(at("new"), &path).unwrap();
        assert!(is_told(&mut file).await, "renamed over");
        // As vim does: the old one goes aside.
        fs::rename(&path, at("table.toml~")).unwrap();
        fs::write(&path, "4444").unwrap();
        fs::remove_file(at("table.toml~")).unwrap();
        assert!(is_told(&mut file).await, "moved aside and written anew");
        // By a hard link.
        fs::write(at("five"), "55555").unwrap();
        fs::remove_file(&path).unwrap();
        fs::hard_link(at("five"), &path).unwrap();
        assert!(is_told(&mut file).await, "linked");
        // By a symbolic link.
        fs::write(at("six"), "666666").unwrap();
        fs::remove_file(&path).unwrap();
        symlink("six", &path).unwrap();
        assert!(is_told(&mut file).await, "linked by name");
        // And what it leads to.
        fs::write(at("six"), "7777777").unwrap();
        assert!(is_told(&mut file).await, "the link's target written over");
    }

    #[tokio::test]
    async fn a_folder_that_is_swapped_by_a_link_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (version, text) in [("v1", "1"), ("v2", "22"), ("v3", "333")] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("table.toml"), text).unwrap();
        }
        symlink("v1", at("data")).unwrap();
        symlink("data/table.toml", at("table.toml")).unwrap();
        let mut file = WatchedFile::watch(&at("table.toml"));
        for version in ["v2", "v3", "v1"] {
            symlink(version, at("new")).unwrap();
            fs::rename(at("new"), at("data")).unwrap();
            assert!(is_told(&mut file).await, "{version}");
        }
        fs::write(at("v1/table.toml"), "4444").unwrap();
        assert!(is_told(&mut file).await, "written below the links");
    }

    #[tokio::test]
    async fn what_is_half_written_or_beside_it_is_left_alone() {
        use std::io::Write as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table.toml");
        fs::write(&path, "1").unwrap();
        let mut file = WatchedFile::watch(&path);
        let mut open = fs::File::create(&path).unwrap();
        open.write_all(b"half").unwrap();
        fs::write(folder.path().join(".table.toml.swp"), "x").unwrap();
        assert!(!is_told(&mut file).await, "half a file");
        open.write_all(b" and whole").unwrap();
        drop(open);
        assert!(is_told(&mut file).await);
        // Gone, it is nothing new; back, it is.
        fs::remove_file(&path).unwrap();
        assert!(!is_told(&mut file).await, "gone");
        fs::write(&path, "again").unwrap();
        assert!(is_told(&mut file).await);
    }

    #[tokio::test]
    async fn a_folder_that_is_made_anew_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        let path = inner.join("table.toml");
        fs::create_dir(&inner).unwrap();
        fs::write(&path, "1").unwrap();
        let mut file = WatchedFile::watch(&path);
        fs::remove_dir_all(&inner).unwrap();
        fs::create_dir(&inner).unwrap();
        fs::write(&path, "22").unwrap();
        // inotify may not tell of it; the look does, the second time that it finds the same.
        let patience = 3 * EVERY;
        assert!(tokio::time::timeout(patience, file.changed()).await.is_ok());
        fs::write(&path, "333").unwrap();
        assert!(is_told(&mut file).await, "watched again");
    }
}
