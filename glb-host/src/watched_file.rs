//! Watching one file for changes: overwritten, replaced by a rename, or reached through a changed
//! symbolic link.
//!
//! inotify reports events in the folders on the way to the file; then the file's identity is
//! compared. A poll every few seconds finds what inotify misses: network file systems, too many
//! watches, a replaced folder.

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

/// The polling interval.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// The maximum number of symbolic links; more are a loop.
const MAX_LINKS: usize = 40;

/// The values that change when a file is replaced or written.
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
struct InotifyFd(Inotify);

impl AsFd for InotifyFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for InotifyFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Watches one file.
#[derive(Debug)]
pub struct WatchedFile {
    path: PathBuf,
    kernel: Option<AsyncFd<InotifyFd>>,
    watches: Vec<Watch>,
    /// The identity that was last reported.
    reported: Option<Identity>,
    /// A new identity that the last poll found. A file that is being written is reported when it is
    /// the same twice.
    pending: Option<Identity>,
    next_poll: Instant,
}

impl WatchedFile {
    /// Starts watching; the file's present state counts as reported.
    pub fn watch(path: &Path) -> Self {
        let kernel = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)
            .map_err(io::Error::from)
            .and_then(|kernel| {
                // SAFETY: the descriptor is the inotify instance's own, which lives as long as this.
                let file = unsafe {
                    AsyncFd::register_with_interest(InotifyFd(kernel), Interest::READABLE)
                };
                Ok(file?)
            });
        let kernel = match kernel {
            Ok(kernel) => Some(kernel),
            Err(error) => {
                warn!(%error, "inotify is not available; the file is polled");
                None
            }
        };
        let mut file = Self {
            path: path.to_owned(),
            kernel,
            watches: Vec::new(),
            reported: identity(path),
            pending: None,
            next_poll: Instant::now() + POLL_INTERVAL,
        };
        file.add_watches();
        file
    }

    /// Waits until the file has changed and is complete. The future can be dropped and called
    /// again.
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
                        () = sleep_until(self.next_poll) => false,
                    }
                }
                None => {
                    sleep_until(self.next_poll).await;
                    false
                }
            };
            if self.poll(told) {
                return;
            }
        }
    }

    /// Returns whether the file has changed since the last report.
    fn poll(&mut self, told: bool) -> bool {
        self.add_watches();
        let is_poll = Instant::now() >= self.next_poll;
        if is_poll {
            self.next_poll = Instant::now() + POLL_INTERVAL;
        }
        let now = identity(&self.path);
        // A missing file is usually about to be replaced.
        if now == self.reported || now.is_none() {
            self.pending = None;
            return false;
        }
        if told || (is_poll && self.pending == now) {
            self.reported = now;
            self.pending = None;
            return true;
        }
        if is_poll {
            self.pending = now;
        }
        false
    }

    /// Watches the folders that now lead to the file.
    fn add_watches(&mut self) {
        let Some(kernel) = &self.kernel else { return };
        let kernel = &kernel.get_ref().0;
        let wanted = names(&self.path);
        let old = std::mem::take(&mut self.watches);
        for (folder, names) in wanted {
            // Watched folders are added again: a folder of the same name may be a new one.
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
                    "cannot watch the folder; the file is polled"
                ),
            }
        }
        for Watch { watch, .. } in old {
            if self.watches.iter().all(|kept| kept.watch != watch) {
                // The watch of a removed folder is gone already.
                kernel.rm_watch(watch).ok();
            }
        }
    }
}

/// A folder and the names in it that lead to the file. Two paths to one folder share a descriptor.
#[derive(Debug)]
struct Watch {
    folder: PathBuf,
    names: BTreeSet<OsString>,
    watch: WatchDescriptor,
}

/// Reads all events; returns whether one of them can mean a complete new file.
fn drain(kernel: &Inotify, watches: &[Watch]) -> bool {
    let mut relevant = false;
    while let Ok(events) = kernel.read_events() {
        relevant |= events.iter().any(|event| is_relevant(event, watches));
    }
    relevant
}

