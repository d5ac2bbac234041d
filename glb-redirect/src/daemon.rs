//! The running backend.
//!
//! [`run`] is the daemon's event loop. It owns a [`Backend`], which builds and activates generations of
//! the program:
//!
//! - `activate`: from a configuration to a generation in force, or to none and nothing changed;
//! - `build`: how one generation is tested, loaded, pinned and attached;
//! - `pin_maintenance`: pins that are removed from outside are restored;
//! - `table_watch`: the directors' table is watched;
//! - `trace_session`: the traced program build is swapped in while a client traces.

mod activate;
mod build;
mod error;
mod pin_maintenance;
mod table_watch;
mod trace_session;

use std::{path::PathBuf, sync::Arc, time::Instant};

use glb_common::trace::TraceSettings;
use glb_host::{
    bpffs::{PinFolder, PinLock},
    control::{Call, Refusal},
    metrics,
    next_hop::{NextHops, Snapshot},
    packet_trace::trace::{self, Session, TraceEnd},
    pin_guard::PinGuard,
    systemd::{self, Watchdog},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Duration, MissedTickBehavior, interval},
};
use tracing::{error, info, warn};

use crate::{
    config::Config,
    connections::ConnectionMonitor,
    control::{self, Command, ReloadOutcome},
    daemon_state::DaemonState,
    generation::Generation,
    host_state::{HostChanges, HostState},
    metrics::Collector,
    program_data::ProgramData,
};
use build::enter_next_hops;
pub(crate) use error::Error;
use table_watch::TableWatch;

/// Folder in the pin folder that holds the tc program's link for each interface.
pub(crate) const CLAMPS: &str = "clamps";

