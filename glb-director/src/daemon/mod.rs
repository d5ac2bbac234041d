//! The running director: builds generations, keeps next hops fresh, answers signals and requests.

mod activate;
mod boot_time;
mod error;
mod flow_safety;
mod pin_maintenance;
mod preload;
mod start;
mod state;
mod state_dir;
mod stop;
mod table_file;
mod timing;
mod trace_session;
mod triggers;

use std::{sync::Arc, time::Instant};

pub use error::Error;
use glb_host::{
    control::Refusal,
    generations,
    link_events::LinkEvents,
    metrics,
    packet_trace::trace::{self, TraceEnd},
    systemd::Watchdog,
    watched_file::WatchedFile,
};
use state::Director;
use stop::{Announcing, End};
pub use timing::Done;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Duration, MissedTickBehavior, interval},
};
use tracing::{error, info, warn};
use triggers::{Trigger, Triggers};

use crate::{
    announce::Announcer, config::Config, control::Command, daemon_status::State, metrics::Metered,
    statsd, views::Observer,
};

/// How often the interfaces are looked at without having been told of a change.
const LOOK: Duration = Duration::from_secs(2);

/// Runs until a signal ends it. The program stays attached and forwards.
///
/// # Errors
/// When it cannot start.
pub async fn run(config: &Config) -> Result<(), Error> {
    let signals = |kind| signal(kind).map_err(Error::Signals);
    let hangup = signals(SignalKind::hangup())?;
    let mut terminate = signals(SignalKind::terminate())?;
    let mut interrupt = signals(SignalKind::interrupt())?;

    let state = Arc::new(State::default());
    // Before anything is attached: a port that is in use is found while nothing has changed.
    let listener = config.metrics.map(metrics::bind).transpose()?;
    // Before the table is read, so that no change falls in between.
    let mut triggers = Triggers::new(hangup, WatchedFile::watch(&config.table));
    let (mut director, mut channel) = tokio::select! {
        started = Director::start(config, &state) => started?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    state.in_force(director.number(), director.tables());
    if let Some(listener) = listener {
        let observer = Observer::new(&state, &director.making.pins, &config.interfaces);
        metrics::serve(listener, Metered { observer })?;
    }
    if let Some((address, interval)) = config.statsd {
        let observer = Observer::new(&state, &director.making.pins, &config.interfaces);
        statsd::serve(address, interval, observer)?;
    }
    let observer = Observer::new(&state, &director.making.pins, &config.interfaces);
    let kept = stop::kept(&mut director);
    let announcer = Announcer::start(&config.announcements, config.drain, observer, kept);
    let announcer = announcer.map_err(Error::Announcer)?;
    director.making.withdraw_gate.use_task(&announcer);
    let mut announcing = Announcing::new(announcer);
    info!(generation = director.number(), interfaces = config.interfaces.join(","), "ready");
    let links = LinkEvents::open();
    if let Err(error) = &links {
        warn!(%error, "interfaces that come back are noticed after some seconds");
    }
    let links = links.ok();
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut next_hops = director.making.next_hops.subscribe();
    let mut watchdog = Watchdog::from_environment();
    let end = loop {
        tokio::select! {
            changed = next_hops.changed() => {
                if changed.is_err() {
                    error!("netlink is gone; next hops stay as they are until a restart");
                    std::future::pending::<()>().await;
                }
                let snapshot = next_hops.borrow_and_update().clone();
                director.follow(&snapshot);
            }
            trigger = triggers.next() => {
                // What went wrong has been logged.
                drop(reload(&mut director, &state, trigger, false).await);
                triggers.done();
            }
            () = director.making.withdraw_gate.unblocked() => {
                drop(reload(&mut director, &state, Trigger::Asked, false).await);
                triggers.done();
            }
            Some(call) = channel.calls.recv() => match call.command {
                Command::Reload { force } => {
                    let result = reload(&mut director, &state, Trigger::Asked, force).await;
                    call.answer.done(result.map_err(Refusal::failed));
                    triggers.done();
                }
                Command::Rollback { force } => {
                    let result = rollback(&mut director, &state, force).await;
                    call.answer.done(result.map_err(Refusal::failed));
                    triggers.done();
                }
                Command::Drained { ref backends } => {
                    let result = director.drained(backends);
                    call.answer.done(result.map_err(Refusal::failed));
                }
                Command::Trace { .. } => {
                    director.keep_pinned(&state);
                    director.begin_to_show(call);
                }
                Command::Drain { timeout_seconds, force } => {
                    announcing.drain(&mut director, timeout_seconds, force, call.answer);
                }
                Command::Undrain => announcing.undrain(&mut director, call.answer),
                // The control channel answers these by itself.
                other => {
                    let text = format!("the daemon's loop does not answer {other:?}");
                    call.answer.done(Err::<(), _>(Refusal::failed(text)));
                }
            },
            why = trace::session_end(director.watcher.as_ref().map(|watcher| &watcher.session)) => {
                director.end_showing(why);
            }
            () = watchdog.turn() => {}
            () = something_about(links.as_ref()) => director.look_after(&state),
            _ = look.tick() => {
                director.look_after(&state);
                director.keep_up();
                announcing.keep_up();
            }
            ended = announcing.ended() => {
                if let Some(end) = announcing.follow(&mut director, &ended) {
                    break end;
                }
            }
            _ = terminate.recv() => if let Some(end) = announcing.stop(config) { break end },
            _ = interrupt.recv() => if let Some(end) = announcing.stop(config) { break end },
        }
    };
    state.ending();
    director.end_showing(TraceEnd::Stopping);
    director.keep_up();
    director.making.spare.discard();
    match end {
        End::Stay => info!(
            "ended; the pinned program goes on forwarding (`glb-director detach --config {}` ends that)",
            config.path.display()
        ),
        End::Detach => {
            director.kept.release();
            let pins = &director.making.pins;
            let names = generations::detach_all_but(pins, &[])?;
            pins.remove_all()?;
            director.making.store.detached();
            info!(interfaces = names.join(","), "ended and detached (`on_stop`)");
        }
    }
    Ok(())
}

/// Nothing of this director is attached or pinned any more: its state folder forgets the tables, which
/// hold keys. Who may hold flows stays.
pub fn detached(config: &Config) {
    if config.state_dir.is_dir() {
        state_dir::Store::open(&config.state_dir, &config.bpffs_dir).detached();
    }
}

/// Waits until the kernel tells of some interface.
async fn something_about(links: Option<&LinkEvents>) {
    let told = match links {
        Some(links) => links.changed().await,
        None => std::future::pending().await,
    };
    if let Err(error) = told {
        warn!(%error, "interfaces that come back are noticed after some seconds");
        std::future::pending::<()>().await;
    }
}

/// Brings the table file into force, and tells everybody how that went.
async fn reload(
    director: &mut Director<'_>,
    state: &State,
    trigger: Trigger,
    force: bool,
) -> Result<Done, String> {
    state.reloading();
    let begun = Instant::now();
    let number = director.number();
    director.keep_pinned(state);
    director.look_away();
    let result = director.reload(trigger, force).await;
    director.look_on();
    if let Err(error) = &result {
        error!(
            table = %director.config().table.display(),
            running_generation = number,
            "the table was not loaded, the running one stays:\n{error}"
        );
    }
    let is_put_off = matches!(result, Err(Error::WithdrawalUnconfirmed(_)));
    let told = tell(director, state, number, begun, result);
    // After the tables in force have been told: what they do not serve is not announced in between.
    if !is_put_off {
        director.making.withdraw_gate.finish();
    }
    told
}

/// Brings the previous generation back into force, and tells everybody how that went.
async fn rollback(director: &mut Director<'_>, state: &State, force: bool) -> Result<Done, String> {
    state.reloading();
    let begun = Instant::now();
    let number = director.number();
    director.keep_pinned(state);
    director.look_away();
    let result = director.rollback(force).await.map(Some);
    director.look_on();
    if let Err(error) = &result {
        error!(running_generation = number, "not rolled back, the running one stays:\n{error}");
    }
    let told = tell(director, state, number, begun, result);
    director.making.withdraw_gate.finish();
    told
}

fn tell(
    director: &Director<'_>,
    state: &State,
    before: u64,
    begun: Instant,
    result: Result<Option<Done>, Error>,
) -> Result<Done, String> {
    let number = director.number();
    if number != before {
        state.in_force(number, director.tables());
    }
    let nothing = Done { generation: number, ..Done::default() };
    match result {
        Ok(None) => {
            state.nothing_to_do();
            Ok(nothing)
        }
        Ok(Some(done)) => {
            state.reloaded(begun.elapsed(), Ok(done.clone()));
            Ok(done)
        }
        // Nothing was tried, so nothing failed.
        Err(error @ Error::NoPrevious) => {
            state.nothing_to_do();
            Err(error.to_string())
        }
        Err(error) => {
            if matches!(error, Error::Unsafe { .. }) {
                state.refused();
            }
            let error = error.to_string();
            state.reloaded(begun.elapsed(), Err(error.clone()));
            Err(error)
        }
    }
}
