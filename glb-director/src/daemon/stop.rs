//! Drains that were asked for, and the end of the daemon: what is announced goes before the program.

use std::time::Duration;

use glb_host::{control::Responder, systemd};
use tracing::{error, info, warn};

use super::{boot_time::Moment, state::Director, state_dir::Drain};
use crate::{
    announce::{Announcer, DrainOutcome, state_machine::DrainRequest},
    config::{Config, OnStop},
};

/// How long packets are waited for at a stop that only withdraws.
const LAST_PACKETS: Duration = Duration::from_secs(10);

/// How the daemon ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The program stays, which forwards.
    Stay,
    /// The program is taken off.
    Detach,
}

/// The announcements, as the daemon's loop handles them.
#[derive(Debug)]
pub(super) struct Announcing {
    announcer: Announcer,
    /// A signal has come, and the daemon ends when the drain has.
    stopping: bool,
}

impl Announcing {
    pub(super) const fn new(announcer: Announcer) -> Self {
        Self { announcer, stopping: false }
    }

    /// The next end of a drain. Can be dropped and called again.
    pub(super) async fn ended(&mut self) -> DrainOutcome {
        self.announcer.next_outcome().await
    }

    /// Somebody asks for a drain.
    pub(super) fn drain(
        &self,
        director: &mut Director<'_>,
        timeout_seconds: Option<f64>,
        force: bool,
        answer: Responder,
    ) {
        let given = timeout_seconds.and_then(|s| Duration::try_from_secs_f64(s).ok());
        let timeout = given.unwrap_or(director.config().drain.timeout);
        if self.announcer.announces() {
            director.making.store.keep_drain(Some(&Drain {
                asked: Moment::now(),
                timeout_seconds: timeout.as_secs_f64(),
                force,
                is_drained: false,
            }));
        }
        self.announcer
            .drain(DrainRequest { timeout, force, low_preference_first: true }, Some(answer));
    }

    /// Somebody has changed their mind.
    pub(super) fn undrain(&self, director: &mut Director<'_>, answer: Responder) {
        director.making.store.keep_drain(None);
        self.announcer.cancel(Some(answer));
    }

    /// A drain has ended; whether the daemon ends with it, and how.
    pub(super) fn follow(
        &mut self,
        director: &mut Director<'_>,
        ended: &DrainOutcome,
    ) -> Option<End> {
        if !self.stopping {
            let store = &mut director.making.store;
            let kept = store.drain().filter(|_| *ended == DrainOutcome::Drained);
            store.keep_drain(kept.map(|drain| Drain { is_drained: true, ..drain }).as_ref());
            return None;
        }
        match ended {
            DrainOutcome::Drained => Some(End::Detach),
            DrainOutcome::Aborted(why) => {
                error!("not drained, so the program stays and goes on forwarding: {why}");
                Some(End::Stay)
            }
            DrainOutcome::Cancelled => {
                warn!("the drain of the stop was cancelled: the daemon goes on");
                self.stopping = false;
                None
            }
        }
    }

    /// A signal wants the daemon to end; whether it does so at once, and how.
    pub(super) fn stop(&mut self, config: &Config) -> Option<End> {
        if self.stopping {
            warn!("told to end once more: the drain is not waited for, and the program stays");
            return Some(End::Stay);
        }
        let order = match config.on_stop {
            OnStop::Stay => return Some(End::Stay),
            OnStop::Detach if !self.announcer.announces() => return Some(End::Detach),
            // Whoever stops it so does not want to wait; what cannot be withdrawn stays served.
            OnStop::Detach => {
                DrainRequest { timeout: LAST_PACKETS, force: true, low_preference_first: false }
            }
            OnStop::Drain => DrainRequest {
                timeout: config.drain.timeout,
                force: false,
                low_preference_first: true,
            },
        };
        info!(
            "ends when nothing is announced and no packets come; a second signal ends it at once"
        );
        systemd::stopping();
        self.stopping = true;
        self.announcer.drain(order, None);
        None
    }

    /// What is done now and then.
    pub(super) fn keep_up(&self) {
        if self.stopping {
            systemd::extend(Duration::from_secs(30));
        }
    }
}

/// The drain that was under way when the director was last seen, or done (nothing in it).
pub(super) fn kept(director: &mut Director<'_>) -> Option<Option<DrainRequest>> {
    let drain = director.making.store.drain()?;
    if drain.is_drained {
        info!("the director is drained, and stays so until `glb-director undrain`");
        return Some(None);
    }
    let gone = drain.asked.until(&Moment::now()) as f64;
    let left = Duration::try_from_secs_f64(drain.timeout_seconds - gone).unwrap_or_default();
    if left.is_zero() {
        warn!("the time of a drain that was under way is up: it is given up");
        director.making.store.keep_drain(None);
        return None;
    }
    info!(timeout = ?left, "a drain that was under way goes on");
    Some(Some(DrainRequest { timeout: left, force: drain.force, low_preference_first: true }))
}
