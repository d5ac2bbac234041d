//! The triggers of a reload: SIGHUP, and changes of the table. A burst of them becomes one reload.

use std::time::Duration;

use tokio::{
    signal::unix::Signal,
    time::{Instant, sleep_until},
};

use glb_host::table_source::TableWatch;

/// A burst of triggers is over after this time without another one.
const DEBOUNCE: Duration = Duration::from_millis(4);
/// A burst is waited for no longer than this.
const MAX_DELAY: Duration = Duration::from_millis(20);
/// The shortest time from the end of a reload to the next one.
const PAUSE: Duration = Duration::from_millis(50);

/// Why the table is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trigger {
    /// The table's source reported a change.
    Changed,
    /// A signal or an operator requested it.
    Requested,
}

/// Waits for triggers.
pub(super) struct Triggers {
    hangup: Signal,
    source: Box<dyn TableWatch>,
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
    pub(super) fn new(hangup: Signal, source: Box<dyn TableWatch>) -> Self {
        Self { hangup, source, pending: None, not_before: Instant::now() }
    }

    /// Waits for changes of another source from now on.
    pub(super) fn watch(&mut self, source: Box<dyn TableWatch>) {
        self.source = source;
    }

    /// The next trigger. The future can be dropped and asked for again; no trigger is lost.
    pub(super) async fn next(&mut self) -> Trigger {
        loop {
            let due = self.pending.map(|pending| {
                (pending.last + DEBOUNCE).min(pending.first + MAX_DELAY).max(self.not_before)
            });
            let trigger = tokio::select! {
                // A removed signal handler returns `None` at once, for ever.
                got = self.hangup.recv() => match got {
                    Some(()) => Trigger::Requested,
                    None => std::future::pending().await,
                },
                () = self.source.changed() => Trigger::Changed,
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
            if trigger == Trigger::Requested {
                pending.trigger = trigger;
            }
        }
    }

    /// Begins the pause after a reload.
    pub(super) fn reload_ended(&mut self) {
        self.not_before = Instant::now() + PAUSE;
    }
}

#[cfg(test)]
mod tests {
    use tokio::signal::unix::{SignalKind, signal};

    use super::*;

    #[tokio::test]
    async fn a_burst_is_one_trigger_and_a_signal_in_it_makes_it_a_request() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table.toml");
        std::fs::write(&path, "1").unwrap();
        let hangup = signal(SignalKind::hangup()).unwrap();
        let mut triggers = Triggers::new(hangup, glb_host::table_source::open(&path).watch());
        for round in 0..20 {
            std::fs::write(&path, "x".repeat(round)).unwrap();
        }
        let pid = nix::unistd::getpid();
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGHUP).unwrap();
        let mut first = triggers.next().await;
        if first == Trigger::Changed {
            // On a busy machine the signal arrives after the burst of changes.
            triggers.reload_ended();
            first = triggers.next().await;
        }
        assert_eq!(first, Trigger::Requested);
        triggers.reload_ended();
        let more = tokio::time::timeout(Duration::from_millis(500), triggers.next()).await;
        assert!(more.is_err(), "{more:?}");
        std::fs::write(&path, "once more").unwrap();
        assert_eq!(triggers.next().await, Trigger::Changed);
    }
}