/// How often the daemon checks that its pins exist.
const PIN_CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// Runs the daemon until SIGTERM or SIGINT. The program stays attached and keeps working.
pub(crate) async fn run(config: Config) -> Result<(), Error> {
    let signals = |kind| signal(kind).map_err(Error::Signals);
    let mut hangup = signals(SignalKind::hangup())?;
    let mut terminate = signals(SignalKind::terminate())?;
    let mut interrupt = signals(SignalKind::interrupt())?;

    // The port is bound before anything is attached: if it is in use, nothing has changed yet.
    let listener = config.metrics.map(metrics::bind).transpose()?;
    // The subscription comes before the first look at the host, so that no change is missed.
    let mut changes = HostChanges::subscribe().map_err(Error::HostChanges)?;
    let state = Arc::new(DaemonState::new(&config));
    let (server, mut calls) = control::open(&config.control, &state)?;
    let mut table = TableWatch::start(&config);
    let mut backend = Backend::start(config, Arc::clone(&state)).await?;
    if let Some(listener) = listener {
        metrics::serve(listener, Collector(Arc::clone(&state)))?;
    }
    info!(generation = backend.number, interfaces = backend.config.interfaces.join(","), "ready");
    backend.notify_ready();
    let mut watchdog = Watchdog::from_environment();
    let mut pin_check = interval(PIN_CHECK_INTERVAL);
    pin_check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut next_hops = backend.next_hops.subscribe();
    loop {
        tokio::select! {
            changed = next_hops.changed() => {
                if changed.is_err() {
                    error!(
                        "netlink connection lost: next hops of peers are not updated any more; \
                         restart the daemon"
                    );
                    std::future::pending::<()>().await;
                }
                let snapshot = next_hops.borrow_and_update().clone();
                backend.update_next_hops(&snapshot);
            }
            () = changes.next() => backend.host_changed().await,
            Some(call) = calls.recv() => {
                backend.answer(call).await;
                table.follow_config(&backend.config);
            }
            reason = trace::session_end(backend.trace.as_ref().map(|(session, _)| session)) => {
                backend.stop_trace(reason).await;
            }
            () = table.changed() => backend.table_changed().await,
            () = watchdog.turn() => {}
            _ = pin_check.tick() => backend.restore_pins(),
            _ = hangup.recv() => {
                // `reload` logs and records the error.
                drop(backend.reload().await);
                table.follow_config(&backend.config);
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    systemd::stopping();
    state.stopping();
    backend.stop_trace(TraceEnd::Stopping).await;
    drop(server);
    info!(
        "stopped; the program stays attached (`glb-redirect detach --config {}` removes it)",
        backend.config.path.display()
    );
    Ok(())
}

/// The daemon's state: the configuration and the generation in force, and what keeps them current.
struct Backend {
    config: Config,
    state: Arc<DaemonState>,
    pins: PinFolder,
    lock: PinLock,
    /// Descriptors of everything that is pinned, so that removed pins can be restored.
    kept: PinGuard,
    next_hops: NextHops,
    connections: ConnectionMonitor,
    /// The host state that the generation in force was built for.
    host: HostState,
    /// The host state for which no generation could be built; the error is logged once.
    failed_host: Option<HostState>,
    data: ProgramData,
    generation: Generation,
    number: u64,
    /// The trace session, and which decisions it asked for.
    trace: Option<(Session, TraceSettings)>,
}

impl Backend {
    /// Answers a request of the control socket that needs the event loop.
    async fn answer(&mut self, call: Call<Command>) {
        match call.command.clone() {
            // The control thread answers `status` itself.
            Command::Status => {}
            Command::Reload => {
                let result = self.reload().await.map_err(Refusal::failed);
                call.answer.done(result);
            }
            Command::Trace { options } => self.start_trace(call, options).await,
        }
    }

    /// Reads the configuration and the table it names, and activates both or neither.
    async fn reload(&mut self) -> Result<ReloadOutcome, Error> {
        let start = Instant::now();
        self.state.reloading("reading the configuration");
        let result = self.load_and_activate().await;
        let outcome = ReloadOutcome {
            generation: self.number,
            changed: matches!(result, Ok(true)),
            milliseconds: start.elapsed().as_secs_f64() * 1000.0,
        };
        self.reload_finished(&result, start);
        match result {
            Ok(_) => Ok(outcome),
            Err(error) => {
                error!(
                    running_generation = self.number,
                    "reload failed, the running configuration stays in force:\n{error}"
                );
                Err(error)
            }
        }
    }

    /// Loads the configuration; returns whether it led to a new generation.
    async fn load_and_activate(&mut self) -> Result<bool, Error> {
        let config = Config::load(&self.config.path)?;
        check_restart_only_keys(&self.config, &config)?;
        if config == self.config && HostState::read(&config)? == self.host {
            info!(
                generation = self.number,
                "configuration unchanged: the generation stays in force"
            );
            return Ok(false);
        }
        self.activate(config).await?;
        Ok(true)
    }

    /// Reads the table after its file has changed. Most changes do not concern a backend: states,
    /// health and weights.
    async fn table_changed(&mut self) {
        let start = Instant::now();
        let result = match self.config.with_table() {
            Ok(config) if config == self.config => {
                return tracing::debug!("table changed, but not its backends or hops");
            }
            Ok(config) => {
                info!("the table's backends or hops have changed");
                self.state.reloading("reading the table's backends");
                self.activate(config).await.map(|()| true)
            }
            Err(error) => Err(error.into()),
        };
        self.reload_finished(&result, start);
        if let Err(error) = result {
            error!(
                running_generation = self.number,
                "table refused, the backends known so far stay in force:\n{error}"
            );
        }
    }

    fn reload_finished(&self, result: &Result<bool, Error>, start: Instant) {
        let error = result.as_ref().err().map(ToString::to_string);
        self.state.reload_finished(error, start.elapsed());
        self.notify_ready();
    }

    /// Writes the next hops of all peers into the running generation.
    fn update_next_hops(&mut self, snapshot: &Snapshot) {
        let unresolved = enter_next_hops(&mut self.generation, &self.data, snapshot);
        self.state.set_peers(self.data.peers.len(), unresolved);
    }

    /// Tells the service manager which generation is in force.
    fn notify_ready(&self) {
        systemd::ready(&self.state.summary());
    }

    /// Activates a new generation if this host's addresses, MTU or interfaces have changed.
    async fn host_changed(&mut self) {
        let host = match HostState::read(&self.config) {
            Ok(host) => host,
            // An interface that is being replaced comes back within moments.
            Err(error) => {
                return warn!(%error, "cannot read the host's state: the generation stays in force");
            }
        };
        if host == self.host || self.failed_host.as_ref() == Some(&host) {
            return;
        }
        info!("this host's addresses or interfaces have changed");
        self.failed_host = None;
        let result = self.activate(self.config.clone()).await;
        self.state.set_host_problem(result.as_ref().err().map(ToString::to_string));
        if let Err(error) = result {
            error!(
                running_generation = self.number,
                "cannot follow the change of addresses or interfaces:\n{error}"
            );
            self.failed_host = Some(host);
        }
        self.notify_ready();
    }
}

/// Refuses a configuration that changes a key which is fixed when the daemon starts.
fn check_restart_only_keys(running: &Config, new: &Config) -> Result<(), Error> {
    let fixed = |config: &Config| {
        let place = &config.control.place;
        let group = |name: &Option<String>| name.clone().unwrap_or_else(|| "none".to_owned());
        let metrics = config.metrics.map_or_else(|| "none".to_owned(), |at| at.to_string());
        let path = |path: &PathBuf| path.display().to_string();
        [
            ("bpffs_dir", path(&config.bpffs_dir)),
            ("metrics", metrics),
            ("control.socket", path(&place.path)),
            ("control.mode", format!("{:04o}", place.mode)),
            ("control.group", group(&place.group)),
            ("control.operators", group(&config.control.operators)),
        ]
    };
    for ((key, from), (_, to)) in fixed(running).into_iter().zip(fixed(new)) {
        if from != to {
            return Err(Error::NeedsRestart { key, from, to });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn changing_a_key_fixed_at_start_needs_a_restart() {
        let config = |more: &str| {
            let text = format!(
                "interfaces = [\"eth0\"]\nvips = [\"203.0.113.10\"]\n\
                 directors = [\"10.0.2.10\"]\n{more}\n"
            );
            Config::parse(&text, Path::new("/etc/glb/redirect.toml")).unwrap()
        };
        let running = config("");
        check_restart_only_keys(&running, &config("unknown_senders = \"pass\"")).unwrap();
        for (more, key, value) in [
            ("bpffs_dir = \"/sys/fs/bpf/x\"", "`bpffs_dir`", "to /sys/fs/bpf/x"),
            ("metrics = \"10.0.2.21:9101\"", "`metrics`", "from none to 10.0.2.21:9101"),
            ("control.socket = \"/run/x.sock\"", "`control.socket`", "to /run/x.sock"),
            ("control.mode = \"0600\"", "`control.mode`", "from 0660 to 0600"),
            ("control.group = \"adm\"", "`control.group`", "from none to adm"),
            ("control.operators = \"adm\"", "`control.operators`", "from none to adm"),
        ] {
            let error = check_restart_only_keys(&running, &config(more)).unwrap_err().to_string();
            for word in [key, value, "restart of the daemon"] {
                assert!(error.contains(word), "{word:?} is missing in: {error}");
            }
        }
    }
}
