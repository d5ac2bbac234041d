//! Ctrl-C and SIGTERM end the work early but in order: whoever waits checks here, returns an
//! error, and the guards on the way out clean up.

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

/// From now on SIGINT, SIGTERM and SIGHUP no longer end this process at once.
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
/// When one of the signals has come.
pub fn check() -> Result<()> {
    if FLAG.get().is_some_and(|flag| flag.load(Ordering::Relaxed)) {
        bail!("interrupted");
    }
    Ok(())
}

/// Sleeps; the error comes at once when a signal does.
///
/// # Errors
/// As [`check`].
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

/// Asks `done` again and again until it returns something.
///
/// # Errors
/// After `limit`, naming `what` was waited for; those of `done`; and as [`check`].
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
            bail!("waited {limit:?} in vain for {what}");
        }
        thread::sleep(Duration::from_millis(10));
    }
}
