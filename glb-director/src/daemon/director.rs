//! What the daemon does: builds generations and keeps next hops fresh.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{Arc, Once},
    time::Duration,
};

use glb_host::{
    bpffs::{PinFolder, PinLock},
    generations,
    next_hop::{NextHops, Snapshot},
    permission, xdp_link,
};
use glb_table::TableSet;
use tracing::{error, info, warn};

use super::Error;
use crate::{
    config::Config,
    control,
    counters::{self, Identities},
    generation::{self, Generation},
    image::Image,
    state::State,
};

/// How long a new generation waits for the answers of backends that were never asked for before.
const NEXT_HOP_PATIENCE: Duration = Duration::from_secs(2);

/// What the daemon holds while it runs.
pub(super) struct Director<'c> {
    pub(super) config: &'c Config,
    pub(super) pins: PinFolder,
    #[expect(dead_code, reason = "held for its effect")]
    lock: PinLock,
    identities: Identities,
    pub(super) next_hops: NextHops,
    pub(super) generation: Generation,
    pub(super) tables: Arc<TableSet>,
}

impl<'c> Director<'c> {
    /// The first generation of this process, in force.
    pub(super) async fn start(
        config: &'c Config,
        state: &Arc<State>,
    ) -> Result<(Self, control::Channel), Error> {
        let tables = load_tables(config)?;
        for interface in &config.interfaces {
            xdp_link::interface_index(interface)?;
        }
        let pins = PinFolder::create(&config.pin, crate::OWNER)?;
        let lock = pins.lock()?;
        let channel = match control::open(config, state, &pins) {
            Ok(channel) => channel,
            Err(error) => {
                remove_if_unused(&pins);
                return Err(error.into());
            }
        };
        match Self::bring_up(config, &tables, &pins, state).await {
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
        state: &State,
    ) -> Result<(Identities, NextHops, Generation), Error> {
        pins.make(&pins.join(counters::pins::FOLDER))?;
        let mut identities = Identities::open_or_create(pins)?;
        let next_hops = NextHops::start(targets(tables)).await?;
        state.follow(next_hops.subscribe());
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
    pub(super) async fn reload(&mut self) -> Result<(), Error> {
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
    pub(super) fn follow(&mut self, snapshot: &Arc<Snapshot>) {
        let changed = self.generation.image.resolve(snapshot, &self.config.options);
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
    // Said once: it is the same at every reload.
    static SAID: Once = Once::new();
    if let Some(mode) = permission::readable_by_everybody(&config.table) {
        let path = config.table.display();
        SAID.call_once(|| {
            warn!(
                "{path} holds hash keys and can be read by everybody on this machine (mode \
                 {mode:o}); `chmod o-r {path}` ends that, the daemon's user or group must keep it"
            );
        });
    }
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
