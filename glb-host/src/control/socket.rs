//! The control socket's file: created with its permissions before anybody can connect, taken over
//! from a dead daemon, refused while a living one holds it.

use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt as _, PermissionsExt as _},
        net::UnixListener,
    },
    path::{Path, PathBuf},
};

use socket2::{Domain, SockAddr, Type};

use super::access::{self, UnknownGroup};
use crate::lock_file::{LockError, LockFile};

/// How many clients may wait in the kernel to be accepted.
const BACKLOG: i32 = 128;

/// The control socket's path and permissions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketSettings {
    /// The absolute path.
    pub path: PathBuf,
    /// The file mode.
    pub mode: u32,
    /// The group; `None` means the daemon's own.
    pub group: Option<String>,
}

/// Why the socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another daemon holds it.
    #[error(
        "cannot open control socket {}: {owner} holds it.\n  \
         Stop that daemon first, or give this one a `control.socket` of its own.",
        path.display()
    )]
    Taken {
        /// The socket.
        path: PathBuf,
        /// The other process, as far as it is known.
        owner: String,
    },
    /// The path is longer than a unix socket's may be.
    #[error(
        "cannot open control socket {}: the path has {length} bytes, and a unix socket's has at most 107.\n  \
         Choose a shorter `control.socket`.",
        path.display()
    )]
    TooLong {
        /// The path.
        path: PathBuf,
        /// The path's length in bytes.
        length: usize,
    },
    /// A file of another type has this name.
    #[error(
        "cannot open control socket {}: {what} of this name exists, and is left alone.\n  \
         Move it away, or choose another `control.socket`.",
        path.display()
    )]
    NotASocket {
        /// The path.
        path: PathBuf,
        /// The file's type.
        what: &'static str,
    },
    /// The configured group does not exist.
    #[error("cannot open control socket {}: {source}", path.display())]
    Group {
        /// The socket.
        path: PathBuf,
        /// The cause.
        source: UnknownGroup,
    },
    /// A system call failed.
    #[error("control socket {}: cannot {action} {}: {source}.{}", path.display(), what.display(), hint(source, what))]
    Io {
        /// The socket.
        path: PathBuf,
        /// The attempted action.
        action: &'static str,
        /// The path of the attempt.
        what: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

fn hint(source: &io::Error, what: &Path) -> String {
    match source.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            let folder = what.parent().unwrap_or(what).display().to_string();
            format!(
                "\n  Make {folder} writable for this daemon's user (systemd: RuntimeDirectory=), or \
                 choose another `control.socket`."
            )
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "\n  Free some space there, or choose another `control.socket`.".to_owned()
        }
        _ => String::new(),
    }
}

/// A listening control socket. Dropping it removes the file.
#[derive(Debug)]
pub struct Socket {
    pub(super) listener: UnixListener,
    place: SocketSettings,
    /// Held as long as the socket is open.
    _lock: LockFile,
}

impl Socket {
    /// Opens the socket.
    ///
    /// # Errors
    /// When another daemon holds it, or it cannot be created.
    pub fn open(place: &SocketSettings) -> Result<Self, SocketError> {
        let path = &place.path;
        let length = path.as_os_str().len();
        if length > 107 {
            return Err(SocketError::TooLong { path: path.clone(), length });
        }
        let error = |action, what: &Path| {
            let (path, what) = (path.clone(), what.to_owned());
            move |source| SocketError::Io { path, action, what, source }
        };
        let folder = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(folder).map_err(error("make", folder))?;
        let group = match &place.group {
            Some(name) => Some(
                access::group(name)
                    .map_err(|source| SocketError::Group { path: path.clone(), source })?,
            ),
            None => None,
        };
        let lock = LockFile::take(path).map_err(|problem| match problem {
            LockError::Held { owner } => SocketError::Taken { path: path.clone(), owner },
            LockError::Io { action, path: what, source } => {
                SocketError::Io { path: path.clone(), action, what, source }
            }
        })?;
        remove_dead(path)?;
        let socket =
            socket2::Socket::new(Domain::UNIX, Type::STREAM, None).map_err(error("make", path))?;
        socket
            .bind(&SockAddr::unix(path).map_err(error("name", path))?)
            .map_err(error("make", path))?;
        // The permissions are set before `listen`, so nobody can connect earlier.
        if let Some(group) = group {
            std::os::unix::fs::chown(path, None, Some(group.as_raw()))
                .map_err(error("give to its group", path))?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(place.mode))
            .map_err(error("set the mode of", path))?;
        socket.listen(BACKLOG).map_err(error("listen on", path))?;
        socket.set_nonblocking(true).map_err(error("set up", path))?;
        Ok(Self { listener: socket.into(), place: place.clone(), _lock: lock })
    }

