//! Named network namespaces, and running code and programs inside them.
//!
//! A child enters its namespace with `setns` just before exec. `ip netns exec` would also give it a
//! private `/sys` with a bpffs whose pins vanish when the command ends.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::AsRawFd,
        unix::{fs::MetadataExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{cleanup::KeepFlag, command};

/// The folder of named namespaces of `ip netns`.
const FOLDER: &str = "/run/netns";

/// A handle for running things in a network namespace. It is cheap to clone and does not own the
/// namespace.
#[derive(Clone, Debug)]
pub struct Netns {
    name: String,
    file: Arc<File>,
}

impl Netns {
    /// Opens the namespace that `ip netns` knows as `name`.
    ///
    /// # Errors
    /// When the namespace does not exist.
    pub fn open(name: &str) -> Result<Self> {
        let path = path(name);
        let file = File::open(&path).with_context(|| format!("no namespace {}", path.display()))?;
        Ok(Self { name: name.to_owned(), file: Arc::new(file) })
    }

    /// Returns the name that `ip netns` shows.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the namespace file for `nsenter --net=`.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        path(&self.name)
    }

    /// Builds a command that runs inside, in a new session: the lab handles Ctrl-C on the terminal,
    /// not its children.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env("PATH", command::search_path());
        let file = Arc::clone(&self.file);
        let enter = move || {
            // SAFETY: a plain system call, on a descriptor that the closure itself keeps open.
            let entered = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
            // SAFETY: a plain system call without arguments.
            let session = unsafe { libc::setsid() };
            if entered != 0 || session < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes two system calls and allocates nothing.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// Runs `work` on a new thread inside the namespace. Sockets opened there stay in the
    /// namespace.
    ///
    /// # Errors
    /// The errors of `work`, and when the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter_this_thread()?;
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread and its future children into the namespace permanently.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn enter_this_thread(&self) -> Result<()> {
        setns(self.file.as_ref(), CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("cannot enter the namespace {}", self.name))
    }

    /// Writes sysctls, given as a name such as `net.ipv4.ip_forward` and a value.
    ///
    /// # Errors
    /// The error names the sysctl that could not be written.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (key, value) in settings {
                let file = Path::new("/proc/sys").join(key.replace('.', "/"));
                fs::write(&file, value).with_context(|| format!("cannot set {key}={value}"))?;
            }
            Ok(())
        })
    }

    /// Runs `ip -batch` inside with these lines.
    ///
    /// # Errors
    /// The error holds the message of `ip`, which names the line.
    pub fn ip(&self, lines: &str) -> Result<()> {
        let mut ip = self.command("ip");
        command::run_with_input(ip.args(["-batch", "-"]), lines)
            .with_context(|| format!("in namespace {}", self.name))
    }

    /// Lists the processes inside.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn processes(&self) -> Result<Vec<Pid>> {
        let own = self.file.metadata()?;
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let entry = entry?;
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // A process that ends during the scan is no longer inside.
            if let Ok(theirs) = fs::metadata(entry.path().join("ns/net"))
                && (theirs.dev(), theirs.ino()) == (own.dev(), own.ino())
            {
                found.push(Pid::from_raw(pid));
            }
        }
        Ok(found)
    }

    /// Ends every process inside: first with SIGTERM, then with SIGKILL.
    pub(crate) fn end_processes(&self) -> Result<()> {
        let started = Instant::now();
        loop {
            let left = self.processes()?;
            if left.is_empty() {
                return Ok(());
            }
            let age = started.elapsed();
            if age > Duration::from_secs(5) {
                bail!("processes {left:?} in namespace {} do not end", self.name);
            }
            let gentle = age < Duration::from_millis(500);
            for pid in left {
                // The process can have ended since it was listed.
                kill(pid, if gentle { Signal::SIGTERM } else { Signal::SIGKILL }).ok();
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A namespace that this process created. Dropping it ends its processes and removes it.
#[derive(Debug)]
pub(crate) struct OwnedNetns {
    netns: Netns,
    keep: KeepFlag,
}

impl OwnedNetns {
    /// Creates the namespace `name` with its loopback up.
    pub(crate) fn create(name: &str, keep: &KeepFlag) -> Result<Self> {
        command::run(ip_netns().args(["add", name]))?;
        let netns = Netns::open(name)?;
        let owned = Self { netns, keep: keep.clone() };
        owned.netns.ip("link set lo up")?;
        Ok(owned)
    }

    /// Opens an existing namespace. `keep` must be set, because this process must not remove it.
    pub(crate) fn open(name: &str, keep: &KeepFlag) -> Result<Self> {
        Ok(Self { netns: Netns::open(name)?, keep: keep.clone() })
    }

    pub(crate) fn netns(&self) -> &Netns {
        &self.netns
    }
}

impl Drop for OwnedNetns {
    fn drop(&mut self) {
        if !self.keep.is_set()
            && let Err(error) = remove(&self.netns.name)
        {
            eprintln!("left behind: {error:#}");
        }
    }
}

/// Lists all namespaces on this machine that `ip netns` knows.
pub(crate) fn names() -> Result<Vec<String>> {
    let entries = match fs::read_dir(FOLDER) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("cannot read {FOLDER}"))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string());
    }
    Ok(names)
}

/// Ends the processes in the namespace and removes it.
pub(crate) fn remove(name: &str) -> Result<()> {
    match Netns::open(name) {
        Ok(netns) => netns.end_processes()?,
        // An `ip netns add` that was killed leaves a file that is not a namespace.
        Err(_) => eprintln!("namespace {name} cannot be opened; removing its name"),
    }
    command::run(ip_netns().args(["delete", name]))
}

fn ip_netns() -> Command {
    let mut ip = Command::new("ip");
    ip.env("PATH", command::search_path()).arg("netns");
    ip
}

fn path(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}
