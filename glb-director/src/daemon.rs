//! The running director: builds generations, keeps next hops fresh, answers signals.

use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use glb_host::{
    bpffs::{PinFolder, PinFolderError, PinLock},
    control::Refusal,
    generations::{self, SwapError},
    load::LoadError,
    metrics::{self, MetricsError},
    next_hop::{NextHops, OpenError, Snapshot},
    xdp_link::{self, AttachError},
};
use glb_table::TableSet;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

use crate::{
    config::Config,
    control::{self, ControlError, Status},
    counters::{self, CountersError, Identities},
    generation::{self, Generation, self_test::SelfTestError},
    image::{Image, ImageError},
    metrics::{Metered, Metrics},
    state::State,
};

/// How long a new generation waits for the answers of backends that were never asked for before.
const NEXT_HOP_PATIENCE: Duration = Duration::from_secs(2);

/// Why the daemon does not start, or a table is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The table file is not in order.
    #[error("{}", .0.render(false).trim_end())]
    Table(glb_table::LoadError),
    /// The table cannot be carried.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Counters.
    #[error(transparent)]
    Counters(#[from] CountersError),
    /// Pin folder.
    #[error(transparent)]
    Pins(#[from] PinFolderError),
    /// Interfaces.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// Loading.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Self-test.
    #[error(transparent)]
    SelfTest(#[from] SelfTestError),
    /// Swapping.
    #[error(transparent)]
    Swap(#[from] SwapError),
    /// Netlink.
    #[error(transparent)]
    NextHops(#[from] OpenError),
    /// Metrics.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The control channel.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Signals.
    #[error("cannot listen for signals: {0}")]
    Signals(io::Error),
}

/// Runs until a signal ends it. The program stays attached and forwards.
///
/// # Errors
/// When it cannot start.
pub async fn run(config: &Config) -> Result<(), Error> {
    let signals = |kind| signal(kind).map_err(Error::Signals);
    let mut hangup: Signal = signals(SignalKind::hangup())?;
    let mut terminate = signals(SignalKind::terminate())?;
    let mut interrupt = signals(SignalKind::interrupt())?;

    let state = Arc::new(State::default());
    let metrics = Arc::new(Metrics::default());
    // Before anything is attached: a port that is in use is found while nothing has changed.
    let listener = config.metrics.map(metrics::bind).transpose()?;
    let (mut director, mut channel) = tokio::select! {
        started = Director::start(config, &state) => started?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    metrics.in_force(director.generation.number);
    state.in_force(director.generation.number, Arc::clone(&director.tables));
    if let Some(listener) = listener {
        let pins = director.pins.clone();
        metrics::serve(listener, Metered { pins, metrics: Arc::clone(&metrics) })?;
    }
    info!(
        generation = director.generation.number,
        interfaces = config.interfaces.join(","),
        "ready"
    );
    let mut next_hops = director.next_hops.subscribe();
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
            _ = hangup.recv() => drop(reload(&mut director, &state, &metrics).await),
            Some(call) = channel.calls.recv() => match call.command {
                control::Command::Reload { .. } => {
                    let result = reload(&mut director, &state, &metrics).await;
                    call.answer.done(result.map(|()| Status::of(&state)).map_err(Refusal::failed));
                }
                control::Command::Status => call.answer.done(Ok(Status::of(&state))),
            },
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
async fn reload(
    director: &mut Director<'_>,
    state: &State,
    metrics: &Metrics,
) -> Result<(), String> {
    state.reloading();
    let begun = Instant::now();
    let result = director.reload().await;
    let number = director.generation.number;
    metrics.reloaded(number, result.is_ok());
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

struct Director<'c> {
    config: &'c Config,
    pins: PinFolder,
    #[expect(dead_code, reason = "held for its effect")]
    lock: PinLock,
    identities: Identities,
    next_hops: NextHops,
    generation: Generation,
    tables: Arc<TableSet>,
}

impl<'c> Director<'c> {
    async fn start(
        config: &'c Config,
        state: &Arc<State>,
    ) -> Result<(Self, control::Channel), Error> {
        let tables = load_tables(config)?;
        for interface in &config.interfaces {
            xdp_link::interface_index(interface)?;
        }
        let pins = PinFolder::create(&config.pin, crate::OWNER)?;
        let lock = pins.lock()?;
        let channel = match control::open(&config.control, state) {
            Ok(channel) => channel,
            Err(error) => {
                remove_if_unused(&pins);
                return Err(error.into());
            }
        };
        match Self::bring_up(config, &tables, &pins).await {
            Ok((identities, next_hops, generation)) => {
                let tables = Arc::new(tables);
                let director =
                    Self { config, pins, lock, identities, next_hops, generation, tables };
                Ok((director, channel))
            }
            Err(error) => {
                remove_if_unused(&pins);
                Err(error)
            }
        }
    }

    /// The first generation of this process, in force.
    async fn bring_up(
        config: &Config,
        tables: &TableSet,
        pins: &PinFolder,
    ) -> Result<(Identities, NextHops, Generation), Error> {
        pins.make(&pins.join(counters::pins::FOLDER))?;
        let mut identities = Identities::open_or_create(pins)?;
        let next_hops = NextHops::start(targets(tables)).await?;
        let previous = generations::current_program(&config.interfaces, pins)?;
        let previous = previous.map(|(number, _program)| number);
        // What a killed predecessor loaded and never swapped in.
        let number = generations::remove_stale(pins, &previous.into_iter().collect::<Vec<_>>())?;
        if let Some(generation) = previous {
            info!(generation, "adopting what a former director left running");
        }
        let generation =
            build(config, tables, None, &mut identities, &next_hops, number, pins).await?;
        settle(&generation, previous, pins);
        // Left by a configuration that named more interfaces: nobody would keep their tables fresh.
        match generations::detach_all_but(pins, &config.interfaces) {
            Ok(names) if names.is_empty() => {}
            Ok(names) => info!(interfaces = names.join(","), "detached: no longer configured"),
            Err(error) => warn!(%error, "an interface that is no longer configured stays attached"),
        }
        Ok((identities, next_hops, generation))
    }

    /// Loads the table file anew and swaps it in.
    async fn reload(&mut self) -> Result<(), Error> {
        let tables = load_tables(self.config)?;
        let wanted = targets(&tables);
        let running = self.generation.image.owners.iter().map(|owner| owner.address);
        self.next_hops.set_targets(wanted.iter().copied().chain(running));
        let number = self.generation.number + 1;
        let built = build(
            self.config,
            &tables,
            Some(&self.generation.image),
            &mut self.identities,
            &self.next_hops,
            number,
            &self.pins,
        )
        .await;
        let previous = match built {
            Ok(generation) => std::mem::replace(&mut self.generation, generation).number,
            Err(error) => {
                let running = self.generation.image.owners.iter().map(|owner| owner.address);
                self.next_hops.set_targets(running);
                return Err(error);
            }
        };
        self.next_hops.set_targets(wanted);
        self.tables = Arc::new(tables);
        settle(&self.generation, Some(previous), &self.pins);
        Ok(())
    }

    /// Enters changed next hops into the running generation.
    fn follow(&mut self, snapshot: &Arc<Snapshot>) {
        let changed = self.generation.image.resolve(snapshot, self.config.options.outer_source);
        for index in changed {
            let owner = &self.generation.image.owners[index];
            match self.generation.enter_backend(index) {
                Ok(()) => info!(backend = %owner.address, "next hop entered"),
                Err(error) => error!(backend = %owner.address, %error, "next hop not entered"),
            }
        }
    }
}

/// Of a director that never forwarded nothing stays.
fn remove_if_unused(pins: &PinFolder) {
    if let Err(error) = generations::remove_if_detached(pins) {
        warn!("{error}");
    }
}

/// After a swap: the generations before the previous one go. The new one is in force whether or not
/// they do.
fn settle(generation: &Generation, previous: Option<u64>, pins: &PinFolder) {
    let keep: Vec<u64> = previous.into_iter().chain([generation.number]).collect();
    if let Err(error) = generations::remove_stale(pins, &keep) {
        warn!(%error, "an old generation is left behind");
    }
    info!(
        generation = generation.number,
        tables = generation.image.tables.len(),
        backends = generation.image.backends.len(),
        "in force"
    );
}

fn load_tables(config: &Config) -> Result<TableSet, Error> {
    let tables = glb_table::load(&config.table).map_err(Error::Table)?;
    if !tables.warnings.is_empty() {
        warn!("{}", glb_table::render(&tables.warnings, false).trim_end());
    }
    Ok(tables)
}

fn targets(tables: &TableSet) -> BTreeSet<IpAddr> {
    tables.tables.iter().flat_map(|table| &table.backends).map(|backend| backend.address).collect()
}

/// Builds, loads, tests and swaps in a generation. `running` is what it takes the place of.
async fn build(
    config: &Config,
    tables: &TableSet,
    running: Option<&Image>,
    identities: &mut Identities,
    next_hops: &NextHops,
    number: u64,
    pins: &PinFolder,
) -> Result<Generation, Error> {
    identities.assign(tables)?;
    let wanted = targets(tables);
    // A backend that has been followed already will not answer sooner for being waited for: a dead
    // one must not hold up the table that takes it out.
    let is_new = |address| !running.is_some_and(|r| r.owners.iter().any(|o| o.address == address));
    let patience =
        if wanted.iter().copied().any(is_new) { NEXT_HOP_PATIENCE } else { Duration::ZERO };
    let snapshot = next_hops.settled(patience).await;
    for address in wanted {
        if let Some(Err(reason)) = snapshot.get(&address) {
            warn!(backend = %address, "no way to this backend yet: {reason}");
        }
    }
    let mut image = Image::new(tables, identities, &snapshot, &config.options)?;
    if let Some(running) = running {
        image.inherit_ways(running);
    }
    let mut generation = Generation::load(image, number, pins)?;
    let swapped =
        generation::self_test::run(&mut generation).map_err(Error::from).and_then(|packets| {
            info!(generation = number, packets, "self-test passed");
            let program = generation.program()?;
            generations::swap(program, &config.interfaces, pins).map_err(Error::from)
        });
    match swapped {
        Ok(()) => Ok(generation),
        Err(error) => {
            generation.discard(pins);
            Err(error)
        }
    }
}
