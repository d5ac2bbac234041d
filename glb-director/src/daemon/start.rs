//! The beginning: what runs already is taken over, or the first generation is made.

use std::{collections::BTreeSet, sync::Arc};

use glb_host::{
    bpffs::PinFolder,
    generations,
    next_hop::NextHops,
    pin_guard::PinGuard,
    xdp_link::{self, Mode},
};
use glb_table::{BuiltTable, RowCache, TableSet};
use tracing::{error, info, warn};

use super::{
    Error,
    activate::{Made, Making, release, say, targets},
    flow_safety::{self, Safety},
    preload::Spare,
    state::{Director, Previous},
    state_dir::{Record, Store},
    table_file::Source,
    timing::Steps,
};
use crate::{
    announce::{self, WithdrawGate},
    config::{Config, OnUnsafe},
    control,
    counters::{self, Identities},
    daemon_status::State,
};

/// Of a director that never forwarded nothing stays, however its start ended.
struct Unfinished<'p>(Option<&'p PinFolder>);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some(pins) = self.0
            && let Err(error) = generations::remove_if_detached(pins)
        {
            warn!("{error}");
        }
    }
}

impl<'c> Director<'c> {
    /// The first generation of this process, in force.
    pub(super) async fn start(
        config: &'c Config,
        state: &Arc<State>,
    ) -> Result<(Self, control::Channel), Error> {
        let file = Source::read(&config.table).and_then(|source| Ok((source.parse()?, source)));
        if !config.bpffs_dir.is_dir() {
            // Nothing runs: before anything is made, the table is in order.
            if let Err(error) = file {
                return Err(error);
            }
            for interface in &config.interfaces {
                xdp_link::interface_index(interface)?;
            }
        }
        if config.mode == Mode::Generic {
            warn!(
                "mode = \"generic\": the kernel makes its own form of each packet first, which is \
                 several times slower than native XDP; use it only where the driver has no native XDP"
            );
        }
        let pins = PinFolder::create(&config.bpffs_dir, crate::OWNER)?;
        let lock = pins.lock()?;
        keep_quiet(config).await;
        let mut unfinished = Unfinished(Some(&pins));
        let channel = control::open(config, state, &pins)?;
        let begun = Self::begin(config, file, &pins, state).await?;
        unfinished.0 = None;
        drop(unfinished);
        let Begun { making, current, previous, seen } = begun;
        let mut director = Self {
            making,
            lock,
            kept: PinGuard::default(),
            pins_problem: None,
            current,
            previous,
            seen,
            is_unread: false,
            away: BTreeSet::new(),
            watcher: None,
        };
        if generations::trace_programs(&pins).exists() {
            // Left by a predecessor that was killed while somebody watched.
            director.plain_again();
        }
        director.making.settle(&director.current, director.previous.number());
        director.keep_attached();
        for interface in &config.interfaces {
            xdp_link::warn_on_mode_mismatch(interface, config.mode);
        }
        if let Err(error) = counters::renewed(&pins) {
            warn!(%error, "counters of a former release are left behind");
        }
        // Left by a configuration that named more interfaces: nobody would keep their tables fresh.
        match generations::detach_all_but(&pins, &config.interfaces) {
            Ok(names) if names.is_empty() => {}
            Ok(names) => info!(interfaces = names.join(","), "detached: no longer configured"),
            Err(error) => warn!(%error, "an interface that is no longer configured stays attached"),
        }
        director.hold();
        Ok((director, channel))
    }

    async fn begin(
        config: &'c Config,
        file: Result<(TableSet, Source), Error>,
        pins: &PinFolder,
        state: &State,
    ) -> Result<Begun<'c>, Error> {
        let mut store = Store::open(&config.state_dir, &config.bpffs_dir);
        let running = generations::current_program(&config.interfaces, pins)?;
        let in_use =
            running.as_ref().and_then(|(_, program)| program.info().ok()?.map_ids().ok()?);
        let running = running.map(|(number, _program)| number);
        if running.is_none() {
            for interface in &config.interfaces {
                xdp_link::interface_index(interface)?;
            }
            // Nothing serves yet, and attaching may reset an interface's link.
            for (announcement, error) in announce::withdraw_all(&config.announcements).await {
                warn!(announcement, "cannot be withdrawn before the start: {error}");
            }
        }
        let previous = previous(&store, running);
        let record = running.and_then(|number| store.record(number));
        if let Some(generation) = running {
            info!(generation, "adopting what a former director left running");
            if record.is_none() {
                warn!(
                    folder = %config.state_dir.display(),
                    "the state folder does not say which table runs: what runs is replaced by the \
                     table file, what that does to flows is not known, and there is no way back"
                );
            }
        }
        let seen = file.as_ref().ok().map(|(_, source)| source.sum);
        let wanted = wanted(config, file, &mut store, record.as_ref(), state)?;

