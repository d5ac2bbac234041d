//! Drains, and the end of the daemon: announcements are withdrawn before the program is detached.

use std::time::Duration;

use glb_host::{control::Responder, systemd};
use tracing::{error, info, warn};

use super::{boot_time::BootTimestamp, state::Director, state_dir::DrainRecord};
use crate::{
    announce::{Announcer, DrainOutcome, state_machine::DrainRequest},
    config::{Config, OnStop},
};

/// How long a stop with `on_stop = "detach"` waits for traffic to stop.
const DETACH_TIMEOUT: Duration = Duration::from_secs(10);

/// How the daemon ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// The program stays attached and forwards.
    KeepForwarding,
    /// The program is detached.
    Detach,
}

/// Carries out drains for requests and signals.
#[derive(Debug)]
pub(super) struct DrainController {
    announcer: Announcer,
    /// A signal has asked the daemon to stop, which it does after the drain.
    stopping: bool,
}

impl DrainController {
    pub(super) const fn new(announcer: Announcer) -> Self {
        Self { announcer, stopping: false }
    }

    /// The outcome of the next drain that ends. The future can be dropped and asked for again.
    pub(super) async fn ended(&mut self) -> DrainOutcome {
        self.announcer.next_outcome().await
    }

    /// Begins a drain on request.
    pub(super) fn drain(
        &self,
        director: &mut Director,
        timeout_seconds: Option<f64>,
        force: bool,
        answer: Responder,
    ) {
        let given = timeout_seconds.and_then(|s| Duration::try_from_secs_f64(s).ok());
        let timeout = given.unwrap_or(director.config().drain.timeout);
        if self.announcer.announces() {
            director.activator.state_dir.keep_drain(Some(&DrainRecord {
                requested: BootTimestamp::now(),
                timeout_seconds: timeout.as_secs_f64(),
                force,
                is_drained: false,
            }));
        }
        self.announcer
            .drain(DrainRequest { timeout, force, low_preference_first: true }, Some(answer));
    }

    /// Cancels a drain on request.
    pub(super) fn undrain(&self, director: &mut Director, answer: Responder) {
        director.activator.state_dir.keep_drain(None);
        self.announcer.cancel(Some(answer));
    }

    /// Handles the outcome of a drain. Returns how the daemon exits, if it does.
    pub(super) fn follow(&mut self, director: &mut Director, ended: &DrainOutcome) -> Option<Exit> {
        if !self.stopping {
            let state_dir = &mut director.activator.state_dir;
            let kept = state_dir.drain().filter(|_| *ended == DrainOutcome::Drained);
            state_dir
                .keep_drain(kept.map(|drain| DrainRecord { is_drained: true, ..drain }).as_ref());
            return None;
        }
        match ended {
            DrainOutcome::Drained => Some(Exit::Detach),
            DrainOutcome::Aborted(why) => {
                error!(
                    "the drain failed; the program stays attached and goes on forwarding: {why}"
                );
                Some(Exit::KeepForwarding)
            }
            DrainOutcome::Cancelled => {
                warn!("the drain was cancelled; the daemon goes on");
                self.stopping = false;
                None
            }
        }
    }

    /// Handles a signal to stop. Returns how the daemon exits, if it does at once.
    pub(super) fn stop(&mut self, config: &Config) -> Option<Exit> {
        if self.stopping {
            warn!(
                "second signal: the daemon stops without waiting for the drain; the program stays attached"
            );
            return Some(Exit::KeepForwarding);
        }
        let order = match config.on_stop {
            OnStop::Stay => return Some(Exit::KeepForwarding),
            OnStop::Detach if !self.announcer.announces() => return Some(Exit::Detach),
            OnStop::Detach => {
                DrainRequest { timeout: DETACH_TIMEOUT, force: true, low_preference_first: false }
            }
            OnStop::Drain => DrainRequest {
                timeout: config.drain.timeout,
                force: false,
                low_preference_first: true,
            },
        };
        info!("stopping after the drain; a second signal stops at once");
        systemd::stopping();
        self.stopping = true;
        self.announcer.drain(order, None);
        None
    }

    /// Asks systemd for more time while a stop waits for its drain. Called periodically.
    pub(super) fn extend_timeout(&self) {
        if self.stopping {
            systemd::extend(Duration::from_secs(30));
        }
    }
}

/// The drain that a former process left: `Some(Some(…))` if it is under way, `Some(None)` if it is
/// complete.
pub(super) fn recorded_drain(director: &mut Director) -> Option<Option<DrainRequest>> {
    let drain = director.activator.state_dir.drain()?;
    if drain.is_drained {
        info!("the director stays drained until `glb-director undrain`");
        return Some(None);
    }
    let gone = drain.requested.seconds_until(&BootTimestamp::now()) as f64;
    let left = Duration::try_from_secs_f64(drain.timeout_seconds - gone).unwrap_or_default();
    if left.is_zero() {
        warn!("a drain was under way and its time is over: it is cancelled");
        director.activator.state_dir.keep_drain(None);
        return None;
    }
    info!(timeout = ?left, "continuing a drain that was under way");
    Some(Some(DrainRequest { timeout: left, force: drain.force, low_preference_first: true }))
}
