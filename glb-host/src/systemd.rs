//! What a service manager is told (`sd_notify`): nothing, where none asks.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Instant, sleep_until};

/// The daemon does its work from now on; or again, after a reload.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// A reload begins.
pub fn reloading(status: &str) {
    let mut states = vec![NotifyState::Reloading, NotifyState::Status(status)];
    // systemd's Type=notify-reload wants to know that this is about its own signal.
    states.extend(NotifyState::monotonic_usec_now().ok());
    tell(&states);
}

/// What the daemon does, in a few words for people.
pub fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// The daemon ends, in order.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// What is under way (a stop, say) takes so much longer.
pub fn extend(by: Duration) {
    let microseconds = u32::try_from(by.as_micros()).unwrap_or(u32::MAX);
    tell(&[NotifyState::ExtendTimeoutUsec(microseconds)]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, states) {
        tracing::debug!(%error, "the service manager was not told");
    }
}

/// Tells the service manager again and again that the daemon's loop turns, if it wants to be told.
#[derive(Debug)]
pub struct Watchdog {
    every: Option<Duration>,
    next: Instant,
}

impl Watchdog {
    /// As the service manager wishes (`WATCHDOG_USEC`): at half of the time after which it would
    /// take the daemon for hung.
    #[must_use]
    pub fn from_environment() -> Self {
        let mut limit = 0;
        let wanted = sd_notify::watchdog_enabled(false, &mut limit) && limit > 1;
        let every = wanted.then(|| Duration::from_micros(limit / 2));
        Self { every, next: Instant::now() }
    }

    /// Waits until it is time, and tells. Can be dropped and called again.
    pub async fn turn(&mut self) {
        let Some(every) = self.every else { return std::future::pending().await };
        sleep_until(self.next).await;
        tell(&[NotifyState::Watchdog]);
        self.next = Instant::now() + every;
    }
}
