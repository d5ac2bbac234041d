//! The one path by which a generation becomes active.
//!
//! Start, reload and rollback all call [`Activator::activate`] with a [`Change`] and a [`Policy`]. It
//! builds rows, assesses the risk for flows, loads and tests a program (or takes the former one),
//! withdraws what the new tables do not serve, and swaps the program on all interfaces. `on_unsafe` is
//! decided in [`Activator::decide`] only, and the [`ReloadOutcome`] is assembled at the end of
//! [`Activator::activate`] only. If a step fails, everything stays as it was.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use glb_host::{
    bpf_loader::LoadError,
    bpffs::PinFolder,
    failpoints, generations,
    next_hop::{NextHops, Snapshot},
    table_source::{DocumentDigest, TableDocument},
};
use glb_table::{BuiltTable, RowCache, TableSet, flow_safety::RiskReport};
use sha2::{Digest as _, Sha256};
use tracing::{debug, info, warn};

use super::{
    Error,
    flow_safety::{FlowSafety, largest_risk, risk_text},
    preload::Preloader,
    state_dir::{GenerationRecord, StateDir},
    step_timer::StepTimer,
};
use crate::{
    announce::WithdrawGate,
    compiled_tables::CompiledTables,
    config::{Config, OnUnsafe},
    counters::{CounterSlotMap, Overflow},
    generation::{Generation, LoadedProgram, ProgramSpec, self_test},
    model::ReloadOutcome,
};

/// How long an activation waits for the kernel to resolve new backends.
const NEXT_HOP_PATIENCE: Duration = Duration::from_secs(2);

/// A generation with the tables that it was built from.
pub(super) struct ActiveGeneration {
    pub(super) generation: Generation,
    pub(super) tables: Arc<TableSet>,
    pub(super) built: Vec<BuiltTable>,
    /// The digest of the table document.
    pub(super) digest: DocumentDigest,
    /// The program and options that it was built with: see [`release`].
    pub(super) release: String,
}

impl ActiveGeneration {
    pub(super) fn number(&self) -> u64 {
        self.generation.number
    }

    /// The addresses of all backends.
    pub(super) fn addresses(&self) -> BTreeSet<IpAddr> {
        backend_addresses(&self.tables)
    }
}

/// What a change activates.
pub(super) enum Target {
    /// A new generation with these tables.
    Build {
        /// The document that the tables were parsed from.
        document: TableDocument,
        tables: TableSet,
    },
    /// A former generation, with its program and maps as they are.
    Restore(Box<ActiveGeneration>),
}

/// A change of the active generation.
pub(super) struct Change<'r> {
    pub(super) target: Target,
    /// The generation that is replaced, if this process has it.
    pub(super) running: Option<&'r ActiveGeneration>,
    /// The tables that forward now, for the assessment of the risk; `None` if they are unknown.
    pub(super) before: Option<&'r [BuiltTable]>,
    /// The digest of a table document that must not be loaded again without a request.
    pub(super) held_back: Option<DocumentDigest>,
}

/// What a change is allowed to do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    /// What happens if the change can break flows.
    pub(super) on_unsafe: OnUnsafe,
    /// Activate even if removed VIPs may still be announced.
    pub(super) skip_withdrawal: bool,
}

impl Policy {
    /// The configured policy. `force` overrides both of its parts.
    pub(super) fn configured(config: &Config, force: bool) -> Self {
        let on_unsafe = if force { OnUnsafe::Warn } else { config.on_unsafe };
        Self { on_unsafe, skip_withdrawal: force }
    }
}

/// A change that was not made.
pub(super) struct Rejected {
    pub(super) error: Error,
    /// The generation of a [`Target::Restore`], unchanged.
    pub(super) former: Option<Box<ActiveGeneration>>,
}

impl From<Error> for Rejected {
    fn from(error: Error) -> Self {
        Self { error, former: None }
    }
}

