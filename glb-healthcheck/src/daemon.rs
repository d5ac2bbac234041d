//! The running checker: probes go out, results come in, findings are published.

mod control;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use glb_host::{
    lock_file::{LockError, LockFile},
    metrics::{self, MetricsError},
    systemd::{self, Watchdog},
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
    check::{Pace, Target},
    check_config::{self, WantedError},
    config::Config,
    control_socket::{self, ChannelError, Command, Question},
    engine::{Decision, Engine, Event, Job, Known, Source, Transition},
    health_state::Standing,
    metrics::{Metered, Metrics},
    probe::{self, EchoError, Outcome, Tools, ToolsError},
    publish::{Publisher, SharedRecord, drains},
    status::Snapshot,
};

/// Why the checker does not start, or a source is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source table is not in order.
    #[error("{}", .0.render(false).trim_end())]
    Table(glb_table::LoadError),
    /// Its checks are not.
    #[error(transparent)]
    Wanted(#[from] WantedError),
    /// Somebody else writes the checked table.
    #[error(
        "`checked`: {owner} writes {} already.\n  \
         Stop that one first, or give this one a `checked` of its own.",
        path.display()
    )]
    Taken {
        /// The checked table.
        path: PathBuf,
        /// The other process, as far as it is known.
        owner: String,
    },
    /// The checked table's place.
    #[error(
        "`checked`: {problem}.\n  \
         This checker's user must be able to write beside {}: mend that, or name another place.",
        path.display()
    )]
    Checked {
        /// The checked table.
        path: PathBuf,
        /// What is wrong.
        problem: LockError,
    },
    /// This machine or process cannot do its checks.
    #[error("{file}: {source}")]
    Tools {
        /// The source.
        file: String,
        /// What is wrong.
        source: ToolsError,
    },
    /// Control targets.
    #[error("`control_targets`: {0}")]
    Control(EchoError),
    /// Signals.
    #[error("cannot listen for signals: {0}")]
    Signals(io::Error),
    /// The control channel.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The port of the metrics.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
}

/// A source and what its probes need.
#[derive(Debug)]
pub struct Loaded {
    /// The source.
    pub source: Arc<Source>,
    /// For its probes.
    pub tools: Arc<Tools>,
}

/// Reads a source table and its checks.
///
/// # Errors
/// When something in it is wrong.
pub async fn load(path: &Path, defaults: &Pace, old: Option<&Tools>) -> Result<Loaded, Error> {
    let io = |source| Error::Table(glb_table::LoadError::Io { path: path.to_owned(), source });
    let bytes = glb_table::read_bytes(path).map_err(Error::Table)?;
    let form = glb_table::Format::of_path(path);
    let set = glb_table::parse_bytes(path, form, &bytes).map_err(Error::Table)?;
    let text = String::from_utf8(bytes)
        .map_err(|error| io(io::Error::new(io::ErrorKind::InvalidData, error)))?;
    let wanted = check_config::targets(path, &set, defaults)?;
    let tools = Tools::new(wanted.iter().flatten().flatten(), old).await;
    let tools =
        tools.map_err(|source| Error::Tools { file: path.display().to_string(), source })?;
    let source = Source { path: path.to_owned(), text, set, wanted };
    Ok(Loaded { source: Arc::new(source), tools: Arc::new(tools) })
}

/// Runs until a signal ends it.
///
/// # Errors
/// When it cannot start.
pub async fn run(config: &Config) -> Result<(), Error> {
    LocalSet::new().run_until(watch_over(config)).await
}

/// What a probe sends back.
enum Done {
    Target { id: u64, target: Arc<Target>, outcome: Outcome, latency: Duration },
    Control { index: usize, passed: bool, started: Moment },
}

