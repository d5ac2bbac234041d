//! What outlives a lab and what does not: the run folder with its bpffs, and the lock on the name.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    mount::{MntFlags, MsFlags, mount, umount2},
};

/// All labs' run folders.
pub(crate) const RUN: &str = "/run/glb-lab";

/// What is too large for `/run`, which is often in memory.
const SCRATCH: &str = "/var/tmp/glb-lab";

/// Whether the parts of a lab stay when they are dropped. Shared by all of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keep(Arc<AtomicBool>);

impl Keep {
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The lab's files: configurations, sockets and logs in `/run`, large things in `/var/tmp`, and a
/// bpffs of its own.
#[derive(Debug)]
pub(crate) struct Folders {
    run: PathBuf,
    scratch: PathBuf,
    keep: Keep,
}

impl Folders {
    pub(crate) fn create(name: &str, keep: &Keep) -> Result<Self> {
        let (run, scratch) = paths(name);
        let folders = Self { run, scratch, keep: keep.clone() };
        for folder in [&folders.run.join("log"), &folders.bpf(), &folders.scratch] {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        mount(Some("bpf"), &folders.bpf(), Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("cannot mount a bpffs at {}", folders.bpf().display()))?;
        Ok(folders)
    }

    pub(crate) fn run(&self) -> &Path {
        &self.run
    }

    pub(crate) fn scratch(&self) -> &Path {
        &self.scratch
    }

    pub(crate) fn bpf(&self) -> PathBuf {
        self.run.join("bpf")
    }
}

impl Drop for Folders {
    fn drop(&mut self) {
        if self.keep.is_set() {
            return;
        }
        for folder in [&self.run, &self.scratch] {
            if let Err(error) = remove(folder) {
                eprintln!("left behind: {error:#}");
            }
        }
    }
}

/// Run folder and scratch folder of the lab `name`.
pub(crate) fn paths(name: &str) -> (PathBuf, PathBuf) {
    (Path::new(RUN).join(name), Path::new(SCRATCH).join(name))
}

/// Removes a folder of a lab with all in it; whatever its `bpf` pins is let go with the mount.
pub(crate) fn remove(folder: &Path) -> Result<()> {
    let bpf = folder.join("bpf");
    loop {
        match umount2(&bpf, MntFlags::MNT_DETACH) {
            // Several mounts may lie on top of each other.
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => break,
            Err(error) => {
                return Err(error).with_context(|| format!("cannot unmount {}", bpf.display()));
            }
        }
    }
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// A lock that ends with this process at the latest.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held, never read")] Flock<File>);

impl Lock {
    /// Takes the lock on a lab's name.
    pub(crate) fn name(name: &str) -> Result<Self> {
        let mut file = open(&format!("{name}.lock"))?;
        let mut owner = String::new();
        file.read_to_string(&mut owner)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                lock.set_len(0)?;
                lock.rewind()?;
                write!(lock, "{}", std::process::id())?;
                Ok(Self(lock))
            }
            Err((_, Errno::EWOULDBLOCK)) => bail!(
                "a lab of the name {name} is being used by process {owner}: end that first, or \
                 give this one another name"
            ),
            Err((_, error)) => Err(error).context("cannot lock the lab's name"),
        }
    }

    /// Waits until nobody else on this machine holds the lock `name`: for runs that would spoil
    /// each other's timing.
    ///
    /// # Errors
    /// When the lock file cannot be made or locked.
    pub fn wait(name: &str) -> Result<Self> {
        let file = open(&format!(".{name}.lock"))?;
        let lock = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, error)| error)
            .context("cannot take the lock")?;
        Ok(Self(lock))
    }
}

fn open(name: &str) -> Result<File> {
    fs::create_dir_all(RUN).with_context(|| format!("cannot make {RUN}"))?;
    let path = Path::new(RUN).join(name);
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))
}
