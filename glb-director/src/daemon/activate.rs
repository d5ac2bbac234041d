//! From a table to a generation in force.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use glb_host::{
    bpffs::PinFolder,
    failpoints, generations,
    next_hop::{NextHops, Snapshot},
};
use glb_table::{BuiltTable, RowCache, TableSet};
use sha2::{Digest as _, Sha256};
use tracing::{debug, info, warn};

use super::{
    Error,
    flow_safety::Safety,
    preload::Spare,
    state_dir::{Record, Store, Sum},
    table_file::Source,
    timing::Steps,
};
use crate::{
    announce::WithdrawGate,
    compiled_tables::Image,
    config::Config,
    counters::{Identities, Uncounted},
    generation::{Generation, Shape, Shell, self_test},
};

/// How long a new generation waits for the answers of backends that were never asked for before.
const NEXT_HOP_PATIENCE: Duration = Duration::from_secs(2);

/// A generation with what it was made from.
pub(super) struct Made {
    pub(super) generation: Generation,
    pub(super) tables: Arc<TableSet>,
    pub(super) built: Vec<BuiltTable>,
    /// Of the table file.
    pub(super) sum: Sum,
}

impl Made {
    pub(super) fn addresses(&self) -> BTreeSet<IpAddr> {
        targets(&self.tables)
    }
}

/// All that making a generation takes.
pub(super) struct Making<'c> {
    pub(super) config: &'c Config,
    pub(super) pins: PinFolder,
    pub(super) identities: Identities,
    pub(super) next_hops: NextHops,
    pub(super) builder: RowCache,
    pub(super) safety: Safety,
    pub(super) store: Store,
    pub(super) spare: Spare,
    /// Withdraws what a new generation will not serve.
    pub(super) withdraw_gate: WithdrawGate,
    pub(super) next_number: u64,
    /// Which program this is, and under which configuration.
    pub(super) release: String,
}

/// Backends of all tables.
pub(super) fn targets(tables: &TableSet) -> BTreeSet<IpAddr> {
    tables.tables.iter().flat_map(|table| &table.backends).map(|backend| backend.address).collect()
}

/// What two generations must have in common if the tables alone tell them apart.
pub(super) fn release(config: &Config) -> String {
    let mut hasher = Sha256::new();
    hasher.update(glb_host::DIRECTOR_OBJECT);
    hasher.update(format!("{:?}", config.options));
    let sum: [u8; 32] = hasher.finalize().into();
    format!("{} {}", failpoints::release(env!("CARGO_PKG_VERSION")), glb_table::hex(&sum))
}

