//! The daemon: sends probes, feeds their results to the [`Engine`], and hands its updates to the
//! [`Publisher`].

mod connectivity;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

pub(crate) use connectivity::default_gateways;
use glb_host::{
    control::Refusal,
    lock_file::{LockError, LockFile},
    metrics::{self, MetricsError},
    systemd::{self, Watchdog},
    watched_file::WatchedFile,
};
use glb_table::{atomic_file, health_overlay::HealthResult};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot, watch},
    task::LocalSet,
    time::{Instant, sleep_until},
};
use tracing::{error, info, warn};

use crate::{
    Moment,
    check::{CheckKind, Settings, Target},
    check_config::{self, CheckConfigError},
    config::{Config, ConfigError, ExecUser},
    control_socket::{self, BoundSocket, Command, ControlSocketError, Query, ReloadReport},
    engine::{Engine, EngineEvent, InputTable, PreviousOutput, ProbeJob, TableUpdate, Transition},
    health_state::Health,
    metrics::{Collector, ProbeMetrics},
    probe::{self, IcmpEchoError, Outcome, ProbeContext, ProbeContextError},
    publish::{NotifyConfig, Publisher, SharedPublishRecord, agent_drains, foreign},
    status::Snapshot,
};

/// Why the daemon cannot start, or a reload is rejected.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The configuration is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A key changed that is read only at the start.
    #[error("changing `{key}` needs a restart of the daemon")]
    NeedsRestart {
        /// The key.
        key: &'static str,
    },
    /// The input table is invalid.
    #[error("{}", .0.render(false).trim_end())]
    Table(glb_table::LoadError),
    /// The input table's checks are invalid.
    #[error(transparent)]
    CheckConfig(#[from] CheckConfigError),
    /// Another process writes the output.
    #[error(
        "`output`: {owner} already writes {}.\n  \
         Stop that process, or set `output` to another file.",
        path.display()
    )]
    OutputInUse {
        /// The output.
        path: PathBuf,
        /// The other process.
        owner: String,
    },
    /// The output's directory is not usable.
    #[error(
        "`output`: {problem}.\n  \
         Allow this user to write to the directory of {}, or set `output` to another file.",
        path.display()
    )]
    Output {
        /// The output.
        path: PathBuf,
        /// The error.
        problem: LockError,
    },
    /// This machine or process cannot do the checks.
    #[error("{file}: {source}")]
    ProbeContext {
        /// The input.
        file: String,
        /// The error.
        source: ProbeContextError,
    },
    /// The daemon is root, and the input has `exec` checks.
    #[error(
        "{file}: `exec` checks of a daemon that runs as root need `exec_user` in the configuration.\n  \
         Set it to an unprivileged user (`exec_user = \"nobody\"`), or to \"root\" if commands need root."
    )]
    ExecAsRoot {
        /// The input.
        file: String,
    },
    /// Connectivity targets cannot be pinged.
    #[error("`connectivity_targets`: {0}")]
    Connectivity(IcmpEchoError),
    /// Signal handlers cannot be installed.
    #[error("cannot install signal handlers: {0}")]
    Signals(io::Error),
    /// The control socket cannot be opened.
    #[error(transparent)]
    ControlSocket(#[from] ControlSocketError),
    /// The metrics server cannot be started.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
}

/// An input table, and what its probes need.
#[derive(Debug)]
pub struct LoadedInput {
    /// The table with its checks.
    pub input: Arc<InputTable>,
    /// Sockets, TLS configurations and devices for its probes.
    pub context: Arc<ProbeContext>,
}

/// Reads an input table and prepares its probes. Sockets of `old` are reused.
///
/// # Errors
/// The table or a check is invalid, or this machine cannot do a check.
pub async fn load(
    path: &Path,
    defaults: &Settings,
    exec_user: Option<ExecUser>,
    old: Option<&ProbeContext>,
) -> Result<LoadedInput, DaemonError> {
    let input = read_input(path, defaults)?;
    let targets = || input.targets.iter().flatten().flatten();
    let has_exec = targets().any(|target| matches!(target.check.kind, CheckKind::Exec { .. }));
    if has_exec && exec_user.is_none() && nix::unistd::geteuid().is_root() {
        return Err(DaemonError::ExecAsRoot { file: path.display().to_string() });
    }
    let context = ProbeContext::new(targets(), exec_user, old).await;
    let context = context
        .map_err(|source| DaemonError::ProbeContext { file: path.display().to_string(), source })?;
    Ok(LoadedInput { input: Arc::new(input), context: Arc::new(context) })
}

