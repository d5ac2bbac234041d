//! The running director, and how it reacts to requests: reload, rollback, changed next hops.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use glb_host::{
    bpffs::PinLock,
    next_hop::Snapshot,
    pin_guard::PinGuard,
    table_source::{self, DocumentDigest, TableSource},
};
use glb_table::TableSet;
use tracing::{error, info, warn};

use super::{
    Error,
    activate::{Activator, ActiveGeneration, Change, Policy, Rejected, Target, release},
    active_trace::ActiveTrace,
    config_reload,
    step_timer::StepTimer,
    triggers::Trigger,
};
use crate::{
    config::{Config, OnUnsafe},
    model::ReloadOutcome,
};

/// Everything that the daemon holds while it runs.
pub(super) struct Director {
    pub(super) activator: Activator,
    pub(super) source: Arc<dyn TableSource>,
    pub(super) lock: PinLock,
    /// Open descriptors of everything pinned, to pin it again after a removal.
    pub(super) kept: PinGuard,
    /// The logged reason why removed pins cannot be pinned again.
    pub(super) pins_problem: Option<String>,
    pub(super) current: ActiveGeneration,
    pub(super) previous: RollbackTarget,
    /// The table document that was read last, loaded or not. A change trigger ignores it.
    pub(super) last_read: Option<DocumentDigest>,
    /// The table could not be read the last time.
    pub(super) is_unreadable: bool,
    /// Interfaces whose absence or failed attachment has been logged.
    pub(super) logged_interfaces: BTreeSet<String>,
    pub(super) trace: Option<ActiveTrace>,
}

/// The generation that a rollback returns to.
pub(super) enum RollbackTarget {
    /// There is none.
    None,
    /// A former process pinned it, and this one has not opened it yet.
    Pinned(u64),
    /// This process built or adopted it.
    InProcess(Box<ActiveGeneration>),
}

impl RollbackTarget {
    pub(super) fn number(&self) -> Option<u64> {
        match self {
            Self::None => None,
            Self::Pinned(number) => Some(*number),
            Self::InProcess(generation) => Some(generation.number()),
        }
    }
}

impl Director {
    pub(super) fn config(&self) -> &Config {
        &self.activator.config
    }

    /// The active generation's number.
    pub(super) fn number(&self) -> u64 {
        self.current.number()
    }

    /// The active tables.
    pub(super) fn tables(&self) -> Arc<TableSet> {
        Arc::clone(&self.current.tables)
    }

    /// Reads the table and activates it. On request it reads the configuration anew too. Returns `None`
    /// if only a change was reported, and the table is the one that was read last.
    pub(super) async fn reload(
        &mut self,
        trigger: Trigger,
        force: bool,
    ) -> Result<Option<ReloadOutcome>, Error> {
        let mut timer = StepTimer::start();
        if trigger == Trigger::Requested {
            self.reload_config()?;
        }
        let read = self.source.read().map_err(Error::Table);
        let document = read.inspect_err(|_| self.is_unreadable = true)?;
        timer.step("read");
        let was_unreadable = std::mem::take(&mut self.is_unreadable);
        let is_current = document.digest == self.current.digest;
        if trigger == Trigger::Changed && self.last_read == Some(document.digest) {
            if !was_unreadable {
                return Ok(None);
            }
            // The table is readable again. It is tried again if it was not refused before.
            let rolled_back = self.activator.state_dir.rolled_back();
            if is_current || rolled_back == Some(document.digest) {
                info!(generation = self.number(), "the table can be read again and is unchanged");
                return Ok(Some(self.unchanged()));
            }
        }
        self.last_read = Some(document.digest);
        if is_current && self.current.release == self.activator.release && !force {
            self.keep_attached();
            self.activator.state_dir.keep_rolled_back(None);
            info!(generation = self.number(), "this table is in force already");
            return Ok(Some(self.unchanged()));
        }
        let tables = document.parse_and_warn().map_err(Error::Table)?;
        timer.step("parse");
        let change = Change {
            target: Target::Build { document, tables },
            running: Some(&self.current),
            before: Some(&self.current.built),
            held_back: None,
        };
        let policy = Policy::configured(&self.activator.config, force);
        let activated = self.activator.activate(change, policy, timer).await;
        let (generation, outcome) = activated.map_err(|rejected| rejected.error)?;
        self.commit(*generation);
        Ok(Some(outcome))
    }

    /// The outcome of a reload that changed nothing.
    fn unchanged(&self) -> ReloadOutcome {
        ReloadOutcome { generation: self.number(), ..ReloadOutcome::default() }
    }