    /// Returns the socket's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.place.path
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // A socket file that is left behind is replaced at the next start.
        fs::remove_file(&self.place.path).ok();
    }
}

/// Removes the socket of a dead daemon; anything else stays.
fn remove_dead(path: &Path) -> Result<(), SocketError> {
    let error = |action, source| SocketError::Io {
        path: path.to_owned(),
        action,
        what: path.to_owned(),
        source,
    };
    let kind = match fs::symlink_metadata(path) {
        Ok(found) => found.file_type(),
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(error("look at", source)),
    };
    if kind.is_socket() {
        // The lock is held, so no daemon of this kind listens there; another program might.
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            let (path, owner) = (path.to_owned(), "another process".into());
            return Err(SocketError::Taken { path, owner });
        }
        return fs::remove_file(path).map_err(|source| error("remove", source));
    }
    let what = match kind {
        kind if kind.is_dir() => "a folder",
        kind if kind.is_symlink() => "a symbolic link",
        kind if kind.is_file() => "a file",
        _ => "something else",
    };
    Err(SocketError::NotASocket { path: path.to_owned(), what })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn place(folder: &Path) -> SocketSettings {
        SocketSettings { path: folder.join("run/control.sock"), mode: 0o640, group: None }
    }

    #[test]
    fn socket_has_its_mode_and_group_and_is_removed_on_drop() {
        let folder = tempfile::tempdir().unwrap();
        let place = SocketSettings { group: Some("4711".into()), ..place(folder.path()) };
        let socket = Socket::open(&place).unwrap();
        let found = fs::metadata(socket.path()).unwrap();
        assert_eq!((found.mode() & 0o7777, found.gid()), (0o640, 4711), "run this test as root");
        drop(socket);
        assert!(!place.path.exists());
    }

    #[test]
    fn sockets_of_dead_daemons_are_replaced_and_of_living_ones_refused() {
        let folder = tempfile::tempdir().unwrap();
        let place = place(folder.path());
        let mut dead = Socket::open(&place).unwrap();
        // As after SIGKILL: the file exists, nobody listens and nobody holds the lock.
        let moved = folder.path().join("moved");
        fs::rename(&place.path, &moved).unwrap();
        dead.place.path = folder.path().join("nowhere");
        drop(dead);
        fs::rename(&moved, &place.path).unwrap();
        let _living = Socket::open(&place).unwrap();
        let error = Socket::open(&place).unwrap_err().to_string();
        let id = std::process::id().to_string();
        for words in ["control.sock", &id, "control.socket"] {
            assert!(error.contains(words), "{words:?} is missing in: {error}");
        }
        assert!(place.path.exists());
    }

    #[test]
    fn other_files_in_the_sockets_place_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let place = place(folder.path());
        fs::create_dir(folder.path().join("run")).unwrap();
        fs::write(&place.path, "precious").unwrap();
        let error = Socket::open(&place).unwrap_err().to_string();
        assert!(error.contains("a file") && error.contains("left alone"), "{error}");
        fs::remove_file(&place.path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &place.path).unwrap();
        let error = Socket::open(&place).unwrap_err().to_string();
        assert!(error.contains("a symbolic link"), "{error}");
        // Another program's socket, which has no lock file.
        fs::remove_file(&place.path).unwrap();
        let _stranger = UnixListener::bind(&place.path).unwrap();
        let error = Socket::open(&place).unwrap_err().to_string();
        assert!(error.contains("another process"), "{error}");
    }

    #[test]
    fn invalid_paths_and_groups_are_refused() {
        let long = PathBuf::from("/tmp").join("x".repeat(120));
        let place = SocketSettings { path: long, mode: 0o600, group: None };
        let error = Socket::open(&place).unwrap_err().to_string();
        assert!(error.contains("125 bytes") && error.contains("107"), "{error}");
        let place =
            SocketSettings { path: "/proc/x/control.sock".into(), mode: 0o600, group: None };
        let error = Socket::open(&place).unwrap_err().to_string();
        assert!(error.contains("cannot make /proc/x"), "{error}");
        let folder = tempfile::tempdir().unwrap();
        let place =
            SocketSettings { group: Some("no-such-group".into()), ..self::place(folder.path()) };
        let error = Socket::open(&place).unwrap_err().to_string();
        assert!(error.contains("no-such-group"), "{error}");
    }
}