        pins.make(&pins.join(counters::pins::FOLDER))?;
        let renewed = counters::renew(pins, &in_use.unwrap_or_default())?;
        renewed.iter().for_each(|said| warn!("{said}"));
        let mut identities = Identities::open_or_create(pins)?;
        let next_hops =
            NextHops::start_with_gateway(config.gateway_mac, targets(&wanted.tables)).await?;
        state.follow(next_hops.subscribe());
        // What a killed predecessor loaded and never swapped in.
        let keep: Vec<u64> = running.into_iter().chain(previous).collect();
        let next_number = generations::remove_stale(pins, &keep)?;
        for number in keep {
            let record = store.record(number);
            let tables = record.and_then(|record| Source::of(&record).tables().ok());
            identities.hold(number, tables.map(Arc::new));
        }
        let safety = Safety::open(&store, config.flow_age);
        let mut making = Making {
            config,
            pins: pins.clone(),
            identities,
            next_hops,
            builder: RowCache::default(),
            safety,
            store,
            spare: Spare::default(),
            withdraw_gate: WithdrawGate::new(&config.announcements, config.withdraw),
            next_number,
            release: release(config),
        };
        // What runs counts where it was loaded to: new counters need a new program.
        let usable = record.as_ref().filter(|_| renewed.is_empty());
        let adopted = usable.map(|record| making.adopt(record));
        let (made, previous) = match adopted {
            Some(Ok(made)) => Self::take_over(&mut making, made, wanted, previous, state).await?,
            other => {
                if let Some(Err(error)) = other {
                    info!("what runs is replaced: {error}");
                }
                let made = Self::replace(&mut making, wanted, record.as_ref(), state).await?;
                (made, running.map_or(Previous::None, Previous::Pinned))
            }
        };
        Ok(Begun { making, current: made, previous, seen })
    }

    /// What runs is this release's: it stays if its table is the one that is wanted.
    async fn take_over(
        making: &mut Making<'c>,
        mut made: Made,
        wanted: Wanted,
        previous: Option<u64>,
        state: &State,
    ) -> Result<(Made, Previous), Error> {
        let Wanted { source, tables } = wanted;
        let stays = previous.map_or(Previous::None, Previous::Pinned);
        if source.sum == made.sum {
            let program = made.generation.id()?;
            let Config { interfaces, .. } = making.config;
            if !generations::runs_everywhere(program, interfaces, &making.pins)? {
                making.attach(&mut made.generation)?;
            }
            say(&made, 0.0);
            return Ok((made, stays));
        }
        let mut steps = Steps::begin();
        let built = making.builder.build(&tables);
        if !is_allowed(making, &made.built, &built, state) {
            say(&made, 0.0);
            return Ok((made, stays));
        }
        match making.bring(&source, tables, built, Some(&made), false, &mut steps).await {
            Ok(new) => {
                say(&new, steps.end(new.generation.number).milliseconds);
                Ok((new, Previous::Here(Box::new(made))))
            }
            // It can be looked after as it is.
            Err(error) => {
                not_loaded(&error, state);
                say(&made, 0.0);
                Ok((made, stays))
            }
        }
    }

    /// What runs, if anything does, is replaced by this release's program, with the table that is
    /// wanted, or its own if that one must not be.
    async fn replace(
        making: &mut Making<'c>,
        wanted: Wanted,
        record: Option<&Record>,
        state: &State,
    ) -> Result<Made, Error> {
        let wanted = match record {
            Some(record) => weighed(making, wanted, record, state),
            None => wanted,
        };
        let runs = record.map(Source::of).filter(|runs| runs.sum != wanted.source.sum);
        // Without a record nobody knows what runs, and so what there is to go on with.
        let made = Self::first(making, wanted, runs.is_none()).await;
        let (Err(error @ Error::WithdrawalUnconfirmed(_)), Some(source)) = (&made, runs) else {
            return made;
        };
        not_loaded(error, state);
        let tables = source.parse()?;
        Self::first(making, Wanted { source, tables }, true).await
    }

    async fn first(making: &mut Making<'c>, wanted: Wanted, force: bool) -> Result<Made, Error> {
        let mut steps = Steps::begin();
        let Wanted { source, tables } = wanted;
        let built = making.builder.build(&tables);
        let made = making.bring(&source, tables, built, None, force, &mut steps).await?;
        say(&made, steps.end(made.generation.number).milliseconds);
        Ok(made)
    }
}

