//! Cleanup of a lab: the run folder with its bpffs, and the lock on the lab's name.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, Write},
    os::unix::fs::MetadataExt,
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
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

/// All labs' run folders.
pub(crate) const RUN: &str = "/run/glb-lab";

/// The folder for files that are too large for `/run`, which is often in memory.
const SCRATCH: &str = "/var/tmp/glb-lab";

/// A flag shared by all parts of a lab: keep everything when handles are dropped.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeepFlag(Arc<AtomicBool>);

impl KeepFlag {
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The lab's files: configurations, sockets and logs in `/run`, large files in `/var/tmp`, and a
/// private bpffs.
#[derive(Debug)]
pub(crate) struct Folders {
    run: PathBuf,
    scratch: PathBuf,
    keep: KeepFlag,
}

impl Folders {
    pub(crate) fn create(name: &str, keep: &KeepFlag) -> Result<Self> {
        let (run, scratch) = paths(name);
        let folders = Self { run, scratch, keep: keep.clone() };
        let made = [folders.run.join("log"), folders.run.join("pid"), folders.bpf()];
        for folder in made.iter().chain([&folders.scratch]) {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot create {}", folder.display()))?;
        }
        mount(Some("bpf"), &folders.bpf(), Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("cannot mount a bpffs at {}", folders.bpf().display()))?;
        Ok(folders)
    }

    /// Opens the folders of an existing lab.
    pub(crate) fn open(name: &str, keep: &KeepFlag) -> Self {
        let (run, scratch) = paths(name);
        Self { run, scratch, keep: keep.clone() }
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

/// Returns the run folder and the scratch folder of the lab `name`.
pub(crate) fn paths(name: &str) -> (PathBuf, PathBuf) {
    (Path::new(RUN).join(name), Path::new(SCRATCH).join(name))
}

/// Removes a lab's folder. Unmounting its bpffs releases the pins.
pub(crate) fn remove(folder: &Path) -> Result<()> {
    let bpf = folder.join("bpf");
    // Several mounts can be stacked on the same folder.
    while statfs(&bpf).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC) {
        umount2(&bpf, MntFlags::MNT_DETACH)
            .with_context(|| format!("cannot unmount {}", bpf.display()))?;
    }
    remove_all(folder)
}

/// Removes a folder and its contents if it exists, and releases the pins in it.
pub(crate) fn remove_all(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// A file lock. It ends with this process at the latest.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
    /// The lock file of a lab's name, which is removed together with the lock.
    path: Option<PathBuf>,
}

impl Lock {
    /// Locks a lab's name.
    pub(crate) fn name(name: &str) -> Result<Self> {
        loop {
            let (mut file, path) = open(&format!("{name}.lock"))?;
            let mut owner = String::new();
            file.read_to_string(&mut owner)?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(mut file) => {
                    // The previous holder can have removed the file after this process opened it.
                    if fs::metadata(&path).ok().map(|m| m.ino()) != Some(file.metadata()?.ino()) {
                        continue;
                    }
                    file.set_len(0)?;
                    file.rewind()?;
                    write!(file, "{}", std::process::id())?;
                    return Ok(Self { _file: file, path: Some(path) });
                }
                Err((_, Errno::EWOULDBLOCK)) => bail!(
                    "a lab of the name {name} is being used by process {owner}: end that first, \
                     or give this one another name"
                ),
                Err((_, error)) => return Err(error).context("cannot lock the lab's name"),
            }
        }
    }

    /// Waits for the machine-wide lock `name`. Runs that would disturb each other's timing share
    /// one lock.
    ///
    /// # Errors
    /// When the lock file cannot be created or locked.
    pub fn wait(name: &str) -> Result<Self> {
        let (file, _) = open(&format!(".{name}.lock"))?;
        let file = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, error)| error)
            .context("cannot take the lock")?;
        Ok(Self { _file: file, path: None })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // The file is removed while it is still locked. A file that stays does no harm.
            fs::remove_file(path).ok();
        }
    }
}

fn open(name: &str) -> Result<(File, PathBuf)> {
    fs::create_dir_all(RUN)
        .with_context(|| format!("cannot create {RUN}: a lab needs root, run it with sudo"))?;
    let path = Path::new(RUN).join(name);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let file = file.with_context(|| {
        format!("cannot open {}: a lab needs root, run it with sudo", path.display())
    })?;
    Ok((file, path))
}