fn is_relevant(event: &InotifyEvent, watches: &[Watch]) -> bool {
    // An event about the folder itself, or an overflow.
    let Some(name) = &event.name else { return true };
    let concerned = watches.iter().filter(|watch| watch.watch == event.wd);
    let mut concerned = concerned.filter(|watch| watch.names.contains(name));
    if !event.mask.contains(AddWatchFlags::IN_CREATE) {
        return concerned.next().is_some();
    }
    // A link is complete when it exists; a new file's end of writing is a separate event.
    concerned.any(|watch| {
        let found = fs::symlink_metadata(watch.folder.join(name));
        found.is_ok_and(|found| found.is_symlink() || found.is_dir() || found.nlink() > 1)
    })
}

/// Returns the names, by folder, whose change can lead the path to another file: the file's own,
/// and those of all symbolic links on the way.
fn names(path: &Path) -> BTreeMap<PathBuf, BTreeSet<OsString>> {
    let mut names = BTreeMap::<PathBuf, BTreeSet<OsString>>::new();
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut rest = vec![absolute];
    let mut links = 0;
    while let Some(path) = rest.pop() {
        // Each component of the path may be a link.
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

    async fn is_reported(file: &mut WatchedFile) -> bool {
        // Shorter than the polling interval.
        tokio::time::timeout(Duration::from_millis(700), file.changed()).await.is_ok()
    }

    #[tokio::test]
    async fn all_ways_to_save_a_file_are_reported() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let path = at("table.toml");
        fs::write(&path, "1").unwrap();
        let mut file = WatchedFile::watch(&path);
        assert!(!is_reported(&mut file).await);

        // Overwritten in place.
        fs::write(&path, "22").unwrap();
        assert!(is_reported(&mut file).await, "written over");
        // Replaced by a rename, as most programs do.
        fs::write(at("new"), "333").unwrap();
        fs::rename(at("new"), &path).unwrap();
        assert!(is_reported(&mut file).await, "renamed over");
        // As vim does: the old file is renamed first.
        fs::rename(&path, at("table.toml~")).unwrap();
        fs::write(&path, "4444").unwrap();
        fs::remove_file(at("table.toml~")).unwrap();
        assert!(is_reported(&mut file).await, "moved aside and written anew");
        // Replaced by a hard link.
        fs::write(at("five"), "55555").unwrap();
        fs::remove_file(&path).unwrap();
        fs::hard_link(at("five"), &path).unwrap();
        assert!(is_reported(&mut file).await, "linked");
        // Replaced by a symbolic link.
        fs::write(at("six"), "666666").unwrap();
        fs::remove_file(&path).unwrap();
        symlink("six", &path).unwrap();
        assert!(is_reported(&mut file).await, "linked by name");
        // The link's target is overwritten.
        fs::write(at("six"), "7777777").unwrap();
        assert!(is_reported(&mut file).await, "the link's target written over");
    }

    #[tokio::test]
    async fn a_replaced_link_to_the_folder_is_reported() {
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
            assert!(is_reported(&mut file).await, "{version}");
        }
        fs::write(at("v1/table.toml"), "4444").unwrap();
        assert!(is_reported(&mut file).await, "written below the links");
    }

    #[tokio::test]
    async fn incomplete_and_unrelated_files_are_not_reported() {
        use std::io::Write as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table.toml");
        fs::write(&path, "1").unwrap();
        let mut file = WatchedFile::watch(&path);
        let mut open = fs::File::create(&path).unwrap();
        open.write_all(b"half").unwrap();
        fs::write(folder.path().join(".table.toml.swp"), "x").unwrap();
        assert!(!is_reported(&mut file).await, "half a file");
        open.write_all(b" and whole").unwrap();
        drop(open);
        assert!(is_reported(&mut file).await);
        // A removed file is not a change; a new one is.
        fs::remove_file(&path).unwrap();
        assert!(!is_reported(&mut file).await, "gone");
        fs::write(&path, "again").unwrap();
        assert!(is_reported(&mut file).await);
    }

    #[tokio::test]
    async fn a_recreated_folder_is_watched_again() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        let path = inner.join("table.toml");
        fs::create_dir(&inner).unwrap();
        fs::write(&path, "1").unwrap();
        let mut file = WatchedFile::watch(&path);
        fs::remove_dir_all(&inner).unwrap();
        fs::create_dir(&inner).unwrap();
        fs::write(&path, "22").unwrap();
        // inotify may miss it; the second poll with the same result reports it.
        let patience = 3 * POLL_INTERVAL;
        assert!(tokio::time::timeout(patience, file.changed()).await.is_ok());
        fs::write(&path, "333").unwrap();
        assert!(is_reported(&mut file).await, "watched again");
    }
}
