//! The running checker: probes go out, results come in, findings are published.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::LocalSet,
    time::{Instant, sleep_until},
};
use tracing::{error, info, warn};

use crate::{
    Moment,
    check::{Pace, Target},
    config::Config,
    engine::{Engine, Source, Transition},
    judge::Standing,
    probe::{self, Outcome, TlsError, Tools},
    publish::Publisher,
    wanted::{self, WantedError},
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
    /// TLS.
    #[error("{file}: healthchecks.https: {source}")]
    Tls {
        /// The source.
        file: String,
        /// What is wrong.
        source: TlsError,
    },
    /// Signals.
    #[error("cannot listen for signals: {0}")]
    Signals(io::Error),
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
pub fn load(path: &Path, defaults: &Pace) -> Result<Loaded, Error> {
    let io = |source| Error::Table(glb_table::LoadError::Io { path: path.to_owned(), source });
    let bytes = std::fs::read(path).map_err(io)?;
    let form = glb_table::Form::of(path);
    let set = glb_table::parse_bytes(path, form, &bytes).map_err(Error::Table)?;
    let text = String::from_utf8(bytes)
        .map_err(|error| io(io::Error::new(io::ErrorKind::InvalidData, error)))?;
    let wanted = wanted::targets(path, &set, defaults)?;
    let tools = Tools::new(wanted.iter().flatten().flatten())
        .map_err(|source| Error::Tls { file: path.display().to_string(), source })?;
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
struct Done {
    id: u64,
    outcome: Outcome,
    latency: Duration,
}

async fn watch_over(config: &Config) -> Result<(), Error> {
    let signals = |kind| signal(kind).map_err(Error::Signals);
    let mut hangup = signals(SignalKind::hangup())?;
    let mut terminate = signals(SignalKind::terminate())?;
    let mut interrupt = signals(SignalKind::interrupt())?;

    let Loaded { source, mut tools } = load(&config.source, &config.defaults)?;
    raise_file_limit();
    let began = Instant::now();
    let now = || -> Moment { began.elapsed() };
    let known = known(&config.checked);
    let mut engine = Engine::new(config.options.clone(), source, &known, seed(), now());
    let publisher = Publisher {
        checked: config.checked.clone(),
        command: config.reload_command.clone(),
        timeout: config.reload_timeout,
        record: crate::publish::SharedRecord::default(),
    };
    let (decisions, newest) = watch::channel(None);
    let publishing = tokio::task::spawn_local(publisher.run(newest));
    let (results, mut done) = mpsc::unbounded_channel();
    info!(
        targets = engine.targets().count(),
        source = %config.source.display(),
        checked = %config.checked.display(),
        "checking"
    );
    let mut ready = false;
    loop {
        let at = now();
        while let Some(job) = engine.next_job(at) {
            send(job.id, job.target, Arc::clone(&tools), results.clone());
        }
        if let Some(decision) = engine.decide(at) {
            if !ready {
                ready = true;
                info!(targets = engine.targets().count(), "ready: each target has been checked");
            }
            decisions.send_replace(Some(Arc::new(decision)));
        }
        // A timer is no finer than a millisecond; without anything to do, signals still wake.
        let wake = engine.wake().map_or(began + Duration::from_secs(3600), |at| began + at);
        tokio::select! {
            Some(first) = done.recv() => {
                let at = now();
                take(&mut engine, first, at);
                while let Ok(next) = done.try_recv() {
                    take(&mut engine, next, at);
                }
            }
            () = sleep_until(wake) => {}
            _ = hangup.recv() => match load(&config.source, &config.defaults) {
                Ok(loaded) => {
                    tools = loaded.tools;
                    engine.reload(loaded.source, now());
                    info!(
                        targets = engine.targets().count(),
                        new = engine.pending(),
                        "source table loaded anew"
                    );
                }
                Err(problem) => error!(
                    "the source table was not loaded, the running one stays:\n{problem}"
                ),
            },
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    // A write that is under way is finished; what was not begun is left to the next start.
    drop(decisions);
    publishing.abort();
    info!("ended; the checked table stays as it is");
    Ok(())
}

fn send(id: u64, target: Arc<Target>, tools: Arc<Tools>, results: mpsc::UnboundedSender<Done>) {
    tokio::task::spawn_local(async move {
        let (outcome, latency) = probe::probe(&target, &tools).await;
        // Nobody waits for a result at the end.
        drop(results.send(Done { id, outcome, latency }));
    });
}

fn take(engine: &mut Engine, done: Done, now: Moment) {
    if let Some(transition) = engine.take(done.id, done.outcome, done.latency, now) {
        log(&transition, now);
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
fn known(checked: &Path) -> HashMap<(String, IpAddr), bool> {
    if !checked.exists() {
        return HashMap::new();
    }
    match glb_table::load(checked) {
        Ok(set) => {
            let mut known = HashMap::new();
            for table in &set.tables {
                for backend in &table.backends {
                    known.insert((table.name.clone(), backend.address), backend.healthy);
                }
            }
            known
        }
        Err(problem) => {
            warn!("the old checked table says nothing: {}", problem.render(false).trim_end());
            HashMap::new()
        }
    }
}

/// Each probe under way takes a descriptor.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) }
    });
    if let Err(problem) = raised {
        warn!(%problem, "the limit of open files stays as it is");
    }
}

/// Differs from start to start and from machine to machine.
fn seed() -> u64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (time.as_nanos() as u64) ^ u64::from(std::process::id()).rotate_left(48)
}