async fn watch_over(config: &Config) -> Result<(), Error> {
    let signals = |kind| signal(kind).map_err(Error::Signals);
    let mut hangup = signals(SignalKind::hangup())?;
    let mut terminate = signals(SignalKind::terminate())?;
    let mut interrupt = signals(SignalKind::interrupt())?;

    // What is in use already is found before anything is asked of anybody.
    let listener = config.metrics.map(metrics::bind).transpose()?;
    let (questions, mut asked) = mpsc::channel(control_socket::WAITING);
    let _lock = own(&config.checked)?;
    let _server = control_socket::open(&config.control, questions.clone())?;
    let Loaded { source, tools } = load(&config.source, &config.defaults, None).await?;
    let metrics = Metrics::default();
    if let Some(listener) = listener {
        metrics::serve(listener, Metered { metrics: metrics.clone(), questions })?;
    }
    let (results, mut done) = mpsc::unbounded_channel();
    let began = Instant::now();
    let controls = control::start(&config.control_targets, &results, began)?;
    let engine = Engine::new(
        config.options.clone(),
        source,
        &known(&config.checked),
        controls.judged,
        seed(),
        began.elapsed(),
    );
    let record = SharedRecord::default();
    let publisher = Publisher {
        checked: config.checked.clone(),
        tell: config.tell.clone(),
        timeout: config.reload_timeout,
        record: record.clone(),
    };
    let (decisions, newest) = watch::channel(None);
    let (published, mut is_published) = oneshot::channel();
    let publishing = tokio::task::spawn_local(publisher.run(newest, published));
    let mut checker =
        Checker { began, engine, tools, results, metrics, record, controls: controls.names };
    info!(
        targets = checker.engine.targets().count(),
        source = %config.source.display(),
        checked = %config.checked.display(),
        "checking"
    );
    systemd::status("checking each target for the first time");
    let mut watchdog = Watchdog::from_environment();
    let mut ready = false;
    loop {
        if let Some(decision) = checker.turn() {
            decisions.send_replace(Some(Arc::new(decision)));
        }
        let wake = checker.engine.wake().map_or(Duration::from_secs(3600), |at| at);
        tokio::select! {
            Some(first) = done.recv() => {
                checker.take(first);
                while let Ok(next) = done.try_recv() {
                    checker.take(next);
                }
            }
            () = sleep_until(began + wake) => {}
            result = &mut is_published, if !ready => {
                ready = true;
                if result.is_ok() {
                    let targets = checker.engine.targets().count();
                    info!(targets, "ready: each target has been checked, the table is written");
                    systemd::ready(&format!("checking {targets} targets"));
                }
            }
            Some(question) = asked.recv() => checker.tell(question),
            _ = hangup.recv() => checker.reload(config).await,
            () = watchdog.turn() => {}
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    systemd::stopping();
    // What was not begun is left to the next start, which finds the file as it is.
    publishing.abort();
    info!("ended; the checked table stays as it is");
    Ok(())
}

struct Checker {
    began: Instant,
    engine: Engine,
    tools: Arc<Tools>,
    results: mpsc::UnboundedSender<Done>,
    metrics: Metrics,
    record: SharedRecord,
    /// The control targets, for people.
    controls: Vec<String>,
}

impl Checker {
    fn now(&self) -> Moment {
        self.began.elapsed()
    }

    /// Does all that is due now.
    fn turn(&mut self) -> Option<Decision> {
        let now = self.now();
        for event in self.engine.look(now) {
            log_event(&event, now);
        }
        while let Some(job) = self.engine.next_job(now) {
            self.send(job);
        }
        self.engine.decide(now)
    }

    fn send(&self, Job { id, target }: Job) {
        let (tools, results) = (Arc::clone(&self.tools), self.results.clone());
        tokio::task::spawn_local(async move {
            let (outcome, latency) = probe::probe(&target, &tools).await;
            // Nobody waits for a result at the end.
            drop(results.send(Done::Target { id, target, outcome, latency }));
        });
    }

    fn take(&mut self, done: Done) {
        let now = self.now();
        match done {
            Done::Target { id, target, outcome, latency } => {
                self.metrics.probed(&target.check.kind, &outcome, latency);
                if let Some(transition) = self.engine.take(id, outcome, latency, now) {
                    log(&transition, now);
                }
            }
            Done::Control { index, passed, started } => {
                self.engine.control(index, passed, started);
            }
        }
    }

    async fn reload(&mut self, config: &Config) {
        systemd::reloading("reading the source table anew");
        match load(&config.source, &config.defaults, Some(&self.tools)).await {
            Ok(loaded) => {
                self.tools = loaded.tools;
                let now = self.now();
                self.engine.reload(loaded.source, now);
                let (targets, new) = (self.engine.targets().count(), self.engine.pending());
                info!(targets, new, "source table loaded anew");
                systemd::ready(&format!("checking {targets} targets"));
            }
            Err(problem) => {
                error!("the source table was not loaded, the running one stays:\n{problem}");
                systemd::ready("the last reload failed; the targets known before are checked");
            }
        }
    }

    fn tell(&self, question: Question) {
        let snapshot = Snapshot::take(&self.engine, &self.record.get(), &self.controls, self.now());
        match question {
            Question::Call(call) => match call.command {
                // Of thousands of targets it is much to write down: elsewhere.
                Command::Status => {
                    tokio::task::spawn_blocking(|| call.answer.done(Ok(snapshot)));
                }
            },
            // Who asked may have gone.
            Question::Snapshot(answer) => drop(answer.try_send(snapshot)),
        }
    }
}

fn log_event(event: &Event, now: Moment) {
    match event {
        Event::Transition(transition) => log(transition, now),
        Event::CutOff { failing, targets, mute: true } => error!(
            failing,
            targets,
            "THIS CHECKER IS CUT OFF: checks of most backends cannot even be done (`status` says why); the last \
             judgement stands"
        ),
        Event::CutOff { failing, targets, mute: false } => error!(
            failing,
            targets,
            "THIS CHECKER IS CUT OFF: its control targets fail too; the last judgement stands"
        ),
        Event::Connected { since } => {
            let lasted = format!("{:.1} s", now.saturating_sub(*since).as_secs_f64());
            warn!(lasted, "this checker is connected again");
        }
    }
}

fn log(transition: &Transition, now: Moment) {
    let Transition { target, from, to, after, reason, held_until } = transition;
    let (target, after) = (target.to_string(), format!("{:.1} s", after.as_secs_f64()));
    match (from, to) {
        (Standing::Unknown, Standing::Up) => info!(target, "up at the first check"),
        (Standing::Unknown, _) => {
            warn!(target, reason = reason.as_deref(), "down at the first check");
        }
        (_, Standing::Down) => {
            let held = held_until.saturating_sub(now).as_millis();
            warn!(target, was_up_for = after, reason = reason.as_deref(), held_ms = held, "down");
        }
        _ => info!(target, was_down_for = after, "up"),
    }
}

/// What a former checker has written: its judgement stands until results overturn it.
fn known(checked: &Path) -> Known {
    let mut known = Known::default();
    if !checked.exists() {
        return known;
    }
    match glb_table::load(checked) {
        Ok(set) => {
            for table in &set.tables {
                for backend in &table.backends {
                    let finding = HealthResult { healthy: backend.healthy, state: backend.state };
                    known.findings.insert((table.name.clone(), backend.address), finding);
                }
            }
            known.drains = drains::read(checked);
        }
        Err(problem) => {
            warn!("the old checked table says nothing: {}", problem.render(false).trim_end());
        }
    }
    known
}

/// Makes the checked table this checker's own, and clears what a killed one left beside it.
fn own(checked: &Path) -> Result<LockFile, Error> {
    let io = |action| {
        move |source| {
            let problem = LockError::Io { action, path: checked.to_owned(), source };
            Error::Checked { path: checked.to_owned(), problem }
        }
    };
    let real = atomic_file::resolve_links(checked).map_err(io("follow the links of"))?;
    let lock = LockFile::take(&real).map_err(|problem| match problem {
        LockError::Held { owner } => Error::Taken { path: checked.to_owned(), owner },
        problem => Error::Checked { path: checked.to_owned(), problem },
    })?;
    for path in [real.clone(), drains::file(checked)] {
        for left in atomic_file::remove_temporary_files(&path).map_err(io("clean up beside"))? {
            info!(file = %left.display(), "removed what a killed checker had begun to write");
        }
    }
    Ok(lock)
}

/// Differs from start to start and from machine to machine.
fn seed() -> u64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (time.as_nanos() as u64) ^ u64::from(std::process::id()).rotate_left(48)
}
