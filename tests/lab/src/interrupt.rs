//! Ctrl-C and SIGTERM end the work early but cleanly: every wait checks here and returns an error,
//! and the drop guards clean up.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Replaces the default action of SIGINT, SIGTERM and SIGHUP, which would end this process at once.
///
/// # Errors
/// When a handler cannot be installed.
pub fn install() -> Result<()> {
    let mut result = Ok(());
    FLAG.get_or_init(|| {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            if let Err(error) = signal_hook::flag::register(signal, Arc::clone(&flag)) {
                result = Err(error).context("cannot handle signals");
            }
        }
        flag
    });
    result
}

/// # Errors
/// When one of the signals has arrived.
pub fn check() -> Result<()> {
    if FLAG.get().is_some_and(|flag| flag.load(Ordering::Relaxed)) {
        bail!("interrupted");
    }
    Ok(())
}

/// Sleeps, and returns an error as soon as a signal arrives.
///
/// # Errors
/// The same as [`check`].
pub fn sleep(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    loop {
        check()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        thread::sleep(left.min(Duration::from_millis(20)));
    }
}

/// Polls `done` until it returns a value.
///
/// # Errors
/// After `limit`, with `what` as the awaited thing; errors of `done`; and the errors of [`check`].
pub fn wait<T>(
    what: &str,
    limit: Duration,
    mut done: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let started = Instant::now();
    loop {
        check()?;
        if let Some(found) = done()? {
            return Ok(found);
        }
        if started.elapsed() > limit {
            bail!("timed out after {limit:?} waiting for {what}");
        }
        thread::sleep(Duration::from_millis(10));
    }
}
