//! The running director.
//!
//! [`run`] is its loop: it waits for signals, requests of the control socket, changes of the table, of
//! next hops and of interfaces, and handles one after the other.
//!
//! | module | what it does |
//! |---|---|
//! | `start` | adopts the generation that forwards, or activates the first one |
//! | `activate` | the one path by which a generation becomes active |
//! | `state` | the running director: reload, rollback, next hops |
//! | `triggers` | what makes it reload |
//! | `config_reload` | which keys of the configuration can change while it runs |
//! | `flow_safety` | which backends may hold flows, and what a change risks |
//! | `preload` | loads the next program ahead of time |
//! | `pin_maintenance` | keeps everything pinned and attached |
//! | `state_dir` | what is kept on disk |
//! | `stop` | drains, and the end of the daemon |
//! | `trace_session` | tracing of decisions for a client |

mod activate;
mod active_trace;
mod boot_time;
mod config_reload;
mod error;
mod flow_safety;
mod pin_maintenance;
mod preload;
mod start;
mod state;
mod state_dir;
mod step_timer;
mod stop;
mod trace_session;
mod triggers;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use glb_host::{
    control::Refusal,
    generations,
    link_events::LinkEvents,
    metrics,
    packet_trace::trace::{self, TraceEnd},
    systemd::Watchdog,
    table_source,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{MissedTickBehavior, interval},
};
use tracing::{error, info, warn};

pub use self::error::Error;
use self::{
    state::Director,
    stop::{DrainController, Exit},
    triggers::{Trigger, Triggers},
};
use crate::{
    announce::Announcer, config::Config, control::Command, daemon_status::DaemonStatus,
    metrics::Metered, model::ReloadOutcome, prober, statsd, views::Observer,
};

/// How often pins, interfaces and the state folder are checked without an event.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(2);

/// A change that the daemon's loop makes.
#[derive(Clone, Copy, Debug)]
enum Request {
    Reload { trigger: Trigger, force: bool },
    Rollback { force: bool },
}