/// This machine's kernel answers for no VIP that is announced here, from now on.
async fn keep_quiet(config: &Config) {
    let prefixes: Vec<_> =
        config.announcements.iter().flat_map(|one| one.prefixes.iter().copied()).collect();
    match announce::policy_rules::install(&config.interfaces, &prefixes).await {
        Err(error) if !prefixes.is_empty() => {
            warn!(
                "{error}: with IPv6, or where it forwards, this machine may answer \"unreachable\" \
                 for a VIP; `glb-director doctor` has the rules to set by hand"
            );
        }
        _ => {}
    }
}

struct Begun<'c> {
    making: Making<'c>,
    current: Made,
    previous: Previous,
    seen: Option<super::state_dir::Sum>,
}

/// Whether a change from what runs to the file's tables may be made. Said, and counted, if it can break
/// flows.
fn is_allowed(
    making: &mut Making<'_>,
    before: &[BuiltTable],
    built: &[BuiltTable],
    state: &State,
) -> bool {
    let judgement = making.safety.judge(before, built);
    if judgement.safe {
        return true;
    }
    let risk = flow_safety::in_words(&judgement);
    if making.config.on_unsafe == OnUnsafe::Refuse {
        state.refused();
        not_loaded(&Error::Unsafe { risk }, state);
        return false;
    }
    warn!(at_risk = flow_safety::worst(&judgement), "this change can break flows:\n{risk}");
    state.took_a_risk();
    true
}

/// Says that the table that runs stays.
fn not_loaded(error: &Error, state: &State) {
    error!("the table file is not loaded, what runs stays:\n{error}");
    state.not_taken(error.to_string());
}

/// What is wanted, or what runs if that change must not be made: its program is replaced in either
/// case, but not its table.
fn weighed(making: &mut Making<'_>, wanted: Wanted, record: &Record, state: &State) -> Wanted {
    let source = Source::of(record);
    if source.sum == wanted.source.sum {
        return wanted;
    }
    let tables = match source.parse() {
        Ok(tables) => tables,
        Err(error) => {
            warn!(
                "what this change does to flows is not known, what runs cannot be read:\n{error}"
            );
            return wanted;
        }
    };
    let before = making.builder.build(&tables);
    let built = making.builder.build(&wanted.tables);
    if is_allowed(making, &before, &built, state) { wanted } else { Wanted { source, tables } }
}

/// What is to be in force.
struct Wanted {
    source: Source,
    tables: TableSet,
}

/// The table file's tables; or those that run, if the file was rolled back, or is not in order.
fn wanted(
    config: &Config,
    file: Result<(TableSet, Source), Error>,
    store: &mut Store,
    record: Option<&Record>,
    state: &State,
) -> Result<Wanted, Error> {
    let rolled_back = store.rolled_back();
    let error = match file {
        Ok((tables, source)) => {
            if rolled_back != Some(source.sum) || record.is_none() {
                store.keep_rolled_back(None);
                return Ok(Wanted { source, tables });
            }
            warn!(
                table = %config.table.display(),
                "was rolled back and has not been changed since: what runs stays; `reload` loads it"
            );
            None
        }
        Err(error) => Some(error),
    };
    match (record, error) {
        (Some(record), error) => {
            if let Some(error) = error {
                error!(
                    table = %config.table.display(),
                    "the table was not loaded, what runs stays:\n{error}"
                );
                state.not_taken(error.to_string());
            }
            let source = Source::of(record);
            let tables = source.parse()?;
            Ok(Wanted { source, tables })
        }
        (None, Some(error)) => Err(error),
        (None, None) => Err(Error::NoPrevious),
    }
}

/// The way back from the generation that runs. A process that died between a swap and its last step
/// has not said that the one before is the way back now.
fn previous(store: &Store, running: Option<u64>) -> Option<u64> {
    let (current, previous) = store.pair()?;
    if Some(current) == running { previous } else { Some(current) }
}