/// Everything that activating a generation needs.
pub(super) struct Activator {
    pub(super) config: Config,
    pub(super) pins: PinFolder,
    pub(super) counter_slots: CounterSlotMap,
    pub(super) next_hops: NextHops,
    pub(super) row_cache: RowCache,
    pub(super) flow_safety: FlowSafety,
    pub(super) state_dir: StateDir,
    pub(super) preloader: Preloader,
    /// Withdraws the VIPs that a new generation does not serve.
    pub(super) withdraw_gate: WithdrawGate,
    pub(super) next_number: u64,
    /// This program under this configuration: see [`release`].
    pub(super) release: String,
}

/// The addresses of all backends in `tables`.
pub(super) fn backend_addresses(tables: &TableSet) -> BTreeSet<IpAddr> {
    tables.tables.iter().flat_map(|table| &table.backends).map(|backend| backend.address).collect()
}

/// Identifies program and forwarding options. Generations of one release differ in their tables only.
pub(super) fn release(config: &Config) -> String {
    let mut hasher = Sha256::new();
    hasher.update(glb_host::DIRECTOR_OBJECT);
    hasher.update(format!("{:?}", config.options));
    let digest: [u8; 32] = hasher.finalize().into();
    format!("{} {}", failpoints::release(env!("CARGO_PKG_VERSION")), glb_table::hex(&digest))
}

impl Activator {
    /// Makes a change. `timer` already runs since the request.
    pub(super) async fn activate(
        &mut self,
        change: Change<'_>,
        policy: Policy,
        mut timer: StepTimer,
    ) -> Result<(Box<ActiveGeneration>, ReloadOutcome), Rejected> {
        let Change { target, running, before, held_back } = change;
        let risk;
        let (mut generation, document) = match target {
            Target::Build { document, tables } => {
                let built = self.row_cache.build(&tables);
                timer.step("rows");
                risk = self.decide(before, &built, policy)?;
                timer.step("plan");
                let loaded = self.load(&document, tables, built, running, &mut timer).await;
                let loaded = loaded.inspect_err(|_| self.follow_only(running))?;
                (Box::new(loaded), Some(document))
            }
            Target::Restore(former) => {
                timer.step("find");
                risk = match self.decide(before, &former.built, policy) {
                    Ok(risk) => risk,
                    Err(error) => return Err(Rejected { error, former: Some(former) }),
                };
                timer.step("plan");
                (former, None)
            }
        };
        let withdrawn = self
            .withdraw_gate
            .withdraw_before_swap(&generation.tables, policy.skip_withdrawal)
            .await;
        timer.step("withdraw");
        let swapped = withdrawn.map_err(Error::from).and_then(|()| {
            self.swap(&mut generation, document.as_ref(), running, held_back, &mut timer)
        });
        if let Err(error) = swapped {
            self.follow_only(running);
            if document.is_none() {
                return Err(Rejected { error, former: Some(generation) });
            }
            generation.generation.discard(&self.pins);
            return Err(error.into());
        }
        let number = generation.number();
        self.counter_slots.retain(number, Some(Arc::clone(&generation.tables)));
        let outcome = ReloadOutcome {
            generation: number,
            changed: true,
            at_risk: risk.as_ref().map_or(0.0, largest_risk),
            warning: risk.as_ref().map(risk_text).unwrap_or_default(),
            milliseconds: timer.milliseconds(),
            steps: timer.into_steps(),
        };
        log_active(&generation, outcome.milliseconds);
        Ok((generation, outcome))
    }

    /// Decides whether a change may be made that can break flows.
    fn decide(
        &mut self,
        before: Option<&[BuiltTable]>,
        after: &[BuiltTable],
        policy: Policy,
    ) -> Result<Option<RiskReport>, Error> {
        let Some(before) = before else { return Ok(None) };
        let risk = self.flow_safety.assess(before, after);
        if !risk.safe {
            let text = risk_text(&risk);
            if policy.on_unsafe == OnUnsafe::Refuse {
                return Err(Error::Unsafe { risk: text });
            }
            warn!(at_risk = largest_risk(&risk), "this change can break flows:\n{text}");
        }
        Ok(Some(risk))
    }