/// Reads an input table and its checks.
///
/// # Errors
/// The table or a check is invalid.
pub fn read_input(path: &Path, defaults: &Settings) -> Result<InputTable, DaemonError> {
    let io =
        |source| DaemonError::Table(glb_table::LoadError::Io { path: path.to_owned(), source });
    let bytes = glb_table::read_bytes(path).map_err(DaemonError::Table)?;
    let form = glb_table::Format::of_path(path);
    let set = glb_table::parse_bytes(path, form, &bytes).map_err(DaemonError::Table)?;
    let text = String::from_utf8(bytes)
        .map_err(|error| io(io::Error::new(io::ErrorKind::InvalidData, error)))?;
    let targets = check_config::read_targets(path, &set, defaults)?;
    Ok(InputTable { path: path.to_owned(), text, set, targets })
}

/// The exclusive resources of a daemon. They are taken before any probe is sent, so that a conflict
/// with another process is reported at once, and while the process still has the start's capabilities.
#[derive(Debug)]
pub struct Resources {
    lock: LockFile,
    socket: BoundSocket,
    listener: Option<std::net::TcpListener>,
}

impl Resources {
    /// Takes the output's lock, the control socket and the metrics port.
    ///
    /// # Errors
    /// Another process has one of them, or it cannot be created.
    pub fn take(config: &Config) -> Result<Self, DaemonError> {
        let listener = config.metrics.map(metrics::bind).transpose()?;
        let lock = lock_output(&config.output)?;
        Ok(Self { lock, socket: control_socket::bind(&config.control)?, listener })
    }
}

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// The daemon cannot start.
pub async fn run(config: Config, resources: Resources) -> Result<(), DaemonError> {
    LocalSet::new().run_until(run_local(config, resources)).await
}

/// The result of a probe task.
enum ProbeResult {
    Target { id: u64, target: Arc<Target>, outcome: Outcome, latency: Duration },
    Connectivity { index: usize, passed: bool, started: Moment },
}

