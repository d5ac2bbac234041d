//! A command that is told what to announce: for ExaBGP, GoBGP or whatever else there is.

use std::{
    io,
    pin::pin,
    process::Stdio,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use tokio::{
    io::AsyncReadExt as _,
    process::{ChildStderr, Command},
    time::timeout,
};

use super::Level;

/// How much of what it complains of is shown, in bytes.
const COMPLAINT: usize = 2_048;

/// How long what it has written is waited for after its end.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Why the command did not do it.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// It cannot be run.
    #[error("cannot run `{command}`: {source}")]
    Run {
        /// The program.
        command: String,
        /// Why not.
        source: io::Error,
    },
    /// It did not end in time.
    #[error("`{command}` did not end within {limit:?} and was killed; `timeout` gives it longer")]
    TooLong {
        /// With its arguments.
        command: String,
        /// How long it had.
        limit: Duration,
    },
    /// It says that it failed.
    #[error("`{command}` ended with {status}{}", if complaint.is_empty() { String::new() } else { format!(": {complaint}") })]
    Failed {
        /// With its arguments.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it wrote to stderr.
        complaint: String,
    },
}

/// The command of one announcement.
#[derive(Debug)]
pub struct Hook {
    command: Vec<String>,
    timeout: Duration,
    repeat: Option<Duration>,
    name: String,
    prefixes: Vec<String>,
    /// What it was told last and did, and when.
    told: Option<(Level, Instant)>,
}

impl Hook {
    /// Nothing is run yet. One run may take `timeout`; it is told the same again every `repeat`.
    #[must_use]
    pub fn new(
        command: &[String],
        (timeout, repeat): (Duration, Option<Duration>),
        name: &str,
        prefixes: &[IpNet],
    ) -> Self {
        let prefixes = prefixes.iter().map(ToString::to_string).collect();
        let (command, name) = (command.to_vec(), name.to_owned());
        Self { command, timeout, repeat, name, prefixes, told: None }
    }

    /// What it was told last and did; nothing before it was told anything.
    #[must_use]
    pub fn level(&self) -> Option<Level> {
        self.told.map(|(level, _)| level)
    }

    /// Runs the command, unless it did this last and need not be told again yet.
    ///
    /// # Errors
    /// When it cannot be run, takes too long, or ends with anything but 0.
    pub async fn bring(&mut self, level: Level) -> Result<(), HookError> {
        let is_due = |when: Instant| self.repeat.is_some_and(|repeat| when.elapsed() >= repeat);
        if self.told.is_some_and(|(told, when)| told == level && !is_due(when)) {
            return Ok(());
        }
        // Whatever it did before it failed or was killed is not known.
        self.told = None;
        let verb = match level {
            Level::Announced => "announce",
            Level::LessWanted => "less-wanted",
            Level::Withdrawn => "withdraw",
        };
        let words = || {
            let all = self.command.iter().map(String::as_str).chain([verb]);
            all.chain(self.prefixes.iter().map(String::as_str)).collect::<Vec<_>>().join(" ")
        };
        let failed = |source| HookError::Run { command: words(), source };
        let mut command = Command::new(&self.command[0]);
        command
            .args(&self.command[1..])
            .arg(verb)
            .args(&self.prefixes)
            .env("GLB_ANNOUNCEMENT", &self.name)
            .env("GLB_ACTION", verb)
            .env("GLB_PREFIXES", self.prefixes.join(" "))
            // These are between the daemon and its service manager.
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
            let mut complaint = Vec::new();
            let status = {
                let mut read = pin!(read(stderr, &mut complaint));
                tokio::select! {
                    () = read.as_mut() => child.wait().await?,
                    status = child.wait() => {
                        // What it leaves running may hold the pipe open: the command's end counts.
                        drop(timeout(LAST_WORDS, read).await);
                        status?
                    }
                }
            };
            Ok((status, complaint))
        };
        match timeout(self.timeout, work).await {
            Ok(Ok((status, _))) if status.success() => {
                self.told = Some((level, Instant::now()));
                Ok(())
            }
            Ok(Ok((status, complaint))) => {
                let complaint = String::from_utf8_lossy(&complaint).trim().replace('\n', "; ");
                Err(HookError::Failed { command: words(), status, complaint })
            }
            Ok(Err(source)) => Err(failed(source)),
            Err(_) => Err(HookError::TooLong { command: words(), limit: self.timeout }),
        }
    }
}

/// Reads all, so that a full pipe holds nobody up, and keeps the beginning.
async fn read(stderr: Option<ChildStderr>, kept: &mut Vec<u8>) {
    let Some(mut stderr) = stderr else { return };
    let mut bytes = [0; 1_024];
    while let Ok(length @ 1..) = stderr.read(&mut bytes).await {
        let room = COMPLAINT.saturating_sub(kept.len());
        kept.extend(&bytes[..length.min(room)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(script: &str, timeout: Duration) -> Hook {
        let command = ["/bin/sh", "-c", script, "hook"].map(str::to_owned);
        let prefixes = ["203.0.113.10/32", "2001:db8::10/128"].map(|text| text.parse().unwrap());
        Hook::new(&command, (timeout, None), "web", &prefixes)
    }

    #[tokio::test]
    async fn it_is_told_once_with_everything_it_needs() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let script = format!(
            "echo \"$@ | $GLB_ANNOUNCEMENT $GLB_ACTION $GLB_PREFIXES $NOTIFY_SOCKET\" >> {}",
            log.display()
        );
        let mut hook = hook(&script, Duration::from_secs(30));
        assert_eq!(hook.level(), None);
        for level in [Level::Announced, Level::Announced, Level::LessWanted, Level::Withdrawn] {
            hook.bring(level).await.unwrap();
            assert_eq!(hook.level(), Some(level));
        }
        hook.repeat = Some(Duration::ZERO);
        hook.bring(Level::Withdrawn).await.unwrap();
        let both = "203.0.113.10/32 2001:db8::10/128";
        let lines = ["announce", "less-wanted", "withdraw", "withdraw"];
        let lines = lines.map(|verb| format!("{verb} {both} | web {verb} {both} \n")).concat();
        assert_eq!(std::fs::read_to_string(log).unwrap(), lines);
    }

    #[tokio::test]
    async fn its_failures_are_told_with_its_own_words() {
        let mut failing = hook("echo no such peer >&2; exit 3", Duration::from_secs(30));
        let error = failing.bring(Level::Announced).await.unwrap_err().to_string();
        for words in ["announce 203.0.113.10/32", "no such peer", "3"] {
            assert!(error.contains(words), "{words:?} is missing in: {error}");
        }
        assert_eq!(failing.level(), None);
        // Much to say, and somebody left behind who keeps the pipe.
        let loud = "sleep 5 & yes | head -c 300000 >&2; exit 1";
        let error = hook(loud, Duration::from_secs(30)).bring(Level::Withdrawn).await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains("y; y") && error.len() < 4_000, "{error}");
        let mut slow = hook("exec sleep 60", Duration::from_millis(50));
        let error = slow.bring(Level::Withdrawn).await.unwrap_err().to_string();
        assert!(error.contains("50ms") && error.contains("killed"), "{error}");
        let mut absent = hook("", Duration::from_secs(1));
        absent.command = vec!["/no/such/program".into()];
        let error = absent.bring(Level::Withdrawn).await.unwrap_err().to_string();
        assert!(error.contains("/no/such/program withdraw"), "{error}");
    }
}
