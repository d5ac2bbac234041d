//! The start of the daemon: adopts a generation that already forwards, or activates the first one.

use std::{collections::BTreeSet, sync::Arc};

use glb_host::{
    bpffs::PinFolder,
    generations,
    next_hop::NextHops,
    pin_guard::PinGuard,
    table_source::{self, DocumentDigest, TableDocument},
    xdp_link::{self, Mode},
};
use glb_table::{RowCache, TableSet};
use tracing::{error, info, warn};

use super::{
    Error,
    activate::{
        Activator, ActiveGeneration, Change, Policy, Target, backend_addresses, log_active, release,
    },
    flow_safety::FlowSafety,
    preload::Preloader,
    state::{Director, RollbackTarget},
    state_dir::{GenerationRecord, StateDir},
    step_timer::StepTimer,
};
use crate::{
    announce::{self, WithdrawGate},
    config::Config,
    control::{self, ControlChannel},
    counters::{self, CounterSlotMap},
    daemon_status::DaemonStatus,
};

/// A table document with its tables.
struct ReadTable {
    document: TableDocument,
    tables: TableSet,
}

/// The table to be active after the start.
struct Desired {
    table: ReadTable,
    /// The digest of a document that must not be loaded without a request.
    held_back: Option<DocumentDigest>,
}

/// Removes the pins of a start that failed before anything was attached.
struct CleanUp<'p>(Option<&'p PinFolder>);

impl Drop for CleanUp<'_> {
    fn drop(&mut self) {
        if let Some(pins) = self.0
            && let Err(error) = generations::remove_if_detached(pins)
        {
            warn!(%error, "cannot clean up after a failed start");
        }
    }
}

impl Director {
    /// Starts with an active generation: an adopted one, or a new one.
    pub(super) async fn start(
        config: &Config,
        status: &Arc<DaemonStatus>,
    ) -> Result<(Self, ControlChannel), Error> {
        let source = table_source::open(&config.table);
        let file = source.read().map_err(Error::Table).and_then(ReadTable::parse);
        if !config.bpffs_dir.is_dir() {
            // Nothing runs: check table and interfaces before anything is made.
            if let Err(error) = file {
                return Err(error);
            }
            for interface in &config.interfaces {
                xdp_link::interface_index(interface)?;
            }
        }
        if config.mode == Mode::Generic {
            warn!(
                "mode = \"generic\": the kernel copies each packet into its own form first, which is \
                 several times slower than native XDP; use it only where the driver has no native XDP"
            );
        }
        let pins = PinFolder::create(&config.bpffs_dir, crate::OWNER)?;
        let lock = pins.lock()?;
        keep_kernel_quiet(config).await;
        let mut clean_up = CleanUp(Some(&pins));
        let channel = control::open(config, status, &pins)?;
        let last_read = file.as_ref().ok().map(|table| table.document.digest);
        let (activator, current, previous) = activate_first(config, file, &pins, status).await?;
        clean_up.0 = None;
        drop(clean_up);
        let mut director = Self {
            activator,
            source,
            lock,
            kept: PinGuard::default(),
            pins_problem: None,
            current,
            previous,
            last_read,
            is_unreadable: false,
            logged_interfaces: BTreeSet::new(),
            trace: None,
        };
        if generations::trace_programs(&pins).exists() {
            // A former process was killed while a client traced.
            director.attach_ordinary_program();
        }
        director.activator.settle(&director.current, director.previous.number());
        director.keep_attached();
        for interface in &config.interfaces {
            xdp_link::warn_on_mode_mismatch(interface, config.mode);
        }
        if let Err(error) = counters::finish_migration(&pins) {
            warn!(%error, "cannot remove the counters of another release");
        }
        // The next hops of interfaces that are not configured any more would become stale.
        match generations::detach_all_but(&pins, &config.interfaces) {
            Ok(names) if names.is_empty() => {}
            Ok(names) => info!(
                interfaces = names.join(","),
                "detached from interfaces that are not configured any more"
            ),
            Err(error) => {
                warn!(%error, "cannot detach from an interface that is not configured any more");
            }
        }
        director.hold_pins();
        Ok((director, channel))
    }
}

