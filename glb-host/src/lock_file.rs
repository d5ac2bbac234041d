//! A lock file beside a file, so that one process at a time owns it.
//!
//! The kernel releases the lock when its holder dies; the lock file stays.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

/// A held lock; dropping it releases it.
#[derive(Debug)]
pub struct LockFile(#[expect(dead_code, reason = "held, not looked at")] Flock<File>);

/// Why the lock could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it.
    #[error("{owner} holds it")]
    Held {
        /// The other process, as far as it is known.
        owner: String,
    },
    /// A system call failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The attempted action.
        action: &'static str,
        /// The path of the attempt.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl LockFile {
    /// Takes the lock of `file`, which is `FILE.lock`. Of two processes that start at once, one
    /// gets it.
    ///
    /// # Errors
    /// When another process holds it, or it cannot be created.
    pub fn take(file: &Path) -> Result<Self, LockError> {
        let mut path = file.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        let error = |action, source| LockError::Io { action, path: path.clone(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .map_err(|source| error("open", source))?;
        let mut owner = String::new();
        (&mut file).take(64).read_to_string(&mut owner).ok();
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                let id = format!("{}\n", std::process::id());
                // The process id is only for the other process's message, so a full disk does not
                // matter.
                lock.set_len(0)
                    .and_then(|()| lock.rewind())
                    .and_then(|()| lock.write_all(id.as_bytes()))
                    .ok();
                Ok(Self(lock))
            }
            Err((_, Errno::EWOULDBLOCK)) => {
                Err(LockError::Held { owner: crate::describe_process(owner.trim()) })
            }
            Err((_, errno)) => Err(error("lock", errno.into())),
        }
    }
}