    /// Compiles, loads, tests and pins a new generation, which is not attached yet.
    async fn load(
        &mut self,
        document: &TableDocument,
        tables: TableSet,
        built: Vec<BuiltTable>,
        running: Option<&ActiveGeneration>,
        timer: &mut StepTimer,
    ) -> Result<ActiveGeneration, Error> {
        let tables = Arc::new(tables);
        self.assign_counters(&tables)?;
        let snapshot = self.resolve(&tables, running).await;
        timer.step("next hops");
        let options = &self.config.options;
        let old = running.map(|running| &running.generation.image);
        let slots = &self.counter_slots;
        let mut compiled =
            CompiledTables::compile(&built, &tables, old, slots, &snapshot, options)?;
        if let Some(old) = old {
            compiled.inherit_next_hops(old);
        }
        timer.step("image");
        let program = match self.preloader.take(&compiled) {
            Some(program) => program,
            None => LoadedProgram::load(ProgramSpec::of(&compiled), Some(&self.pins))?,
        };
        timer.step("load");
        failpoints::point("loaded").map_err(Error::Failpoint)?;
        let number = self.next_number;
        let mut generation = program.fill(compiled, number)?;
        timer.step("fill");
        let packets = self_test::run(&mut generation)?;
        debug!(generation = number, packets, "self-test passed");
        timer.step("self-test");
        generation.pin_below(&self.pins)?;
        self.next_number += 1;
        timer.step("pin");
        let (digest, release) = (document.digest, self.release.clone());
        Ok(ActiveGeneration { generation, tables, built, digest, release })
    }

    /// Assigns counter slots to everything in `tables`, and warns if there are too few.
    fn assign_counters(&mut self, tables: &TableSet) -> Result<(), Error> {
        let Overflow { tables, backends } = self.counter_slots.assign(tables)?;
        if tables + backends > 0 {
            warn!(
                tables,
                backends,
                "all counter slots are in use: these share one slot until an old generation is removed"
            );
        }
        Ok(())
    }

    /// The next hops of the backends. Waits a short time for backends that are new.
    async fn resolve(
        &self,
        tables: &TableSet,
        running: Option<&ActiveGeneration>,
    ) -> Arc<Snapshot> {
        let all = backend_addresses(tables);
        let followed = running.map(ActiveGeneration::addresses).unwrap_or_default();
        // The running generation needs its own next hops until the swap.
        self.next_hops.set_targets(all.union(&followed).copied());
        // Only new, healthy backends are worth waiting for: a dead backend must not delay the table
        // that removes it.
        let mut new = tables
            .tables
            .iter()
            .flat_map(|table| &table.backends)
            .filter(|backend| backend.healthy && backend.is_usable())
            .map(|backend| backend.address)
            .filter(|address| !followed.contains(address));
        let patience = if new.next().is_some() { NEXT_HOP_PATIENCE } else { Duration::ZERO };
        let snapshot = self.next_hops.wait_resolved(patience).await;
        for address in all {
            if let Some(Err(reason)) = snapshot.get(&address) {
                warn!(backend = %address, %reason, "no next hop to this backend yet");
            }
        }
        snapshot
    }

    /// Follows only the next hops of the running generation, after a change failed.
    fn follow_only(&self, running: Option<&ActiveGeneration>) {
        if let Some(running) = running {
            self.next_hops.set_targets(running.addresses());
        }
    }

    /// Records a generation and swaps it in on all interfaces. `document` is that of a new generation.
    fn swap(
        &mut self,
        generation: &mut ActiveGeneration,
        document: Option<&TableDocument>,
        running: Option<&ActiveGeneration>,
        held_back: Option<DocumentDigest>,
        timer: &mut StepTimer,
    ) -> Result<(), Error> {
        match document {
            Some(document) => {
                failpoints::point("pinned").map_err(Error::Failpoint)?;
                // Recorded before the swap, so that a successor finds the record of what is attached.
                let record = GenerationRecord::new(generation.number(), document, &self.release)
                    .map_err(Error::Table)?;
                self.state_dir.keep(&record);
                timer.step("record");
                failpoints::point("recorded").map_err(Error::Failpoint)?;
            }
            None => self.refresh_next_hops(generation, running)?,
        }
        // Marked before the swap: a successor that finds the former generation attached must not load
        // the table that was rolled back.
        let before = self.state_dir.rolled_back();
        if before != held_back {
            self.state_dir.keep_rolled_back(held_back);
        }
        self.attach(&mut generation.generation).inspect_err(|_| {
            if before != held_back {
                self.state_dir.keep_rolled_back(before);
            }
        })?;
        timer.step("swap");
        Ok(())
    }

