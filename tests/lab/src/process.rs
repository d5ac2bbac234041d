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

use crate::{cleanup::Keep, command, interrupt::wait, table::replace_file};

/// A running process whose output goes to a file. Ended when dropped, unless the lab is kept.
#[derive(Debug)]
pub struct Process {
    what: String,
    id: u32,
    /// None of a process that another one started: one of a lab that was left up.
    child: Option<Child>,
    /// When it began, in the kernel's ticks: with the id this names a process for ever.
    began: u64,
    log: PathBuf,
    /// Where this process's own lines begin: a restarted daemon appends.
    log_start: usize,
    status: Option<ExitStatus>,
    keep: Keep,
}

impl Process {
    /// Starts `command`; what it writes is appended to `log`, and who it is stands in `record`.
    pub(crate) fn spawn(
        what: &str,
        command: &mut Command,
        log: PathBuf,
        record: &Path,
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
        let (what, id) = (what.to_owned(), child.id());
        // A child that has ended is still there until it is waited for.
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

    /// The process of which `record` tells, if it still runs. It is not ended when this is dropped.
    pub(crate) fn adopt(what: &str, record: &Path, log: PathBuf) -> Option<Self> {
        let text = fs::read_to_string(record).ok()?;
        let (id, began) = text.trim().split_once(' ')?;
        let (id, began) = (id.parse().ok()?, began.parse().ok()?);
        let keep = Keep::default();
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

    /// The process's id, also after its end.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Whether it has not ended.
    pub(crate) fn runs(&self) -> bool {
        stat(self.id).is_some_and(|(began, state)| began == self.began && !"ZX".contains(state))
    }

    /// Ends it and what it started at once, and waits until it is gone.
    ///
    /// # Errors
    /// When it does not run.
    pub(crate) fn end_at_once(&mut self) -> Result<()> {
        if !self.runs() {
            bail!("{} has ended", self.what);
        }
        // It leads a group of its own (see `Netns::command`), with nginx's workers in it.
        killpg(self.pid()?, Signal::SIGKILL)
            .with_context(|| format!("cannot end {}", self.what))?;
        let what = format!("the end of {}", self.what);
        wait(&what, Duration::from_secs(10), || Ok((!self.runs()).then_some(())))?;
        // So that no dead child of this process stays.
        self.child.as_mut().map(Child::wait).transpose()?;
        Ok(())
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
    /// When the kernel cannot say: it tells only who started the process.
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
        kill(self.pid()?, signal)
            .with_context(|| format!("cannot send {signal} to {}", self.what))?;
        if signal == Signal::SIGSTOP {
            // On a busy machine its threads go on for a while.
            let what = format!("{} to stand still", self.what);
            wait(&what, Duration::from_secs(10), || Ok(self.stands_still()?.then_some(())))?;
        }
        Ok(())
    }

    /// Whether every thread is stopped.
    fn stands_still(&self) -> Result<bool> {
        for thread in fs::read_dir(format!("/proc/{}/task", self.id))? {
            let Ok(stat) = fs::read_to_string(thread?.path().join("stat")) else {
                continue; // It has ended meanwhile.
            };
            // The state stands behind the name, which is in parentheses and may hold anything.
            if !stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T")) {
                return Ok(false);
            }
        }
        Ok(true)
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
        Ok(Pid::from_raw(i32::try_from(self.id)?))
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
        if let Some(child) = &mut self.child {
            child.kill()?;
            self.status = Some(child.wait()?);
        }
        Ok(())
    }
}

/// When a process began and the letter of its state, from `/proc/ID/stat`.
fn stat(id: u32) -> Option<(u64, char)> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name in brackets may hold anything. The state is field 3, the beginning field 22.
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
    fn the_kernel_tells_when_a_process_began() {
        let (began, state) = stat(std::process::id()).unwrap();
        assert!(began > 0 && "RS".contains(state), "{began} {state}");
        assert_eq!(stat(u32::MAX), None);
    }
}