    /// Reads the configuration anew and takes over what can change while the daemon runs.
    fn reload_config(&mut self) -> Result<(), Error> {
        let config = config_reload::reload(&self.activator.config)?;
        if config.table != self.activator.config.table {
            info!(table = %config.table.display(), "the configuration names another table");
            self.source = table_source::open(&config.table);
        }
        self.activator.release = release(&config);
        self.activator.config = config;
        Ok(())
    }

    /// Activates the previous generation again, with its program and maps as they were.
    pub(super) async fn rollback(&mut self, force: bool) -> Result<ReloadOutcome, Error> {
        let timer = StepTimer::start();
        let previous = std::mem::replace(&mut self.previous, RollbackTarget::None);
        let (target, retry) = match previous {
            RollbackTarget::None => return Err(Error::NoPrevious),
            RollbackTarget::InProcess(former) => (Ok(Target::Restore(former)), None),
            RollbackTarget::Pinned(number) => (self.rollback_target(number), Some(number)),
        };
        let pinned = || retry.map_or(RollbackTarget::None, RollbackTarget::Pinned);
        let target = match target {
            Ok(target) => target,
            Err(error) => {
                self.previous = pinned();
                return Err(error);
            }
        };
        // The present table document, or the last one that was read, is loaded on request only.
        let now = self.source.read().ok().map(|document| document.digest);
        let held_back = now.or(self.last_read);
        let change = Change {
            target,
            running: Some(&self.current),
            before: Some(&self.current.built),
            held_back,
        };
        // The operator has decided about the risk for flows by asking for a rollback.
        let policy = Policy { on_unsafe: OnUnsafe::Warn, skip_withdrawal: force };
        let (generation, outcome) = match self.activator.activate(change, policy, timer).await {
            Ok(activated) => activated,
            Err(Rejected { error, former }) => {
                self.previous = former.map_or_else(pinned, RollbackTarget::InProcess);
                return Err(error);
            }
        };
        self.last_read = held_back;
        self.commit(*generation);
        warn!(
            generation = self.number(),
            "the table was rolled back: the present table file is loaded again only by `reload`, by \
             SIGHUP, or after it has changed"
        );
        Ok(outcome)
    }

    /// The target of a rollback to a generation that a former process pinned. A generation of another
    /// release or configuration is built again, since this program cannot update its next hops.
    fn rollback_target(&mut self, number: u64) -> Result<Target, Error> {
        let record = self.activator.state_dir.record(number).ok_or(Error::NoPrevious)?;
        match self.activator.adopt(&record) {
            Ok(former) => Ok(Target::Restore(Box::new(former))),
            Err(Error::OtherRelease { .. } | Error::CannotAdopt(_)) => {
                warn!(
                    generation = number,
                    "this generation was made by another release or configuration: its table is loaded \
                     with the present program"
                );
                let document = record.document();
                let tables = document.parse_and_warn().map_err(Error::Table)?;
                Ok(Target::Build { document, tables })
            }
            Err(error) => Err(error),
        }
    }

    /// Makes an activated generation the current one, and the replaced one the rollback target.
    fn commit(&mut self, activated: ActiveGeneration) {
        let replaced = std::mem::replace(&mut self.current, activated);
        self.previous = RollbackTarget::InProcess(Box::new(replaced));
        self.activator.settle(&self.current, self.previous.number());
        self.hold_pins();
    }

    /// Records that backends hold no flows. Returns a line of text for each.
    pub(super) fn mark_drained(&mut self, backends: &[IpAddr]) -> Result<String, Error> {
        let Activator { flow_safety, state_dir, .. } = &mut self.activator;
        let known = self.current.addresses();
        for backend in backends {
            if !known.contains(backend) && flow_safety.rows_held(*backend) == 0 {
                return Err(Error::UnknownBackend {
                    backend: *backend,
                    known: known.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", "),
                });
            }
        }
        let mut lines = Vec::new();
        for backend in backends {
            let forgotten = flow_safety.mark_drained(*backend, state_dir);
            let first = flow_safety.rows_held(*backend);
            info!(%backend, forgotten, first, "backend marked drained");
            let remark = if first == 0 {
                String::new()
            } else {
                format!("; it is still the first hop of {first} rows and gets their new flows")
            };
            lines.push(format!("{backend}: no flows in {forgotten} rows any more{remark}"));
        }
        Ok(lines.join("\n"))
    }

    /// Enters changed next hops into the active generation.
    pub(super) fn update_next_hops(&mut self, snapshot: &Arc<Snapshot>) {
        let generation = &mut self.current.generation;
        let changed = generation.image.resolve(snapshot, &self.activator.config.options);
        let updated = generation.update_next_hops(&changed);
        for index in changed {
            let backend = generation.image.backend_ids[index].address;
            match &updated {
                Ok(()) => info!(%backend, "next hop entered"),
                Err(error) => error!(%backend, %error, "cannot enter a next hop"),
            }
        }
    }
}