async fn run_local(config: Config, resources: Resources) -> Result<(), DaemonError> {
    let signals = |kind| signal(kind).map_err(DaemonError::Signals);
    let mut hangup = signals(SignalKind::hangup())?;
    let mut terminate = signals(SignalKind::terminate())?;
    let mut interrupt = signals(SignalKind::interrupt())?;

    let Resources { lock: _lock, socket, listener } = resources;
    let (queries, mut query_receiver) = mpsc::channel(control_socket::QUEUE_LENGTH);
    let _server = socket.serve(queries.clone())?;
    let mut input_file = WatchedFile::watch(&config.input);
    let LoadedInput { input, context } =
        load(&config.input, &config.defaults, config.exec_user, None).await?;
    let metrics = ProbeMetrics::default();
    if let Some(listener) = listener {
        metrics::serve(listener, Collector { metrics: metrics.clone(), queries })?;
    }
    let (results, mut result_receiver) = mpsc::unbounded_channel();
    let began = Instant::now();
    let connectivity = connectivity::start(&config.connectivity, &results, began)?;
    let engine = Engine::new(
        config.options.clone(),
        input,
        &read_previous_output(&config.output),
        connectivity.tracker,
        random_seed(),
        began.elapsed(),
    );
    let record = SharedPublishRecord::default();
    let (notify, notify_receiver) = watch::channel(NotifyConfig::of(&config));
    let publisher = Publisher {
        output: config.output.clone(),
        notify: notify_receiver,
        record: record.clone(),
    };
    let (updates, update_receiver) = watch::channel(None);
    let (first_write, mut first_write_done) = oneshot::channel();
    let publishing = tokio::task::spawn_local(publisher.run(update_receiver, first_write));
    info!(
        targets = engine.targets().count(),
        input = %config.input.display(),
        output = %config.output.display(),
        "probing started"
    );
    systemd::status("waiting for the first result of each target");
    let mut checker = Checker {
        config,
        began,
        engine,
        context,
        results,
        metrics,
        record,
        notify,
        connectivity: connectivity.names,
    };
    let mut watchdog = Watchdog::from_environment();
    let mut ready = false;
    loop {
        if let Some(update) = checker.run_due() {
            updates.send_replace(Some(Arc::new(update)));
        }
        let wake = checker.engine.next_wake().unwrap_or(Duration::from_secs(3600));
        tokio::select! {
            Some(first) = result_receiver.recv() => {
                checker.record(first);
                while let Ok(next) = result_receiver.try_recv() {
                    checker.record(next);
                }
            }
            () = sleep_until(began + wake) => {}
            result = &mut first_write_done, if !ready => {
                ready = true;
                if result.is_ok() {
                    let targets = checker.engine.targets().count();
                    info!(targets, "ready: every target has a result, and the output is written");
                    systemd::ready(&format!("checking {targets} targets"));
                }
            }
            Some(query) = query_receiver.recv() => checker.answer(query).await,
            () = input_file.changed() => {
                info!(input = %checker.config.input.display(), "input changed");
                drop(checker.reload().await);
            }
            _ = hangup.recv() => drop(checker.reload().await),
            () = watchdog.turn() => {}
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    systemd::stopping();
    // A write that has not begun is left to the next start.
    publishing.abort();
    info!("stopped; the output stays as it is");
    Ok(())
}

/// The state of the event loop.
struct Checker {
    config: Config,
    began: Instant,
    engine: Engine,
    context: Arc<ProbeContext>,
    results: mpsc::UnboundedSender<ProbeResult>,
    metrics: ProbeMetrics,
    record: SharedPublishRecord,
    notify: watch::Sender<NotifyConfig>,
    /// Names of the connectivity targets, for the status.
    connectivity: Vec<String>,
}

impl Checker {
    fn now(&self) -> Moment {
        self.began.elapsed()
    }

    /// Sends all probes that are due, and returns the update to write, if one is due.
    fn run_due(&mut self) -> Option<TableUpdate> {
        let now = self.now();
        for event in self.engine.check_suspects(now) {
            log_event(&event, now);
        }
        while let Some(job) = self.engine.next_job(now) {
            self.send(job);
        }
        self.engine.next_update(now)
    }

    fn send(&self, ProbeJob { id, target }: ProbeJob) {
        let (context, results) = (Arc::clone(&self.context), self.results.clone());
        tokio::task::spawn_local(async move {
            let (outcome, latency) = probe::probe(&target, &context).await;
            // The receiver is gone when the daemon stops.
            drop(results.send(ProbeResult::Target { id, target, outcome, latency }));
        });
    }

    fn record(&mut self, result: ProbeResult) {
        let now = self.now();
        match result {
            ProbeResult::Target { id, target, outcome, latency } => {
                self.metrics.record(&target.check.kind, &outcome, latency);
                if let Some(transition) = self.engine.record_result(id, outcome, latency, now) {
                    log_transition(&transition, now);
                }
            }
            ProbeResult::Connectivity { index, passed, started } => {
                self.engine.record_connectivity(index, passed, started);
            }
        }
    }

    /// Reads configuration, input and certificates again. On an error everything stays as it is.
    async fn reload(&mut self) -> Result<ReloadReport, DaemonError> {
        systemd::reloading("reading the configuration and the input");
        match self.try_reload().await {
            Ok(report) => {
                let ReloadReport { targets, new } = report;
                info!(targets, new, "reloaded");
                systemd::ready(&format!("checking {targets} targets"));
                Ok(report)
            }
            Err(error) => {
                error!(%error, "reload failed: the previous input stays in force");
                systemd::ready("the last reload failed: the previous input stays in force");
                Err(error)
            }
        }
    }

    async fn try_reload(&mut self) -> Result<ReloadReport, DaemonError> {
        let config = Config::load(&self.config.path)?;
        if let Some(key) = self.config.restart_key(&config) {
            return Err(DaemonError::NeedsRestart { key });
        }
        let Config { input, defaults, exec_user, .. } = &config;
        let loaded = load(input, defaults, *exec_user, Some(&self.context)).await?;
        self.context = loaded.context;
        self.engine.set_options(config.options.clone());
        self.notify.send_replace(NotifyConfig::of(&config));
        self.config = config;
        let now = self.now();
        self.engine.reload(loaded.input, now);
        let targets = self.engine.input().targets.iter().flatten().flatten();
        let targets: std::collections::HashSet<_> = targets.collect();
        Ok(ReloadReport { targets: targets.len(), new: self.engine.pending() })
    }

    async fn answer(&mut self, query: Query) {
        match query {
            Query::Call(call) => match call.command {
                Command::Status => {
                    let snapshot = self.snapshot();
                    // Serializing thousands of targets would delay the event loop.
                    tokio::task::spawn_blocking(|| call.answer.done(Ok(snapshot)));
                }
                Command::Reload => {
                    let report = self.reload().await.map_err(Refusal::failed);
                    call.answer.done(report);
                }
            },
            // The client may have disconnected.
            Query::Snapshot(answer) => drop(answer.try_send(self.snapshot())),
        }
    }

    fn snapshot(&self) -> Snapshot {
        let foreign = foreign::copies(&self.config.output);
        Snapshot::take(&self.engine, &self.record.get(), &self.connectivity, foreign, self.now())
    }
}

fn log_event(event: &EngineEvent, now: Moment) {
    match event {
        EngineEvent::Transition(transition) => log_transition(transition, now),
        EngineEvent::Isolated { failing, targets, cannot_probe: true } => error!(
            failing,
            targets,
            "this checker is isolated: it cannot do the checks of most backends; all health states stay \
             as they are (`glb-healthcheck status` shows the errors)"
        ),
        EngineEvent::Isolated { failing, targets, cannot_probe: false } => error!(
            failing,
            targets,
            "this checker is isolated: no connectivity target replies either; all health states stay as \
             they are"
        ),
        EngineEvent::Connected { since } => {
            let isolated_ms = now.saturating_sub(*since).as_millis();
            warn!(isolated_ms, "this checker has connectivity again");
        }
    }
}

fn log_transition(transition: &Transition, now: Moment) {
    let Transition { target, from, to, after, reason, held_until } = transition;
    let (target, after_ms) = (target.to_string(), after.as_millis());
    let reason = reason.as_deref();
    match (from, to) {
        (Health::Unknown, Health::Healthy) => info!(target, "healthy at the first check"),
        (Health::Unknown, _) => warn!(target, reason, "unhealthy at the first check"),
        (_, Health::Unhealthy) => {
            let hold_down_ms = held_until.saturating_sub(now).as_millis();
            warn!(target, reason, healthy_for_ms = after_ms, hold_down_ms, "became unhealthy");
        }
        _ => info!(target, unhealthy_for_ms = after_ms, "became healthy"),
    }
}

/// Reads what an earlier process has written to the output.
fn read_previous_output(output: &Path) -> PreviousOutput {
    let mut previous = PreviousOutput::default();
    if !output.exists() {
        return previous;
    }
    match glb_table::load(output) {
        Ok(set) => {
            for table in &set.tables {
                for backend in &table.backends {
                    let result = HealthResult { healthy: backend.healthy, state: backend.state };
                    previous.health.insert((table.name.clone(), backend.address), result);
                }
            }
            previous.drains = agent_drains::read(output);
        }
        Err(error) => {
            let error = error.render(false);
            warn!(error = error.trim_end(), "previous output ignored: it is not a valid table");
        }
    }
    previous
}

/// Locks the output, and removes temporary files that a killed process has left beside it.
fn lock_output(output: &Path) -> Result<LockFile, DaemonError> {
    let io = |action| {
        move |source| {
            let problem = LockError::Io { action, path: output.to_owned(), source };
            DaemonError::Output { path: output.to_owned(), problem }
        }
    };
    let real = atomic_file::resolve_links(output).map_err(io("follow the links of"))?;
    let lock = LockFile::take(&real).map_err(|problem| match problem {
        LockError::Held { owner } => DaemonError::OutputInUse { path: output.to_owned(), owner },
        problem => DaemonError::Output { path: output.to_owned(), problem },
    })?;
    for path in [real.clone(), agent_drains::file(output)] {
        for file in atomic_file::remove_temporary_files(&path).map_err(io("clean up beside"))? {
            info!(file = %file.display(), "removed a temporary file of a killed checker");
        }
    }
    Ok(lock)
}

/// A seed that differs between starts and machines.
fn random_seed() -> u64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (time.as_nanos() as u64) ^ u64::from(std::process::id()).rotate_left(48)
}
