//! A `trace` or `capture` command next to a daemon.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use glb_host::capture_file::{CaptureReader, CapturedFrame};
use glb_lab::{Daemon, Fleet, interrupt};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::support::ask;

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A running `trace` or `capture` command. It ends on drop.
pub(crate) struct TraceClient {
    pub(crate) child: Child,
    out: Option<ChildStdout>,
    errors: Receiver<String>,
    pub(crate) said: String,
}

impl TraceClient {
    /// Starts the command and waits until it traces.
    pub(crate) fn start(fleet: &Fleet, daemon: &Daemon, words: &[&str]) -> Result<Self> {
        let mut watcher = Self::spawn(fleet, daemon, words)?;
        watcher.says("watching generation")?;
        Ok(watcher)
    }

    pub(crate) fn spawn(fleet: &Fleet, daemon: &Daemon, words: &[&str]) -> Result<Self> {
        let mut command: Command = daemon.command(&fleet.lab, words[0])?;
        command.args(&words[1..]).stdin(Stdio::null());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (tell, errors) = channel();
        let stderr = child.stderr.take().context("no stderr")?;
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    break;
                }
            }
        });
        let out = child.stdout.take();
        Ok(Self { child, out, errors, said: String::new() })
    }

    /// Waits until the output contains `words`.
    pub(crate) fn says(&mut self, words: &str) -> Result<()> {
        while !self.said.contains(words) {
            match self.errors.recv_timeout(PATIENCE) {
                Ok(line) => self.said += &format!("{line}\n"),
                Err(error) => bail!("{words:?} was not said ({error}), but: {}", self.said),
            }
        }
        Ok(())
    }

    /// Waits for the end and returns every line of the output.
    pub(crate) fn lines(&mut self) -> Result<Vec<String>> {
        let out = self.out.take().context("read already")?;
        let lines = BufReader::new(out).lines().collect::<Result<Vec<_>, _>>()?;
        let status =
            interrupt::wait("the watcher's end", PATIENCE, || Ok(self.child.try_wait()?))?;
        while let Ok(line) = self.errors.recv_timeout(Duration::from_secs(1)) {
            self.said += &format!("{line}\n");
        }
        ensure!(status.success(), "it ended with {status}: {}", self.said);
        Ok(lines)
    }

    pub(crate) fn json(&mut self) -> Result<Vec<Value>> {
        self.lines()?.iter().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)?)
    }
}

impl Drop for TraceClient {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Waits until the daemon has restored the plain program.
pub(crate) fn is_plain(daemon: &mut Daemon, times: usize) -> Result<()> {
    interrupt::wait("the plain program", PATIENCE, || {
        let log = daemon.process()?.log()?;
        Ok((log.matches("trace ended").count() >= times).then_some(()))
    })
}

/// Sends a request from each of some clients, so that the daemons handle packets.
pub(crate) fn traffic(fleet: &Fleet) -> Result<()> {
    for number in 100..110 {
        ask(&fleet.lab, glb_lab::Family::V4, number)?;
    }
    Ok(())
}

/// Reads all packets of a capture file.
pub(crate) fn packets(path: &Path) -> Result<Vec<CapturedFrame>> {
    let mut reader = CaptureReader::open(path)?;
    std::iter::from_fn(|| reader.next_packet().transpose()).map(|packet| Ok(packet?)).collect()
}
