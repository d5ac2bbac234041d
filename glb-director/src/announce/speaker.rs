//! One announcement's speaker: the task that carries decisions out by the configured method and
//! reports what is announced.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, watch},
    time::sleep,
};
use tracing::{info, warn};

use super::{
    Announcement, AnnouncementState, SessionView,
    announcement::MethodConfig,
    bird::{Bird, BirdError},
    exec::{Exec, ExecError},
    state_machine::Decision,
    tun::{Tun, TunError},
};

/// How often a speaker checks what is announced when nothing has changed.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The first pause before a failed method is tried again; it doubles with each failure.
const FIRST_RETRY: Duration = Duration::from_millis(250);

/// Why a method did not carry out a decision.
#[derive(Debug, thiserror::Error)]
pub enum SpeakerError {
    /// BIRD failed.
    #[error(transparent)]
    Bird(#[from] BirdError),
    /// The TUN interface or its routes failed.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// The command failed.
    #[error(transparent)]
    Exec(#[from] ExecError),
}

/// The state that a speaker is to bring about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Target {
    /// Counts changes of the desired state; 0 before the first decision.
    pub(super) revision: u64,
    /// The decision; before the first one the speaker only observes.
    pub(super) decision: Option<Decision>,
}

/// What a speaker reports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SpeakerStatus {
    /// The target's revision that this status answers; an older one may be out of date.
    pub(super) revision: u64,
    /// What is announced; nothing if that is unknown.
    pub(super) state: Option<AnnouncementState>,
    /// Why that is not the desired state; empty if it is.
    pub(super) error: String,
    /// Packets to the prefixes that came out of the TUN interface.
    pub(super) dropped: u64,
    /// The BGP sessions that carry the prefixes, as far as the method sees them.
    pub(super) sessions: Vec<SessionView>,
}

/// A method with its connection, interface or command.
#[derive(Debug)]
pub(super) enum Speaker {
    Bird(Bird),
    Tun(Tun),
    Exec(Exec),
}

impl Speaker {
    pub(super) fn new(announcement: &Announcement) -> Self {
        match &announcement.method {
            MethodConfig::Bird { socket, protocols, low_preference, sessions } => {
                let bird = Bird::new(socket, protocols, low_preference);
                Self::Bird(bird.with_sessions(sessions, &announcement.prefixes))
            }
            MethodConfig::Tun { interface, metric, low_preference_metric } => {
                let metrics = (*metric, *low_preference_metric);
                Self::Tun(Tun::new(interface, metrics, &announcement.prefixes))
            }
            MethodConfig::Exec { command, timeout, repeat, .. } => {
                let Announcement { name, prefixes, .. } = announcement;
                Self::Exec(Exec::new(command, (*timeout, *repeat), name, prefixes))
            }
        }
    }

    /// Returns what is announced now; nothing if that is unknown.
    pub(super) async fn observe(&mut self) -> Result<Option<AnnouncementState>, SpeakerError> {
        match self {
            Self::Bird(bird) => Ok(Some(bird.observe().await?)),
            Self::Tun(tun) => Ok(tun.state()),
            Self::Exec(exec) => Ok(exec.state()),
        }
    }

    /// Checks that the method can be asked, without changing anything.
    pub(super) async fn check(&mut self) -> Result<(), SpeakerError> {
        match self {
            Self::Bird(bird) => drop(bird.observe().await?),
            // The running daemon owns the interface.
            Self::Tun(_) => {}
            Self::Exec(exec) => exec.check()?,
        }
        Ok(())
    }

    /// Brings a state about and confirms it. May be cancelled and called again.
    pub(super) async fn apply(&mut self, state: AnnouncementState) -> Result<(), SpeakerError> {
        match self {
            Self::Bird(bird) => bird.apply(state).await?,
            Self::Tun(tun) => tun.apply(state).await?,
            Self::Exec(exec) => exec.apply(state).await?,
        }
        Ok(())
    }

    /// Waits until the announced state may have changed without a decision.
    async fn disturbed(&mut self) {
        match self {
            Self::Bird(bird) => bird.closed().await,
            Self::Tun(tun) => tun.drop_packets().await,
            Self::Exec(_) => std::future::pending().await,
        }
    }