/// Activates the first generation of this process. Returns it with the activator and the generation
/// that a rollback returns to.
async fn activate_first(
    config: &Config,
    file: Result<ReadTable, Error>,
    pins: &PinFolder,
    status: &DaemonStatus,
) -> Result<(Activator, ActiveGeneration, RollbackTarget), Error> {
    let mut state_dir = StateDir::open(&config.state_dir, &config.bpffs_dir);
    let running = generations::current_program(&config.interfaces, pins)?;
    let maps_in_use =
        running.as_ref().and_then(|(_, program)| program.info().ok()?.map_ids().ok()?);
    let running = running.map(|(number, _program)| number);
    if running.is_none() {
        for interface in &config.interfaces {
            xdp_link::interface_index(interface)?;
        }
        // Nothing forwards yet, and attaching may reset an interface's link.
        for (announcement, error) in announce::withdraw_all(&config.announcements).await {
            warn!(announcement, %error, "cannot withdraw the announcement before the start");
        }
    }
    let previous = recorded_previous(&state_dir, running);
    let record = running.and_then(|number| state_dir.record(number));
    if let Some(generation) = running {
        info!(generation, "adopting the generation that forwards");
        if record.is_none() {
            warn!(
                folder = %config.state_dir.display(),
                "the state folder has no record of the generation that forwards: it is replaced by the \
                 table file, the risk for its flows is unknown, and a rollback is not possible"
            );
        }
    }
    let desired = desired_table(config, file, &mut state_dir, record.as_ref(), status)?;

    pins.make(&pins.join(counters::pins::FOLDER))?;
    let migrated = counters::migrate(pins, &maps_in_use.unwrap_or_default())?;
    migrated.iter().for_each(|message| warn!("{message}"));
    let mut counter_slots = CounterSlotMap::open_or_create(pins)?;
    let targets = backend_addresses(&desired.table.tables);
    let next_hops = NextHops::start_with(config.gateway(), config.transmit(), targets).await?;
    status.follow_next_hops(next_hops.subscribe());
    // Removes generations that a killed process loaded and never attached.
    let keep: Vec<u64> = running.into_iter().chain(previous).collect();
    let next_number = generations::remove_stale(pins, &keep)?;
    for number in keep {
        let tables = state_dir.record(number).and_then(|record| record.document().parse().ok());
        counter_slots.retain(number, tables.map(Arc::new));
    }
    let flow_safety = FlowSafety::open(&state_dir, config.flow_age);
    let mut activator = Activator {
        config: config.clone(),
        pins: pins.clone(),
        counter_slots,
        next_hops,
        row_cache: RowCache::default(),
        flow_safety,
        state_dir,
        preloader: Preloader::default(),
        withdraw_gate: WithdrawGate::new(&config.announcements, config.withdraw),
        next_number,
        release: release(config),
    };
    // Migrated counters need a new program: the attached one counts in the old maps.
    let adoptable = record.as_ref().filter(|_| migrated.is_empty());
    match adoptable.map(|record| activator.adopt(record)) {
        Some(Ok(adopted)) => {
            let stays = previous.map_or(RollbackTarget::None, RollbackTarget::Pinned);
            let (current, previous) =
                continue_with(&mut activator, adopted, desired, stays, status).await?;
            Ok((activator, current, previous))
        }
        other => {
            if let Some(Err(error)) = other {
                info!(%error, "the generation that forwards cannot be adopted and is replaced");
            }
            let current = replace(&mut activator, desired, record.as_ref(), status).await?;
            let previous = running.map_or(RollbackTarget::None, RollbackTarget::Pinned);
            Ok((activator, current, previous))
        }
    }
}

/// Continues with an adopted generation, and changes to the desired table if it is another one.
async fn continue_with(
    activator: &mut Activator,
    mut adopted: ActiveGeneration,
    desired: Desired,
    previous: RollbackTarget,
    status: &DaemonStatus,
) -> Result<(ActiveGeneration, RollbackTarget), Error> {
    let Desired { table: ReadTable { document, tables }, held_back } = desired;
    if document.digest == adopted.digest {
        let program = adopted.generation.id()?;
        let interfaces = &activator.config.interfaces;
        if !generations::runs_everywhere(program, interfaces, &activator.pins)? {
            activator.attach(&mut adopted.generation)?;
        }
        log_active(&adopted, 0.0);
        return Ok((adopted, previous));
    }
    let change = Change {
        target: Target::Build { document, tables },
        running: Some(&adopted),
        before: Some(&adopted.built),
        held_back,
    };
    let policy = Policy::configured(&activator.config, false);
    match activator.activate(change, policy, StepTimer::start()).await {
        Ok((generation, outcome)) => {
            if !outcome.warning.is_empty() {
                status.count_unsafe_change();
            }
            Ok((*generation, RollbackTarget::InProcess(Box::new(adopted))))
        }
        // The adopted generation can go on.
        Err(rejected) => {
            table_not_loaded(&rejected.error, status);
            log_active(&adopted, 0.0);
            Ok((adopted, previous))
        }
    }
}

