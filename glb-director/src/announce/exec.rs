//! The `exec` method: runs a command that tells a routing daemon, such as ExaBGP or GoBGP.

use std::{
    io,
    pin::pin,
    process::Stdio,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use nix::unistd::{AccessFlags, access};
use tokio::{
    io::AsyncReadExt as _,
    process::{ChildStderr, Command},
    time::timeout,
};

use super::{AnnouncementState, printable};

/// How much of the standard error output an error shows, in bytes.
const LONGEST_STDERR: usize = 2_048;

/// How long to wait for output after the command has ended.
const OUTPUT_TIMEOUT: Duration = Duration::from_millis(100);

/// Why the command failed.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The command cannot be run.
    #[error(
        "cannot run `{command}`: {source}. Check `command`, and that this daemon's user may execute it"
    )]
    Run {
        /// The command with its arguments.
        command: String,
        /// The error.
        source: io::Error,
    },
    /// The command did not end in time.
    #[error(
        "`{command}` did not end within {limit:?} and was killed. Raise `timeout`, or see what it waits for"
    )]
    TooLong {
        /// The command with its arguments.
        command: String,
        /// The time limit.
        limit: Duration,
    },
    /// The command exited with an error.
    #[error("`{command}` failed ({status}){}", if stderr_text.is_empty() { String::new() } else { format!(": {stderr_text}") })]
    Failed {
        /// The command with its arguments.
        command: String,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// Its standard error output.
        stderr_text: String,
    },
}

/// The command of one announcement.
#[derive(Debug)]
pub struct Exec {
    command: Vec<String>,
    timeout: Duration,
    repeat: Option<Duration>,
    name: String,
    prefixes: Vec<String>,
    /// The last state that a run confirmed, and when.
    confirmed: Option<(AnnouncementState, Instant)>,
}

impl Exec {
    /// Names the command. One run may take `timeout`; it is repeated every `repeat`.
    #[must_use]
    pub fn new(
        command: &[String],
        (timeout, repeat): (Duration, Option<Duration>),
        name: &str,
        prefixes: &[IpNet],
    ) -> Self {
        let prefixes = prefixes.iter().map(ToString::to_string).collect();
        let (command, name) = (command.to_vec(), name.to_owned());
        Self { command, timeout, repeat, name, prefixes, confirmed: None }
    }

    /// Returns the last state that a run confirmed; nothing before, and nothing after a failure.
    #[must_use]
    pub fn state(&self) -> Option<AnnouncementState> {
        self.confirmed.map(|(state, _)| state)
    }

    /// Checks that the program exists and can be executed; a name without a slash is not checked.
    ///
    /// # Errors
    /// When it does not exist or cannot be executed.
    pub fn check(&self) -> Result<(), ExecError> {
        let program = &self.command[0];
        if !program.contains('/') {
            return Ok(());
        }
        let checked = access(program.as_str(), AccessFlags::X_OK);
        checked.map_err(|errno| ExecError::Run { command: program.clone(), source: errno.into() })
    }

    /// Runs the command, unless the last run confirmed this state and no repetition is due.
    ///
    /// # Errors
    /// When the command cannot be run, takes too long, or exits with a code other than 0.
    pub async fn apply(&mut self, state: AnnouncementState) -> Result<(), ExecError> {
        let is_due = |when: Instant| self.repeat.is_some_and(|repeat| when.elapsed() >= repeat);
        if self.confirmed.is_some_and(|(confirmed, when)| confirmed == state && !is_due(when)) {
            return Ok(());
        }
        // What a failed or killed run did is unknown.
        self.confirmed = None;
        let verb = match state {
            AnnouncementState::Announced => "announce",
            AnnouncementState::LowPreference => "low-preference",
            AnnouncementState::Withdrawn => "withdraw",
        };
        let words = || {
            let all = self.command.iter().map(String::as_str).chain([verb]);
            all.chain(self.prefixes.iter().map(String::as_str)).collect::<Vec<_>>().join(" ")
        };
        let failed = |source| ExecError::Run { command: words(), source };
        let mut command = Command::new(&self.command[0]);
        command
            .args(&self.command[1..])
            .arg(verb)
            .args(&self.prefixes)
            .env("GLB_ANNOUNCEMENT", &self.name)
            .env("GLB_ACTION", verb)
            .env("GLB_PREFIXES", self.prefixes.join(" "))
            // These belong to the daemon and its service manager.
            .env_remove("NOTIFY_SOCKET")
            .env_remove("WATCHDOG_USEC")
            .env_remove("WATCHDOG_PID")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(failed)?;
        let stderr = child.stderr.take();
        let work = async move {
            let mut stderr_text = Vec::new();
            let status = {
                let mut read = pin!(read(stderr, &mut stderr_text));
                tokio::select! {
                    () = read.as_mut() => child.wait().await?,
                    status = child.wait() => {
                        // What it leaves running may hold the pipe open: the command's end counts.
                        drop(timeout(OUTPUT_TIMEOUT, read).await);
                        status?
                    }
                }
            };
            Ok((status, stderr_text))
        };
        match timeout(self.timeout, work).await {
            Ok(Ok((status, _))) if status.success() => {
                self.confirmed = Some((state, Instant::now()));
                Ok(())
            }
            Ok(Ok((status, stderr_text))) => {
                let lines = String::from_utf8_lossy(&stderr_text);
                let lines = lines.trim().lines().map(printable).collect::<Vec<_>>();
                let stderr_text = lines.join("; ");
                Err(ExecError::Failed { command: words(), status, stderr_text })
            }
            Ok(Err(source)) => Err(failed(source)),
            Err(_) => Err(ExecError::TooLong { command: words(), limit: self.timeout }),
        }
    }
}

