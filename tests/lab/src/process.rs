//! Long-running processes of a lab, each tracked and ended by its own handle.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};

use crate::{cleanup::KeepFlag, command, interrupt::wait, table::replace_file};

/// A running process whose output goes to a file. It ends on drop, unless the lab is kept.
#[derive(Debug)]
pub struct Process {
    what: String,
    id: u32,
    /// None for a process that another process started (in a lab that keeps running).
    child: Option<Child>,
    /// The start time in kernel ticks. Together with the id it identifies a process uniquely.
    began: u64,
    log: PathBuf,
    /// The offset of this process's output in the file, because a restarted daemon appends.
    log_start: usize,
    status: Option<ExitStatus>,
    keep: KeepFlag,
}

impl Process {
    /// Starts `command`, appends its output to `log`, and writes its identity to `record`.
    pub(crate) fn spawn(
        what: &str,
        command: &mut Command,
        log: PathBuf,
        record: &Path,
        keep: &KeepFlag,
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
        let (what, id) = (what.to_owned(), child.id());
        // A child that has ended stays in the process table until it is waited for.
        let (began, _) = stat(id).with_context(|| format!("no process {id}"))?;
        let process = Self {
            what,
            id,
            child: Some(child),
            began,
            log,
            log_start,
            status: None,
            keep: keep.clone(),
        };
        replace_file(record, &format!("{id} {began}\n"))?;
        Ok(process)
    }

    /// Opens the process described by `record`, if it still runs. It keeps running on drop.
    pub(crate) fn adopt(what: &str, record: &Path, log: PathBuf) -> Option<Self> {
        let text = fs::read_to_string(record).ok()?;
        let (id, began) = text.trim().split_once(' ')?;
        let (id, began) = (id.parse().ok()?, began.parse().ok()?);
        let keep = KeepFlag::default();
        keep.set();
        let process = Self {
            what: what.to_owned(),
            id,
            child: None,
            began,
            log,
            log_start: 0,
            status: None,
            keep,
        };
        process.runs().then_some(process)
    }

    /// Returns the process id, also after the process has ended.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Returns whether the process still runs.
    pub(crate) fn runs(&self) -> bool {
        stat(self.id).is_some_and(|(began, state)| began == self.began && !"ZX".contains(state))
    }

    /// Kills the process and its children, and waits until they are gone.
    ///
    /// # Errors
    /// When the process does not run.
    pub(crate) fn end_at_once(&mut self) -> Result<()> {
        if !self.runs() {
            bail!("{} has ended", self.what);
        }
        // The process leads its own process group (see `Netns::command`), which includes nginx's
        // workers.
        killpg(self.pid()?, Signal::SIGKILL)
            .with_context(|| format!("cannot end {}", self.what))?;
        let what = format!("the end of {}", self.what);
        wait(&what, Duration::from_secs(10), || Ok((!self.runs()).then_some(())))?;
        // This reaps a child of this process.
        self.child.as_mut().map(Child::wait).transpose()?;
        Ok(())
    }

    /// Returns the path of the output file.
    #[must_use]
    pub fn log_file(&self) -> &Path {
        &self.log
    }

    /// Returns the output so far.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn log(&self) -> Result<String> {
        let bytes = fs::read(&self.log)?;
        Ok(String::from_utf8_lossy(bytes.get(self.log_start..).unwrap_or_default()).into_owned())
    }

    /// Returns the exit status if the process has ended.
    ///
    /// # Errors
    /// When the kernel cannot tell, because another process is the parent.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if let Some(child) = &mut self.child {
            if self.status.is_none() {
                self.status = child.try_wait()?;
            }
        } else if !self.runs() {
            bail!("{} has ended", self.what);
        }
        Ok(self.status)
    }

    /// Waits until `done` finds a value in the output after the first `from` bytes.
    ///
    /// # Errors
    /// When the process ends first or `limit` passes. The error holds the end of the output.
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
    /// When the process has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if let Some(status) = self.ended()? {
            bail!("{} has ended with {status}", self.what);
        }
        kill(self.pid()?, signal)
            .with_context(|| format!("cannot send {signal} to {}", self.what))?;
        if signal == Signal::SIGSTOP {
            // On a busy machine the threads continue for a while.
            let what = format!("{} to stop", self.what);
            wait(&what, Duration::from_secs(10), || Ok(self.stands_still()?.then_some(())))?;
        }
        Ok(())
    }

    /// Returns whether every thread is stopped.
    fn stands_still(&self) -> Result<bool> {
        for thread in fs::read_dir(format!("/proc/{}/task", self.id))? {
            let Ok(stat) = fs::read_to_string(thread?.path().join("stat")) else {
                continue; // It has ended meanwhile.
            };
            // The state follows the name, which is in parentheses and can contain any character.
            if !stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T")) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Waits until the process ends.
    ///
    /// # Errors
    /// When the process still runs after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.what);
        wait(&what, limit, || self.ended())
    }

    fn pid(&self) -> Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.id)?))
    }

    fn end(&mut self) -> Result<()> {
        if self.ended()?.is_some() {
            return Ok(());
        }
        kill(self.pid()?, Signal::SIGTERM)?;
        // Polling leaves time for cleanup after Ctrl-C; `wait` would block.
        for _ in 0..100 {
            if self.ended()?.is_some() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        if let Some(child) = &mut self.child {
            child.kill()?;
            self.status = Some(child.wait()?);
        }
        Ok(())
    }
}

/// Reads the start time and the state letter of a process from `/proc/ID/stat`.
fn stat(id: u32) -> Option<(u64, char)> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name in brackets can contain any character. The state is field 3, the start time field
    // 22.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?.chars().next()?;
    Some((fields.nth(18)?.parse().ok()?, state))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_start_time_is_read() {
        let (began, state) = stat(std::process::id()).unwrap();
        assert!(began > 0 && "RS".contains(state), "{began} {state}");
        assert_eq!(stat(u32::MAX), None);
    }
}
