//! The running director: builds generations, keeps next hops fresh, answers signals and requests.

mod director;
mod error;
mod table_file;
mod triggers;

use std::{sync::Arc, time::Instant};

use director::Director;
pub use error::Error;
use glb_host::{control::Refusal, metrics, service::Watchdog};
use table_file::TableFile;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info};
use triggers::Triggers;

use crate::{
    config::Config,
    control::{self, Status},
    metrics::Metered,
    observe::Observer,
    state::State,
};

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
    let mut triggers = Triggers::new(hangup, TableFile::watch(&config.table));
    let (mut director, mut channel) = tokio::select! {
        started = Director::start(config, &state) => started?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    state.in_force(director.generation.number, Arc::clone(&director.tables));
    if let Some(listener) = listener {
        let observer = Observer::new(&state, &director.pins, &config.interfaces);
        metrics::serve(listener, Metered { observer })?;
    }
    info!(
        generation = director.generation.number,
        interfaces = config.interfaces.join(","),
        "ready"
    );
    let mut next_hops = director.next_hops.subscribe();
    let mut watchdog = Watchdog::from_environment();
    loop {
        tokio::select! {
            changed = next_hops.changed() => {
                if changed.is_err() {
                    error!("netlink is gone; next hops stay as they are until a restart");
                    std::future::pending::<()>().await;
                }
                let snapshot = next_hops.borrow_and_update().clone();
                director.follow(&snapshot);
            }
            _ = triggers.next() => {
                // What went wrong has been logged.
                drop(reload(&mut director, &state).await);
                triggers.done();
            }
            Some(call) = channel.calls.recv() => match call.command {
                control::Command::Reload { .. } => {
                    let result = reload(&mut director, &state).await;
                    let observer = Observer::new(&state, &director.pins, &config.interfaces);
                    call.answer
                        .done(result.map(|()| Status::of(&observer)).map_err(Refusal::failed));
                }
                // The control channel answers these by itself.
                other => {
                    let text = format!("the daemon's loop does not answer {other:?}");
                    call.answer.done(Err::<(), _>(Refusal::failed(text)));
                }
            },
            () = watchdog.turn() => {}
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    state.ending();
    info!(
        "ended; the pinned program goes on forwarding (`glb-director detach --config {}` ends that)",
        config.path.display()
    );
    Ok(())
}

/// Loads the table file anew, and tells everybody how that went.
async fn reload(director: &mut Director<'_>, state: &State) -> Result<(), String> {
    state.reloading();
    let begun = Instant::now();
    let result = director.reload().await;
    let number = director.generation.number;
    if let Err(error) = &result {
        error!(
            table = %director.config.table.display(),
            running_generation = number,
            "the table was not loaded, the running one stays:\n{error}"
        );
    } else {
        state.in_force(number, Arc::clone(&director.tables));
    }
    let result = result.map_err(|error| error.to_string());
    state.reloaded(begun.elapsed(), result.clone().err());
    result
}