/// Reads to the end, so that a full pipe never blocks the command; keeps the beginning.
async fn read(stderr: Option<ChildStderr>, kept: &mut Vec<u8>) {
    let Some(mut stderr) = stderr else { return };
    let mut bytes = [0; 1_024];
    while let Ok(length @ 1..) = stderr.read(&mut bytes).await {
        let room = LONGEST_STDERR.saturating_sub(kept.len());
        kept.extend(&bytes[..length.min(room)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exec(script: &str, timeout: Duration) -> Exec {
        let command = ["/bin/sh", "-c", script, "hook"].map(str::to_owned);
        let prefixes = ["203.0.113.10/32", "2001:db8::10/128"].map(|text| text.parse().unwrap());
        Exec::new(&command, (timeout, None), "web", &prefixes)
    }

    #[tokio::test]
    async fn the_command_runs_once_per_state_with_arguments_and_environment() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let script = format!(
            "echo \"$@ | $GLB_ANNOUNCEMENT $GLB_ACTION $GLB_PREFIXES $NOTIFY_SOCKET\" >> {}",
            log.display()
        );
        let mut command = exec(&script, Duration::from_secs(30));
        assert_eq!(command.state(), None);
        for state in [
            AnnouncementState::Announced,
            AnnouncementState::Announced,
            AnnouncementState::LowPreference,
            AnnouncementState::Withdrawn,
        ] {
            command.apply(state).await.unwrap();
            assert_eq!(command.state(), Some(state));
        }
        command.repeat = Some(Duration::ZERO);
        command.apply(AnnouncementState::Withdrawn).await.unwrap();
        let both = "203.0.113.10/32 2001:db8::10/128";
        let lines = ["announce", "low-preference", "withdraw", "withdraw"];
        let lines = lines.map(|verb| format!("{verb} {both} | web {verb} {both} \n")).concat();
        assert_eq!(std::fs::read_to_string(log).unwrap(), lines);
    }

    #[tokio::test]
    async fn failures_carry_the_command_and_its_stderr() {
        let mut failing = exec("echo no such peer >&2; exit 3", Duration::from_secs(30));
        let error = failing.apply(AnnouncementState::Announced).await.unwrap_err().to_string();
        for words in ["announce 203.0.113.10/32", "no such peer", "3"] {
            assert!(error.contains(words), "{words:?} is missing in: {error}");
        }
        assert_eq!(failing.state(), None);
        // A long output, and a child that keeps the pipe open.
        let loud = "sleep 5 & yes | head -c 300000 >&2; exit 1";
        let error = exec(loud, Duration::from_secs(30)).apply(AnnouncementState::Withdrawn).await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains("y; y") && error.len() < 4_000, "{error}");
        let mut slow = exec("exec sleep 60", Duration::from_millis(50));
        let error = slow.apply(AnnouncementState::Withdrawn).await.unwrap_err().to_string();
        assert!(error.contains("50ms") && error.contains("killed"), "{error}");
        let mut absent = exec("", Duration::from_secs(1));
        absent.command = vec!["/no/such/program".into()];
        let error = absent.apply(AnnouncementState::Withdrawn).await.unwrap_err().to_string();
        assert!(error.contains("/no/such/program withdraw"), "{error}");
    }
}