    /// Packets that the TUN interface has dropped.
    fn dropped(&self) -> u64 {
        match self {
            Self::Tun(tun) => tun.dropped(),
            Self::Bird(_) | Self::Exec(_) => 0,
        }
    }

    /// The BGP sessions that the method can see.
    fn sessions(&self) -> Vec<SessionView> {
        match self {
            Self::Bird(bird) => bird.sessions().to_vec(),
            Self::Tun(_) | Self::Exec(_) => Vec::new(),
        }
    }

    /// The longest pause between attempts.
    fn longest_retry(&self) -> Duration {
        match self {
            Self::Bird(_) | Self::Tun(_) => CHECK_INTERVAL,
            Self::Exec(_) => Duration::from_secs(30),
        }
    }
}

/// Keeps an announcement in its desired state until the sender of targets is dropped.
pub(super) async fn run(
    announcement: Announcement,
    mut targets: watch::Receiver<Target>,
    status: watch::Sender<Option<SpeakerStatus>>,
    changed: Arc<Notify>,
) {
    let name = &announcement.name;
    let mut speaker = Speaker::new(&announcement);
    let mut backoff = FIRST_RETRY;
    loop {
        let Target { revision, decision } = targets.borrow_and_update().clone();
        let work = async {
            match &decision {
                None => speaker.observe().await,
                Some(decision) => {
                    speaker.apply(decision.state).await.map(|()| Some(decision.state))
                }
            }
        };
        // A new target cancels the current attempt, which may hang.
        let result = tokio::select! {
            result = work => result,
            changed = targets.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        let pause = if result.is_ok() {
            backoff = FIRST_RETRY;
            CHECK_INTERVAL
        } else {
            backoff = (backoff * 2).min(speaker.longest_retry());
            backoff
        };
        let (state, error) = match result {
            Ok(state) => (state, String::new()),
            // A method that cannot be asked may still announce.
            Err(error) => (None, error.to_string()),
        };
        let sessions = if error.is_empty() { speaker.sessions() } else { Vec::new() };
        let new = SpeakerStatus { revision, state, error, dropped: speaker.dropped(), sessions };
        let is_new = status.send_if_modified(|old| {
            if old.as_ref() == Some(&new) {
                return false;
            }
            log_change(name, decision.as_ref(), old.as_ref(), &new);
            *old = Some(new);
            true
        });
        if is_new {
            changed.notify_one();
        }
        tokio::select! {
            changed = targets.changed() => if changed.is_err() { return },
            () = speaker.disturbed() => {}
            () = sleep(pause) => {}
        }
    }
}

/// Logs one line for each change of an announcement's status.
fn log_change(
    announcement: &str,
    decision: Option<&Decision>,
    old: Option<&SpeakerStatus>,
    new: &SpeakerStatus,
) {
    let old = old.cloned().unwrap_or_default();
    log_sessions(announcement, &old.sessions, &new.sessions);
    let Some(decision) = decision else {
        if !new.error.is_empty() && new.error != old.error {
            warn!(announcement, error = %new.error, "announced state is unknown");
        }
        return;
    };
    let desired = decision.state.name();
    if !new.error.is_empty() {
        if new.error != old.error {
            warn!(announcement, desired, error = %new.error, "announcement failed, will retry");
        }
    } else if new.state != old.state || !old.error.is_empty() {
        let reason = decision.blocker.as_ref().map_or("eligible", |why| why.message.as_str());
        info!(announcement, state = desired, reason, "announcement state changed");
    }
}

/// Logs one line for each BGP session that came up or went down.
fn log_sessions(announcement: &str, old: &[SessionView], new: &[SessionView]) {
    for session in new {
        let before = old.iter().find(|other| other.name == session.name);
        let SessionView { name, established, info, .. } = session;
        match (before.is_some_and(|other| other.established), established) {
            (false, true) => info!(announcement, session = name, "BGP session established"),
            (true, false) => warn!(announcement, session = name, info, "BGP session down"),
            _ => {}
        }
    }
}