    /// Enters the present next hops into a former generation, whose own ones were not followed.
    fn refresh_next_hops(
        &self,
        former: &mut ActiveGeneration,
        running: Option<&ActiveGeneration>,
    ) -> Result<(), Error> {
        let followed = running.map(ActiveGeneration::addresses).unwrap_or_default();
        self.next_hops.set_targets(former.addresses().union(&followed).copied());
        let generation = &mut former.generation;
        if let Some(running) = running {
            generation.image.inherit_next_hops(&running.generation.image);
        }
        drop(generation.image.resolve(&self.next_hops.snapshot(), &self.config.options));
        let written = generation.write_tables(&generation.image);
        Ok(written.map_err(|error| LoadError::map("fill", "BACKENDS", error))?)
    }

    /// Attaches a generation's program to all interfaces.
    pub(super) fn attach(&self, generation: &mut Generation) -> Result<(), Error> {
        let Config { interfaces, mode, .. } = &self.config;
        Ok(generations::swap(generation.program()?, interfaces, &self.pins, *mode)?)
    }

    /// Completes an activation: removes every generation but the active and the previous one. The
    /// generation is active whether or not this succeeds.
    pub(super) fn settle(&mut self, active: &ActiveGeneration, previous: Option<u64>) {
        let number = active.number();
        failpoints::point("in force").unwrap_or_else(|error| warn!(%error, "failpoint"));
        self.next_hops.set_targets(active.addresses());
        self.flow_safety.activated(&active.built, &mut self.state_dir);
        self.state_dir.keep_pair(number, previous);
        failpoints::point("settled").unwrap_or_else(|error| warn!(%error, "failpoint"));
        let keep: Vec<u64> = previous.into_iter().chain([number]).collect();
        if let Err(error) = generations::remove_stale(&self.pins, &keep) {
            warn!(%error, "cannot remove an old generation");
        }
        self.state_dir.forget_all_but(&keep);
        self.counter_slots.retain_only(&keep);
        self.preloader.prepare(&active.generation.image, &self.pins);
        failpoints::point("cleaned").unwrap_or_else(|error| warn!(%error, "failpoint"));
    }

    /// Adopts a generation that a former process pinned, with the tables of its record.
    pub(super) fn adopt(&mut self, record: &GenerationRecord) -> Result<ActiveGeneration, Error> {
        let document = record.document();
        let tables = document.parse_and_warn().map_err(Error::Table)?;
        let built = self.row_cache.build(&tables);
        self.assign_counters(&tables)?;
        let snapshot = self.next_hops.snapshot();
        let (slots, options) = (&self.counter_slots, &self.config.options);
        let compiled = CompiledTables::compile(&built, &tables, None, slots, &snapshot, options)?;
        if record.release != self.release {
            return Err(Error::OtherRelease { number: record.number });
        }
        let generation = Generation::adopt(compiled, record.number, &self.pins)?;
        let (digest, release) = (document.digest, self.release.clone());
        Ok(ActiveGeneration { generation, tables: Arc::new(tables), built, digest, release })
    }
}

/// Logs which generation is active now.
pub(super) fn log_active(active: &ActiveGeneration, milliseconds: f64) {
    info!(
        generation = active.number(),
        tables = active.generation.image.tables.len(),
        backends = active.generation.image.backends.len(),
        elapsed_ms = (milliseconds * 10.0).round() / 10.0,
        "generation in force"
    );
}
