//! One announcement's way to the routers, whichever it is, and the task that keeps it as it is to be.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, watch},
    time::sleep,
};
use tracing::{info, warn};

use super::{
    Announcement, Level,
    announcement::WayConfig,
    bird::{Bird, BirdError},
    exec::{Hook, HookError},
    state_machine::Wanted,
    tun::{Tun, TunError},
};

/// How often what is announced is looked at without a reason.
const LOOK: Duration = Duration::from_secs(1);

/// How soon a way that failed is tried again.
const AGAIN: Duration = Duration::from_millis(250);

/// Why routers are not told.
#[derive(Debug, thiserror::Error)]
pub enum WayError {
    /// BIRD.
    #[error(transparent)]
    Bird(#[from] BirdError),
    /// The TUN interface and its routes.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// The command.
    #[error(transparent)]
    Hook(#[from] HookError),
}

/// What is wished of a way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wish {
    /// Which wish for a level it is; 0 before the first one.
    pub(super) number: u64,
    /// Nothing before the first one: it is only looked.
    pub(super) wanted: Option<Wanted>,
}

/// What a way has come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    /// Which wish it is about: what was so before the last wish may not be so any more.
    pub(super) wish: u64,
    /// What is announced; nothing where that is not known.
    pub(super) level: Option<Level>,
    /// Why that is not what is wanted; empty if it is.
    pub(super) error: String,
    /// Packets that came to the TUN interface.
    pub(super) dropped: u64,
}

#[derive(Debug)]
pub(super) enum Way {
    Bird(Bird),
    Tun(Tun),
    Hook(Hook),
}

impl Way {
    pub(super) fn new(announcement: &Announcement) -> Self {
        match &announcement.way {
            WayConfig::Bird { socket, protocols, less_wanted } => {
                Self::Bird(Bird::new(socket, protocols, less_wanted))
            }
            WayConfig::Tun { interface, metric, less_wanted_metric } => {
                let metrics = (*metric, *less_wanted_metric);
                Self::Tun(Tun::new(interface, metrics, &announcement.prefixes))
            }
            WayConfig::Hook { command, timeout, repeat, .. } => {
                let Announcement { name, prefixes, .. } = announcement;
                Self::Hook(Hook::new(command, (*timeout, *repeat), name, prefixes))
            }
        }
    }

    /// What is announced now; nothing where that cannot be known.
    pub(super) async fn look(&mut self) -> Result<Option<Level>, WayError> {
        match self {
            Self::Bird(bird) => Ok(Some(bird.look().await?)),
            Self::Tun(tun) => Ok(Some(tun.level())),
            Self::Hook(hook) => Ok(hook.level()),
        }
    }

    /// Sees to it that this is announced. Can be dropped and called again.
    pub(super) async fn bring(&mut self, level: Level) -> Result<(), WayError> {
        match self {
            Self::Bird(bird) => bird.bring(level).await?,
            Self::Tun(tun) => tun.bring(level).await?,
            Self::Hook(hook) => hook.bring(level).await?,
        }
        Ok(())
    }

    /// Waits until it may have changed by itself.
    async fn disturbed(&mut self) {
        match self {
            Self::Bird(bird) => bird.gone().await,
            Self::Tun(tun) => tun.swallow().await,
            Self::Hook(_) => std::future::pending().await,
        }
    }

    fn dropped(&self) -> u64 {
        match self {
            Self::Tun(tun) => tun.dropped(),
            Self::Bird(_) | Self::Hook(_) => 0,
        }
    }

    /// Whether nothing can be announced by it, for whoever would is not there.
    pub(super) fn is_away(error: &WayError) -> bool {
        matches!(error, WayError::Bird(error) if error.is_away())
    }
}

/// Keeps an announcement as it is wanted, until nobody wants anything any more. Before the first
/// wish it only looks.
pub(super) async fn keep(
    announcement: Announcement,
    mut wishes: watch::Receiver<Wish>,
    standing: watch::Sender<Option<Standing>>,
    changed: Arc<Notify>,
) {
    let name = &announcement.name;
    let mut way = Way::new(&announcement);
    let mut backoff = AGAIN;
    loop {
        let Wish { number, wanted } = wishes.borrow_and_update().clone();
        let work = async {
            match &wanted {
                None => way.look().await,
                Some(wanted) => way.bring(wanted.level).await.map(|()| Some(wanted.level)),
            }
        };
        // A wish that changes is not waited for: what is under way may hang.
        let result = tokio::select! {
            result = work => result,
            changed = wishes.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        let pause = if result.is_ok() {
            backoff = AGAIN;
            LOOK
        } else {
            backoff = (backoff * 2).min(way.patience());
            backoff
        };
        let (level, error) = match result {
            Ok(level) => (level, String::new()),
            Err(error) => (Way::is_away(&error).then_some(Level::Withdrawn), error.to_string()),
        };
        let new = Standing { wish: number, level, error, dropped: way.dropped() };
        let is_new = standing.send_if_modified(|old| {
            if old.as_ref() == Some(&new) {
                return false;
            }
            tell(name, wanted.as_ref(), old.as_ref(), &new);
            *old = Some(new);
            true
        });
        if is_new {
            changed.notify_one();
        }
        tokio::select! {
            changed = wishes.changed() => if changed.is_err() { return },
            () = way.disturbed() => {}
            () = sleep(pause) => {}
        }
    }
}

impl Way {
    /// The longest pause between attempts.
    fn patience(&self) -> Duration {
        match self {
            Self::Bird(_) | Self::Tun(_) => LOOK,
            Self::Hook(_) => Duration::from_secs(30),
        }
    }
}

/// One line for each change.
fn tell(announcement: &str, wish: Option<&Wanted>, old: Option<&Standing>, new: &Standing) {
    let old = old.cloned().unwrap_or_default();
    let Some(wish) = wish else {
        if !new.error.is_empty() && new.error != old.error {
            warn!(announcement, "what is announced is not known: {}", new.error);
        }
        return;
    };
    if !new.error.is_empty() {
        if new.error != old.error {
            let wanted = wish.level.name();
            warn!(announcement, wanted, "not carried out, tried again: {}", new.error);
        }
    } else if new.level != old.level || !old.error.is_empty() {
        let why = wish.why.as_ref().map_or("fit, and not being drained", |why| why.words.as_str());
        info!(announcement, why, "{}", wish.level.name().replace('_', " "));
    }
}
