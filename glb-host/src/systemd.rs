//! Notifications to the service manager (`sd_notify`); without one they do nothing.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Instant, sleep_until};

/// Reports that the daemon is ready, at the start or after a reload.
pub fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Reports that a reload begins.
pub fn reloading(status: &str) {
    let mut states = vec![NotifyState::Reloading, NotifyState::Status(status)];
    // Type=notify-reload compares this time with that of its signal.
    states.extend(NotifyState::monotonic_usec_now().ok());
    notify(&states);
}

/// Reports the status text for people.
pub fn status(status: &str) {
    notify(&[NotifyState::Status(status)]);
}

/// Reports that the daemon stops.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Asks for more time for the current operation, such as a stop.
pub fn extend(by: Duration) {
    let microseconds = u32::try_from(by.as_micros()).unwrap_or(u32::MAX);
    notify(&[NotifyState::ExtendTimeoutUsec(microseconds)]);
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, states) {
        tracing::debug!(%error, "cannot notify the service manager");
    }
}

/// Reports regularly that the daemon's loop runs, if the service manager asks for it.
#[derive(Debug)]
pub struct Watchdog {
    every: Option<Duration>,
    next: Instant,
}

impl Watchdog {
    /// Reads `WATCHDOG_USEC`; the interval is half of it.
    #[must_use]
    pub fn from_environment() -> Self {
        let mut limit = 0;
        let wanted = sd_notify::watchdog_enabled(false, &mut limit) && limit > 1;
        let every = wanted.then(|| Duration::from_micros(limit / 2));
        Self { every, next: Instant::now() }
    }

    /// Waits for the next interval and reports. The future can be dropped and called again.
    pub async fn turn(&mut self) {
        let Some(every) = self.every else { return std::future::pending().await };
        sleep_until(self.next).await;
        notify(&[NotifyState::Watchdog]);
        self.next = Instant::now() + every;
    }
}