impl Making<'_> {
    /// Builds, loads, tests and swaps in a generation. `running` is what it takes the place of. On an
    /// error, all is as it was. With `force` the swap is made also if what it ends to serve cannot be
    /// withdrawn first.
    pub(super) async fn bring(
        &mut self,
        source: &Source,
        tables: TableSet,
        built: Vec<BuiltTable>,
        running: Option<&Made>,
        force: bool,
        steps: &mut Steps,
    ) -> Result<Made, Error> {
        let tables = Arc::new(tables);
        self.assign_counters(&tables)?;
        let snapshot = self.ways(&tables, running).await;
        steps.done("next hops");
        let options = &self.config.options;
        let old = running.map(|running| &running.generation.image);
        let mut image = Image::of(&built, &tables, old, &self.identities, &snapshot, options)?;
        if let Some(old) = old {
            image.inherit_ways(old);
        }
        steps.done("image");
        let shell = match self.spare.take(&image) {
            Some(shell) => shell,
            None => Shell::load(Shape::of(&image), Some(&self.pins))?,
        };
        steps.done("load");
        failpoints::point("loaded").map_err(Error::Fault)?;
        let number = self.next_number;
        let mut generation = shell.fill(image, number)?;
        steps.done("fill");
        let packets = self_test::run(&mut generation)?;
        debug!(generation = number, packets, "self-test passed");
        steps.done("self-test");
        generation.pin_below(&self.pins)?;
        self.next_number += 1;
        steps.done("pin");
        let swapped = match self.make_way(&tables, force, steps).await {
            Ok(()) => self.swap(&mut generation, source, steps),
            Err(error) => Err(error),
        };
        if let Err(error) = swapped {
            generation.discard(&self.pins);
            return Err(error);
        }
        self.identities.hold(number, Some(Arc::clone(&tables)));
        Ok(Made { generation, tables, built, sum: source.sum })
    }

    /// Before the swap: nothing is announced that it ends to serve.
    pub(super) async fn make_way(
        &mut self,
        tables: &Arc<TableSet>,
        force: bool,
        steps: &mut Steps,
    ) -> Result<(), Error> {
        self.withdraw_gate.withdraw_before_swap(tables, force).await?;
        steps.done("withdraw");
        Ok(())
    }

    /// Gives everybody in the tables a counter, and says who gets none.
    fn assign_counters(&mut self, tables: &TableSet) -> Result<(), Error> {
        let Uncounted { tables, backends } = self.identities.assign(tables)?;
        if tables + backends > 0 {
            warn!(
                tables,
                backends,
                "no counters of their own are left for these until a generation goes that has them: \
                 their packets are counted with those of no table"
            );
        }
        Ok(())
    }

    fn swap(
        &mut self,
        generation: &mut Generation,
        source: &Source,
        steps: &mut Steps,
    ) -> Result<(), Error> {
        failpoints::point("pinned").map_err(Error::Fault)?;
        // Before the swap: whoever finds the generation in force finds its table too.
        self.store.keep(&source.record(generation.number, &self.release)?);
        steps.done("record");
        failpoints::point("recorded").map_err(Error::Fault)?;
        self.attach(generation)?;
        steps.done("swap");
        Ok(())
    }

    /// Puts a generation behind all interfaces.
    pub(super) fn attach(&self, generation: &mut Generation) -> Result<(), Error> {
        let Config { interfaces, mode, .. } = self.config;
        Ok(generations::swap(generation.program()?, interfaces, &self.pins, *mode)?)
    }

    /// The ways to the backends; those that are new are waited for a little.
    async fn ways(&self, tables: &TableSet, running: Option<&Made>) -> Arc<Snapshot> {
        let wanted = targets(tables);
        let known = running.map(Made::addresses).unwrap_or_default();
        // What runs goes on running until the swap.
        self.next_hops.set_targets(wanted.union(&known).copied());
        // A backend that has been followed already will not answer sooner for being waited for: a
        // dead one must not hold up the table that takes it out. Nor must one that is ill.
        let mut new = tables
            .tables
            .iter()
            .flat_map(|table| &table.backends)
            .filter(|backend| backend.healthy && backend.is_usable())
            .map(|backend| backend.address)
            .filter(|address| !known.contains(address));
        let patience = if new.next().is_some() { NEXT_HOP_PATIENCE } else { Duration::ZERO };
        let snapshot = self.next_hops.wait_resolved(patience).await;
        for address in wanted {
            if let Some(Err(reason)) = snapshot.get(&address) {
                warn!(backend = %address, "no way to this backend yet: {reason}");
            }
        }
        snapshot
    }

    /// After a swap: what is neither in force nor the way back goes. The new one is in force whether
    /// or not that can be done.
    pub(super) fn settle(&mut self, made: &Made, previous: Option<u64>) {
        let number = made.generation.number;
        if let Err(error) = failpoints::point("in force") {
            warn!(%error, "a test");
        }
        self.next_hops.set_targets(made.addresses());
        self.safety.adopt(&made.built, &mut self.store);
        self.store.keep_pair(number, previous);
        if let Err(error) = failpoints::point("settled") {
            warn!(%error, "a test");
        }
        let keep: Vec<u64> = previous.into_iter().chain([number]).collect();
        if let Err(error) = generations::remove_stale(&self.pins, &keep) {
            warn!(%error, "an old generation is left behind");
        }
        self.store.forget_all_but(&keep);
        self.identities.let_go_all_but(&keep);
        self.spare.prepare(&made.generation.image, &self.pins);
        if let Err(error) = failpoints::point("cleaned") {
            warn!(%error, "a test");
        }
    }

    /// A generation that a predecessor pinned, as it is, with its record's tables.
    pub(super) fn adopt(&mut self, record: &Record) -> Result<Made, Error> {
        let source = Source::of(record);
        let tables = source.parse()?;
        let built = self.builder.build(&tables);
        self.assign_counters(&tables)?;
        let snapshot = self.next_hops.snapshot();
        let options = &self.config.options;
        let image = Image::of(&built, &tables, None, &self.identities, &snapshot, options)?;
        if record.release != self.release {
            return Err(Error::OtherRelease { number: record.number });
        }
        let generation = Generation::adopt(image, record.number, &self.pins)?;
        Ok(Made { generation, tables: Arc::new(tables), built, sum: source.sum })
    }
}

/// Says what is in force.
pub(super) fn say(made: &Made, milliseconds: f64) {
    info!(
        generation = made.generation.number,
        tables = made.generation.image.tables.len(),
        backends = made.generation.image.backends.len(),
        milliseconds = (milliseconds * 10.0).round() / 10.0,
        "in force"
    );
}