/// Replaces a generation that cannot be adopted, or activates the first one. If the desired table is
/// refused, the table that forwards is loaded again with the present program.
async fn replace(
    activator: &mut Activator,
    desired: Desired,
    record: Option<&GenerationRecord>,
    status: &DaemonStatus,
) -> Result<ActiveGeneration, Error> {
    let Desired { table: ReadTable { document, tables }, held_back } = desired;
    let forwards = record.map(GenerationRecord::document);
    let forwards = forwards.filter(|forwards| forwards.digest != document.digest);
    let forwards = forwards.and_then(|document| {
        ReadTable::parse(document)
            .inspect_err(|error| {
                warn!(
                    "the risk of this change is unknown, the recorded table is not valid:\n{error}"
                );
            })
            .ok()
    });
    let before = forwards.as_ref().map(|forwards| activator.row_cache.build(&forwards.tables));
    // Without the table that forwards there is nothing to go back to: nothing may stop the change.
    let mut policy = Policy::configured(&activator.config, false);
    policy.skip_withdrawal = forwards.is_none();
    let target = Target::Build { document, tables };
    let change = Change { target, running: None, before: before.as_deref(), held_back };
    let error = match activator.activate(change, policy, StepTimer::start()).await {
        Ok((generation, outcome)) => {
            if !outcome.warning.is_empty() {
                status.count_unsafe_change();
            }
            return Ok(*generation);
        }
        Err(rejected) => rejected.error,
    };
    let is_refused = matches!(error, Error::Unsafe { .. } | Error::WithdrawalUnconfirmed(_));
    let (Some(ReadTable { document, tables }), true) = (forwards, is_refused) else {
        return Err(error);
    };
    table_not_loaded(&error, status);
    let target = Target::Build { document, tables };
    let change = Change { target, running: None, before: None, held_back };
    let policy = Policy::configured(&activator.config, true);
    let activated = activator.activate(change, policy, StepTimer::start()).await;
    activated.map(|(generation, _)| *generation).map_err(|rejected| rejected.error)
}

impl ReadTable {
    fn parse(document: TableDocument) -> Result<Self, Error> {
        let tables = document.parse_and_warn().map_err(Error::Table)?;
        Ok(Self { document, tables })
    }
}

/// Logs and records that the desired table is not loaded.
fn table_not_loaded(error: &Error, status: &DaemonStatus) {
    error!("the table was not loaded, what runs stays:\n{error}");
    if matches!(error, Error::Unsafe { .. }) {
        status.count_refused_change();
    }
    status.start_without_table(error.to_string());
}

/// The table file's tables; or those that forward, if the file was rolled back or is not valid.
fn desired_table(
    config: &Config,
    file: Result<ReadTable, Error>,
    state_dir: &mut StateDir,
    record: Option<&GenerationRecord>,
    status: &DaemonStatus,
) -> Result<Desired, Error> {
    let held_back = state_dir.rolled_back();
    let error = match file {
        Ok(table) => {
            if held_back != Some(table.document.digest) || record.is_none() {
                state_dir.keep_rolled_back(None);
                return Ok(Desired { table, held_back: None });
            }
            warn!(
                table = %config.table.display(),
                "the table file was rolled back and has not changed since: what runs stays; \
                 `glb-director reload` loads the file"
            );
            None
        }
        Err(error) => Some(error),
    };
    match (record, error) {
        (Some(record), error) => {
            if let Some(error) = error {
                table_not_loaded(&error, status);
            }
            Ok(Desired { table: ReadTable::parse(record.document())?, held_back })
        }
        (None, Some(error)) => Err(error),
        (None, None) => Err(Error::NoPrevious),
    }
}

/// The generation to which a rollback from `running` returns. A process that was killed between a swap
/// and the end of the activation has not recorded that the replaced generation is the previous one.
fn recorded_previous(state_dir: &StateDir, running: Option<u64>) -> Option<u64> {
    let (current, previous) = state_dir.pair()?;
    if Some(current) == running { previous } else { Some(current) }
}

/// Keeps this machine's kernel from answering for announced VIPs.
async fn keep_kernel_quiet(config: &Config) {
    let prefixes: Vec<_> =
        config.announcements.iter().flat_map(|one| one.prefixes.iter().copied()).collect();
    match announce::policy_rules::install(&config.interfaces, &prefixes).await {
        Err(error) if !prefixes.is_empty() => {
            warn!(
                "{error}: this machine may answer \"unreachable\" for a VIP, with IPv6 or if it \
                 forwards; set the rules by hand that `glb-director doctor` shows"
            );
        }
        _ => {}
    }
}
