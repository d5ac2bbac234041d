//! What makes the daemon look at its table file: a signal, or a change of the file. A burst of them
//! is one.

use std::time::Duration;

use tokio::{
    signal::unix::Signal,
    time::{Instant, sleep_until},
};

use glb_host::watched_file::WatchedFile;

/// A burst is over when nothing more has come for so long.
const QUIET: Duration = Duration::from_millis(4);
/// It is not waited for longer than this.
const PATIENCE: Duration = Duration::from_millis(20);
/// The next reload is begun no sooner after one has ended; what comes meanwhile is one.
const PAUSE: Duration = Duration::from_millis(50);

/// A reason to look at the table file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trigger {
    /// The file is another one.
    Changed,
    /// Somebody wants it.
    Asked,
}

/// Waits for triggers.
pub(super) struct Triggers {
    hangup: Signal,
    file: WatchedFile,
    pending: Option<Pending>,
    not_before: Instant,
}

#[derive(Clone, Copy)]
struct Pending {
    trigger: Trigger,
    first: Instant,
    last: Instant,
}

impl Triggers {
    pub(super) fn new(hangup: Signal, file: WatchedFile) -> Self {
        Self { hangup, file, pending: None, not_before: Instant::now() }
    }

    /// The next one. Can be dropped and called again: nothing is lost.
    pub(super) async fn next(&mut self) -> Trigger {
        loop {
            let due = self.pending.map(|pending| {
                (pending.last + QUIET).min(pending.first + PATIENCE).max(self.not_before)
            });
            let trigger = tokio::select! {
                // A signal handler that is gone says so at once and for ever.
                got = self.hangup.recv() => match got {
                    Some(()) => Trigger::Asked,
                    None => std::future::pending().await,
                },
                () = self.file.changed() => Trigger::Changed,
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    if let Some(pending) = self.pending.take() {
                        return pending.trigger;
                    }
                    continue;
                }
            };
            let now = Instant::now();
            let pending = self.pending.get_or_insert(Pending { trigger, first: now, last: now });
            pending.last = now;
            if trigger == Trigger::Asked {
                pending.trigger = trigger;
            }
        }
    }

    /// A reload has ended.
    pub(super) fn done(&mut self) {
        self.not_before = Instant::now() + PAUSE;
    }
}

#[cfg(test)]
mod tests {
    use tokio::signal::unix::{SignalKind, signal};

    use super::*;

    #[tokio::test]
    async fn a_burst_is_one_and_a_signal_in_it_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table.toml");
        std::fs::write(&path, "1").unwrap();
        let hangup = signal(SignalKind::hangup()).unwrap();
        let mut triggers = Triggers::new(hangup, WatchedFile::watch(&path));
        for round in 0..20 {
            std::fs::write(&path, "x".repeat(round)).unwrap();
        }
        let pid = nix::unistd::getpid();
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGHUP).unwrap();
        let mut first = triggers.next().await;
        if first == Trigger::Changed {
            // On a loaded machine the signal comes when the burst of changes is over already.
            triggers.done();
            first = triggers.next().await;
        }
        assert_eq!(first, Trigger::Asked);
        triggers.done();
        let more = tokio::time::timeout(Duration::from_millis(500), triggers.next()).await;
        assert!(more.is_err(), "{more:?}");
        std::fs::write(&path, "once more").unwrap();
        assert_eq!(triggers.next().await, Trigger::Changed);
    }
}