/// Runs the director until a signal ends it. The program stays attached and forwards, unless `on_stop`
/// says otherwise.
///
/// # Errors
/// When the daemon cannot start.
pub async fn run(config: &Config) -> Result<(), Error> {
    let signals = |kind| signal(kind).map_err(Error::Signals);
    let hangup = signals(SignalKind::hangup())?;
    let mut terminate = signals(SignalKind::terminate())?;
    let mut interrupt = signals(SignalKind::interrupt())?;

    let status = Arc::new(DaemonStatus::default());
    // Bound first: a port that is in use is found before anything changes.
    let listener = config.metrics.map(metrics::bind).transpose()?;
    // Watched before the table is read, so that no change is missed.
    let mut triggers = Triggers::new(hangup, table_source::open(&config.table).watch());
    let (mut director, mut channel) = tokio::select! {
        started = Director::start(config, &status) => started?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    status.activated(director.number(), director.tables());
    let observer = Observer::new(&status, &director.activator.pins, &config.interfaces);
    if let Some(listener) = listener {
        metrics::serve(listener, Metered { observer: observer.clone() })?;
    }
    if let Some((address, interval)) = config.statsd {
        statsd::serve(address, interval, observer.clone())?;
    }
    if config.probe.enabled {
        prober::start(config, &status, &director.activator.pins).map_err(Error::Prober)?;
    }
    let recorded = stop::recorded_drain(&mut director);
    let announcer = Announcer::start(&config.announcements, config.drain, observer, recorded);
    let announcer = announcer.map_err(Error::Announcer)?;
    director.activator.withdraw_gate.use_task(&announcer);
    let mut drains = DrainController::new(announcer);
    info!(generation = director.number(), interfaces = config.interfaces.join(","), "ready");
    let links = LinkEvents::open();
    if let Err(error) = &links {
        warn!(%error, "cannot watch interfaces; they are checked every few seconds instead");
    }
    let links = links.ok();
    let mut maintenance = interval(MAINTENANCE_INTERVAL);
    maintenance.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut next_hops = director.activator.next_hops.subscribe();
    let mut watchdog = Watchdog::from_environment();
    let exit = loop {
        tokio::select! {
            changed = next_hops.changed() => {
                if changed.is_err() {
                    error!("the netlink connection was lost: next hops stay as they are; restart the daemon");
                    std::future::pending::<()>().await;
                }
                let snapshot = next_hops.borrow_and_update().clone();
                director.update_next_hops(&snapshot);
            }
            trigger = triggers.next() => {
                // Errors are logged.
                let request = Request::Reload { trigger, force: false };
                drop(perform(&mut director, &status, &mut triggers, request).await);
            }
            () = director.activator.withdraw_gate.unblocked() => {
                let request = Request::Reload { trigger: Trigger::Requested, force: false };
                drop(perform(&mut director, &status, &mut triggers, request).await);
            }
            Some(call) = channel.calls.recv() => match call.command {
                Command::Reload { force } => {
                    let request = Request::Reload { trigger: Trigger::Requested, force };
                    let result = perform(&mut director, &status, &mut triggers, request).await;
                    call.answer.done(result.map_err(Refusal::failed));
                }
                Command::Rollback { force } => {
                    let request = Request::Rollback { force };
                    let result = perform(&mut director, &status, &mut triggers, request).await;
                    call.answer.done(result.map_err(Refusal::failed));
                }
                Command::MarkDrained { ref backends } => {
                    let result = director.mark_drained(backends);
                    call.answer.done(result.map_err(Refusal::failed));
                }
                Command::Trace { .. } => {
                    director.keep_pinned(&status);
                    director.start_trace(call);
                }
                Command::Drain { timeout_seconds, force } => {
                    drains.drain(&mut director, timeout_seconds, force, call.answer);
                }
                Command::Undrain => drains.undrain(&mut director, call.answer),
                // The control socket's thread answers the other commands.
                other => {
                    let text = format!("the daemon's loop cannot answer {other:?}");
                    call.answer.done(Err::<(), _>(Refusal::failed(text)));
                }
            },
            why = trace::session_end(director.trace.as_ref().map(|trace| &trace.session)) => {
                director.stop_trace(why);
            }
            () = watchdog.turn() => {}
            () = link_changed(links.as_ref()) => director.maintain_pins(&status),
            _ = maintenance.tick() => {
                director.maintain_pins(&status);
                director.flush_state();
                drains.extend_timeout();
            }
            outcome = drains.ended() => {
                if let Some(exit) = drains.follow(&mut director, &outcome) {
                    break exit;
                }
            }
            _ = terminate.recv() => {
                if let Some(exit) = drains.stop(director.config()) { break exit }
            }
            _ = interrupt.recv() => {
                if let Some(exit) = drains.stop(director.config()) { break exit }
            }
        }
    };
    status.stopping();
    director.stop_trace(TraceEnd::Stopping);
    director.flush_state();
    director.activator.preloader.discard();
    match exit {
        Exit::KeepForwarding => info!(
            "ended; the pinned program goes on forwarding (`glb-director detach --config {}` ends that)",
            config.path.display()
        ),
        Exit::Detach => {
            director.kept.release();
            let pins = &director.activator.pins;
            let names = generations::detach_all_but(pins, &[])?;
            pins.remove_all()?;
            director.activator.state_dir.detached();
            info!(interfaces = names.join(","), "ended and detached (`on_stop`)");
        }
    }
    Ok(())
}

/// Removes the tables, which hold keys, from the state folder after a detach. The flow history stays.
pub fn detached(config: &Config) {
    if config.state_dir.is_dir() {
        state_dir::StateDir::open(&config.state_dir, &config.bpffs_dir).detached();
    }
}

/// Waits until the kernel reports a change of an interface.
async fn link_changed(links: Option<&LinkEvents>) {
    let changed = match links {
        Some(links) => links.changed().await,
        None => std::future::pending().await,
    };
    if let Err(error) = changed {
        warn!(%error, "cannot watch interfaces any more; they are checked every few seconds instead");
        std::future::pending::<()>().await;
    }
}

/// Makes a change, and publishes how it went.
async fn perform(
    director: &mut Director,
    status: &DaemonStatus,
    triggers: &mut Triggers,
    request: Request,
) -> Result<ReloadOutcome, String> {
    status.reload_started();
    let started = Instant::now();
    let (before, location) = (director.number(), director.source.location().to_owned());
    director.keep_pinned(status);
    director.pause_trace();
    let result = match request {
        Request::Reload { trigger, force } => director.reload(trigger, force).await,
        Request::Rollback { force } => director.rollback(force).await.map(Some),
    };
    director.resume_trace();
    if director.source.location() != location {
        triggers.watch(director.source.watch());
    }
    if director.number() != before {
        status.activated(director.number(), director.tables());
    }
    // The gate keeps a reload that waits for a withdrawal, and repeats it.
    let waits = matches!(result, Err(Error::WithdrawalUnconfirmed(_)))
        && matches!(request, Request::Reload { .. });
    let published = publish(director, status, started, result);
    if let Err(error) = &published {
        let table = director.source.location().display();
        match request {
            Request::Reload { .. } => {
                error!(%table, generation = before, "the table was not loaded, the running one stays:\n{error}");
            }
            Request::Rollback { .. } => {
                error!(
                    generation = before,
                    "the rollback failed, the running generation stays:\n{error}"
                );
            }
        }
    }
    // DrainOutcome only after the active tables were published: announcements follow those.
    if !waits {
        director.activator.withdraw_gate.finish();
    }
    triggers.reload_ended();
    published
}

/// Publishes the result of a change in the status.
fn publish(
    director: &Director,
    status: &DaemonStatus,
    started: Instant,
    result: Result<Option<ReloadOutcome>, Error>,
) -> Result<ReloadOutcome, String> {
    match result {
        Ok(Some(outcome)) => {
            status.reload_finished(started.elapsed(), Ok(outcome.clone()));
            Ok(outcome)
        }
        Ok(None) => {
            status.reload_skipped();
            Ok(ReloadOutcome { generation: director.number(), ..ReloadOutcome::default() })
        }
        // Nothing was tried, so no reload has failed.
        Err(error @ Error::NoPrevious) => {
            status.reload_skipped();
            Err(error.to_string())
        }
        Err(error) => {
            if matches!(error, Error::Unsafe { .. }) {
                status.count_refused_change();
            }
            let error = error.to_string();
            status.reload_finished(started.elapsed(), Err(error.clone()));
            Err(error)
        }
    }
}
