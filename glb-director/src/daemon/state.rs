//! What the daemon does when something has happened.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use glb_host::{bpffs::PinLock, next_hop::Snapshot, pin_guard::PinGuard};
use glb_table::TableSet;
use tracing::{error, info, warn};

use super::{
    Error,
    activate::{Made, Making, say},
    flow_safety,
    state_dir::Sum,
    table_file::Source,
    timing::{Done, Steps},
    trace_session::Watcher,
    triggers::Trigger,
};
use crate::config::{Config, OnUnsafe};

/// What the daemon holds while it runs.
pub(super) struct Director<'c> {
    pub(super) making: Making<'c>,
    pub(super) lock: PinLock,
    /// What is pinned, for when it is not any more.
    pub(super) kept: PinGuard,
    /// Why what is pinned no more cannot be pinned again, so that it is said once.
    pub(super) pins_problem: Option<String>,
    pub(super) current: Made,
    pub(super) previous: Previous,
    /// The table file that was looked at last, loaded or not: it is not looked at twice by itself.
    pub(super) seen: Option<Sum>,
    /// It could not be read when it was looked at last.
    pub(super) is_unread: bool,
    /// Interfaces that could not be attached to, so that it is said once.
    pub(super) away: BTreeSet<String>,
    pub(super) watcher: Option<Watcher>,
}

/// The way back.
pub(super) enum Previous {
    /// There is none.
    None,
    /// A predecessor pinned it.
    Pinned(u64),
    /// This process made it, or has taken it over.
    Here(Box<Made>),
}

impl Previous {
    pub(super) fn number(&self) -> Option<u64> {
        match self {
            Self::None => None,
            Self::Pinned(number) => Some(*number),
            Self::Here(made) => Some(made.generation.number),
        }
    }
}

