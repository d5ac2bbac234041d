//! Long-running processes of a lab, each tracked and ended by its own handle.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    command,
    guard::Keep,
    interrupt::{self, wait},
};

/// A running process whose output goes to a file. Ended when dropped, unless the lab is kept.
#[derive(Debug)]
pub struct Process {
    what: String,
    child: Child,
    log: PathBuf,
    /// Where this process's own lines begin: a restarted daemon appends.
    log_start: usize,
    status: Option<ExitStatus>,
    keep: Keep,
}

impl Process {
    /// Starts `command`; what it writes is appended to `log`.
    pub(crate) fn spawn(
        what: &str,
        command: &mut Command,
        log: PathBuf,
        keep: &Keep,
    ) -> Result<Self> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot open {}", log.display()))?;
        let log_start = usize::try_from(file.metadata()?.len())?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {what}: `{}`", command::shown(command)))?;
        let what = what.to_owned();
        Ok(Self { what, child, log, log_start, status: None, keep: keep.clone() })
    }

    /// The process's id, also after its end.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The file with its output.
    #[must_use]
    pub fn log_file(&self) -> &Path {
        &self.log
    }

    /// What this process has written so far.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn log(&self) -> Result<String> {
        let bytes = fs::read(&self.log)?;
        Ok(String::from_utf8_lossy(bytes.get(self.log_start..).unwrap_or_default()).into_owned())
    }

    /// How the process ended, if it has.
    ///
    /// # Errors
    /// When the kernel cannot say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = self.child.try_wait()?;
        }
        Ok(self.status)
    }

    /// Waits until `done` finds what it wants in the output after the first `from` bytes.
    ///
    /// # Errors
    /// When the process ends first or `limit` passes: with the end of its output.
    pub fn wait_for_log(&mut self, text: &str, from: usize, limit: Duration) -> Result<()> {
        let what = format!("\"{text}\" in the output of {}", self.what);
        let result = wait(&what, limit, || {
            let log = self.log()?;
            if log.get(from..).is_some_and(|new| new.contains(text)) {
                return Ok(Some(()));
            }
            if let Some(status) = self.ended()? {
                bail!("{} ended with {status}", self.what);
            }
            Ok(None)
        });
        result.or_else(|error| {
            let log = self.log()?;
            let lines: Vec<_> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(15)..].join("\n");
            Err(error.context(format!("{} wrote:\n{tail}", self.what)))
        })
    }

    /// Sends a signal to this process.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if let Some(status) = self.ended()? {
            bail!("{} has ended with {status}", self.what);
        }
        kill(self.pid()?, signal).with_context(|| format!("cannot send {signal} to {}", self.what))
    }

    /// Waits for the process's end.
    ///
    /// # Errors
    /// When it has not come after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.what);
        wait(&what, limit, || self.ended())
    }

    fn pid(&self) -> Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.child.id())?))
    }

    fn end(&mut self) -> Result<()> {
        if self.ended()?.is_some() {
            return Ok(());
        }
        kill(self.pid()?, Signal::SIGTERM)?;
        // Not `wait`: after Ctrl-C there is still time to end in order.
        for _ in 0..100 {
            if self.ended()?.is_some() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.child.kill()?;
        self.status = Some(self.child.wait()?);
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.keep.is_set() {
            return;
        }
        if let Err(error) = self.end() {
            eprintln!("left behind: {}: {error:#}", self.what);
        }
    }
}

/// Waits until a file or socket is there.
pub(crate) fn wait_for_file(path: &Path) -> Result<()> {
    let there = || Ok(path.exists().then_some(()));
    interrupt::wait(&path.display().to_string(), Duration::from_secs(5), there)
}