impl Director<'_> {
    pub(super) fn config(&self) -> &Config {
        self.making.config
    }

    pub(super) fn number(&self) -> u64 {
        self.current.generation.number
    }

    pub(super) fn tables(&self) -> Arc<TableSet> {
        Arc::clone(&self.current.tables)
    }

    /// Looks at the table file and brings it into force; nothing if it is the one that was looked at
    /// last and nobody asked.
    pub(super) async fn reload(
        &mut self,
        trigger: Trigger,
        force: bool,
    ) -> Result<Option<Done>, Error> {
        let mut steps = Steps::begin();
        let source = Source::read(&self.config().table).inspect_err(|_| self.is_unread = true)?;
        steps.done("read");
        let is_back = std::mem::take(&mut self.is_unread);
        if trigger == Trigger::Changed && self.seen == Some(source.sum) {
            if !is_back {
                return Ok(None);
            }
            // What was wrong with it is over, unless it had been refused before: it is tried again.
            let rolled_back = self.making.store.rolled_back();
            if source.sum == self.current.sum || rolled_back == Some(source.sum) {
                let generation = self.number();
                info!(generation, "the table file can be read again, and nothing has changed");
                return Ok(Some(Done { generation, ..Done::default() }));
            }
        }
        self.seen = Some(source.sum);
        if source.sum == self.current.sum && !force {
            self.keep_attached();
            self.making.store.keep_rolled_back(None);
            let generation = self.number();
            info!(generation, "this table is in force already");
            return Ok(Some(Done { generation, ..Done::default() }));
        }
        let tables = source.parse()?;
        steps.done("parse");
        let built = self.making.builder.build(&tables);
        steps.done("rows");
        let judgement = self.making.safety.judge(&self.current.built, &built);
        steps.done("plan");
        let warning = flow_safety::in_words(&judgement);
        if !judgement.safe {
            if self.config().on_unsafe == OnUnsafe::Refuse && !force {
                return Err(Error::Unsafe { risk: warning });
            }
            warn!(
                at_risk = flow_safety::worst(&judgement),
                "this change can break flows:\n{warning}"
            );
        }
        let made =
            self.making.bring(&source, tables, built, Some(&self.current), force, &mut steps).await;
        let made = match made {
            Ok(made) => made,
            Err(error) => {
                self.making.next_hops.set_targets(self.current.addresses());
                return Err(error);
            }
        };
        let done = Done {
            at_risk: flow_safety::worst(&judgement),
            warning,
            ..steps.end(made.generation.number)
        };
        say(&made, done.milliseconds);
        let previous = std::mem::replace(&mut self.current, made);
        self.previous = Previous::Here(Box::new(previous));
        self.making.store.keep_rolled_back(None);
        self.making.settle(&self.current, self.previous.number());
        self.hold();
        Ok(Some(done))
    }

    /// Puts the previous generation back into force, program and maps as they were.
    pub(super) async fn rollback(&mut self, force: bool) -> Result<Done, Error> {
        let mut steps = Steps::begin();
        let mut previous = match std::mem::replace(&mut self.previous, Previous::None) {
            Previous::Here(made) => made,
            Previous::None => return Err(Error::NoPrevious),
            Previous::Pinned(number) => match self.find(number) {
                Ok(made) => Box::new(made),
                Err(Error::OtherRelease { .. } | Error::NotAdopted(_)) => {
                    let done = self.build_again(number, force, steps).await;
                    if done.is_err() {
                        self.previous = Previous::Pinned(number);
                    }
                    return done;
                }
                Err(error) => {
                    self.previous = Previous::Pinned(number);
                    return Err(error);
                }
            },
        };
        steps.done("find");
        let judgement = self.making.safety.judge(&self.current.built, &previous.built);
        let warning = flow_safety::in_words(&judgement);
        steps.done("plan");
        if let Err(error) = self.making.make_way(&previous.tables, force, &mut steps).await {
            self.previous = Previous::Here(previous);
            return Err(error);
        }
        // Nobody has followed its next hops while it was not in force.
        let all =
            previous.addresses().union(&self.current.addresses()).copied().collect::<Vec<_>>();
        self.making.next_hops.set_targets(all);
        previous.generation.image.inherit_ways(&self.current.generation.image);
        let snapshot = self.making.next_hops.snapshot();
        drop(previous.generation.image.resolve(&snapshot, &self.making.config.options));
        let entered = previous.generation.enter(&previous.generation.image);
        // Before the swap: a successor that finds the old one in force must not load the file.
        let before = self.making.store.rolled_back();
        let file = self.file();
        self.making.store.keep_rolled_back(file);
        let swapped = entered
            .map_err(|error| glb_host::bpf_loader::LoadError::map("fill", "BACKENDS", error).into())
            .and_then(|()| self.making.attach(&mut previous.generation));
        if let Err(error) = swapped {
            self.previous = Previous::Here(previous);
            self.making.store.keep_rolled_back(before);
            return Err(error);
        }
        steps.done("swap");
        let undone = std::mem::replace(&mut self.current, *previous);
        self.previous = Previous::Here(Box::new(undone));
        let done = Done {
            at_risk: flow_safety::worst(&judgement),
            warning,
            ..steps.end(self.current.generation.number)
        };
        self.rolled_back(&done);
        Ok(done)
    }

    /// Says so, and remembers what the table file now says: it is not to be loaded by itself.
    fn rolled_back(&mut self, done: &Done) {
        if !done.warning.is_empty() {
            warn!(at_risk = done.at_risk, "going back can break flows:\n{}", done.warning);
        }
        say(&self.current, done.milliseconds);
        self.seen = self.file();
        self.making.store.keep_rolled_back(self.seen);
        self.making.settle(&self.current, self.previous.number());
        self.hold();
        warn!(
            generation = self.number(),
            "rolled back; the table file as it is now is loaded only by `reload` or SIGHUP, and by \
             itself once it is changed"
        );
    }

    /// What the table file says now, or said when it was looked at last.
    fn file(&self) -> Option<Sum> {
        let file = Source::read(&self.config().table).ok().map(|source| source.sum);
        file.or(self.seen)
    }

    fn find(&mut self, number: u64) -> Result<Made, Error> {
        let record = self.making.store.record(number).ok_or(Error::NoPrevious)?;
        self.making.adopt(&record)
    }

    /// The previous generation's table, with this release's program: that of another release cannot
    /// be kept fresh.
    async fn build_again(
        &mut self,
        number: u64,
        force: bool,
        mut steps: Steps,
    ) -> Result<Done, Error> {
        let record = self.making.store.record(number).ok_or(Error::NoPrevious)?;
        warn!(
            generation = number,
            "was made by another release or configuration; its table is loaded with this one's program"
        );
        let source = Source::of(&record);
        let tables = source.parse()?;
        let built = self.making.builder.build(&tables);
        let judgement = self.making.safety.judge(&self.current.built, &built);
        let made = self
            .making
            .bring(&source, tables, built, Some(&self.current), force, &mut steps)
            .await?;
        let done = Done {
            at_risk: flow_safety::worst(&judgement),
            warning: flow_safety::in_words(&judgement),
            ..steps.end(made.generation.number)
        };
        let undone = std::mem::replace(&mut self.current, made);
        self.previous = Previous::Here(Box::new(undone));
        self.rolled_back(&done);
        Ok(done)
    }

    /// Backends are known to hold no flows.
    pub(super) fn drained(&mut self, backends: &[IpAddr]) -> Result<String, Error> {
        let known = self.current.addresses();
        for backend in backends {
            let is_known = known.contains(backend) || self.making.safety.rows_held(*backend) > 0;
            if !is_known {
                return Err(Error::NoBackend {
                    backend: *backend,
                    known: known.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", "),
                });
            }
        }
        let mut lines = Vec::new();
        for backend in backends {
            let forgotten = self.making.safety.drained(*backend, &mut self.making.store);
            let first = self.making.safety.rows_held(*backend);
            info!(%backend, forgotten, first, "declared drained");
            let still = if first == 0 {
                String::new()
            } else {
                format!("; it is the first hop of {first} rows, whose flows come to it now")
            };
            lines.push(format!(
                "{backend}: {forgotten} rows are no longer remembered for its flows{still}"
            ));
        }
        Ok(lines.join("\n"))
    }

    /// Enters changed next hops into the running generation.
    pub(super) fn follow(&mut self, snapshot: &Arc<Snapshot>) {
        let generation = &mut self.current.generation;
        let changed = generation.image.resolve(snapshot, &self.making.config.options);
        let entered = generation.change_ways(&changed);
        for index in changed {
            let owner = &generation.image.owners[index];
            match &entered {
                Ok(()) => info!(backend = %owner.address, "next hop entered"),
                Err(error) => error!(backend = %owner.address, %error, "next hop not entered"),
            }
        }
    }
}
