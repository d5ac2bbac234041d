//! Start and change of the generation in force. Every way to a new generation (start, reload, changed
//! table, changed host) activates it here, whole or not at all.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use glb_host::{
    bpffs::PinFolder,
    generations,
    next_hop::{NextHops, Transmit},
    pin_guard::PinGuard,
    xdp_link,
};
use tracing::{info, warn};

use super::{
    Backend, Error,
    build::{add_vips, build, program_data},
};
use crate::{
    config::Config,
    connections::{self, ConnectionMonitor},
    daemon_state::DaemonState,
    generation::Generation,
    host_state::HostState,
    program_data::ProgramData,
    vip,
};

/// The first generation of a process, and what it was built from.
struct FirstGeneration {
    host: HostState,
    data: ProgramData,
    next_hops: NextHops,
    generation: Generation,
    number: u64,
}

impl Backend {
    /// Attaches the first generation of this process; takes over from a former daemon without a gap.
    pub(super) async fn start(config: Config, state: Arc<DaemonState>) -> Result<Self, Error> {
        // Cheap checks come first.
        for interface in &config.interfaces {
            xdp_link::interface_index(interface)?;
        }
        let pins = PinFolder::create(&config.bpffs_dir, crate::PIN_OWNER)?;
        let lock = pins.lock()?;
        let first = match FirstGeneration::activate(&config, &pins).await {
            Ok(first) => first,
            Err(error) => {
                // A backend that never worked leaves nothing behind.
                if let Err(error) = generations::remove_if_detached(&pins) {
                    warn!(%error, "cannot remove the pins of a start that failed");
                }
                return Err(error);
            }
        };
        let FirstGeneration { host, data, next_hops, generation, number } = first;
        let pin = pins.join(connections::PIN);
        let connections =
            ConnectionMonitor::start(config.vips.clone(), pin).map_err(Error::Thread)?;
        state.set_connections(connections.clone());
        let mut backend = Self {
            config,
            state,
            pins,
            lock,
            kept: PinGuard::default(),
            next_hops,
            connections,
            host,
            failed_host: None,
            data,
            generation,
            number,
            trace: None,
        };
        backend.remove_unused()?;
        backend.publish();
        backend.hold_pins();
        Ok(backend)
    }

    /// Builds and activates a generation for `config` on this host as it is now. On an error, the
    /// running generation and the VIPs on lo stay as they were.
    pub(super) async fn activate(&mut self, config: Config) -> Result<(), Error> {
        let host = HostState::read(&config)?;
        let data = program_data(&config, &host)?;
        let added = add_vips(&config).await?;
        // The running generation's peers are followed too, until it is replaced.
        let both: BTreeSet<IpAddr> = self.data.peers.union(&data.peers).copied().collect();
        self.restore_pins();
        self.next_hops.set_targets(both);
        let number = self.number + 1;
        let settings = self.trace.as_ref().map(|(_, settings)| settings);
        let built =
            build(&config, &host, &data, &self.next_hops, number, &self.pins, settings).await;
        let generation = match built {
            Ok(generation) => generation,
            Err(error) => {
                self.next_hops.set_targets(self.data.peers.iter().copied());
                vip::roll_back(&added).await;
                return Err(error);
            }
        };
        let removed: BTreeSet<IpAddr> =
            self.config.vips.difference(&config.vips).copied().collect();
        let removes_vips = self.config.vips_on_lo;
        (self.config, self.host, self.data) = (config, host, data);
        (self.generation, self.number) = (generation, number);
        self.next_hops.set_targets(self.data.peers.iter().copied());
        self.connections.set_vips(self.config.vips.clone());
        let tidied = self.remove_unused();
        // Descriptors of the old generation would keep it alive, and its pins would be restored.
        self.kept = PinGuard::default();
        self.hold_pins();
        tidied?;
        self.publish();
        if removes_vips {
            vip::remove_owned(&removed).await?;
        }
        info!(generation = number, "generation in force");
        if let Some((session, _)) = &self.trace {
            session.show(&self.trace_source());
        }
        Ok(())
    }

    /// Publishes the generation in force for `status` and metrics, with the newest next hops.
    fn publish(&mut self) {
        self.state.generation_activated(self.number, &self.config);
        self.update_next_hops(&self.next_hops.snapshot());
    }

    /// Detaches interfaces that are not configured any more, and removes old generations. The previous
    /// generation stays until the next change.
    pub(super) fn remove_unused(&self) -> Result<(), Error> {
        for interface in generations::detach_all_but(&self.pins, &self.config.interfaces)? {
            info!(%interface, "detached from an interface that is not configured any more");
        }
        let keep = [self.number, self.number.wrapping_sub(1)];
        generations::remove_stale(&self.pins, &keep)?;
        Ok(())
    }
}

impl FirstGeneration {
    /// Builds and attaches it. On an error, VIPs that this call put on lo are removed again.
    async fn activate(config: &Config, pins: &PinFolder) -> Result<Self, Error> {
        let host = HostState::read(config)?;
        let data = program_data(config, &host)?;
        let added = add_vips(config).await?;
        let first = async {
            let next_hops =
                NextHops::start_with(None, Transmit::XdpTagged, data.peers.iter().copied()).await?;
            let running = generations::current_program(&config.interfaces, pins)?;
            let keep: Vec<u64> = running.iter().map(|(number, _)| *number).collect();
            if let Some(generation) = keep.first() {
                info!(generation, "adopting the generation that a former daemon left attached");
            }
            let number = generations::remove_stale(pins, &keep)?;
            let generation = build(config, &host, &data, &next_hops, number, pins, None).await?;
            Ok((next_hops, number, generation))
        };
        match first.await {
            Ok((next_hops, number, generation)) => {
                Ok(Self { host, data, next_hops, generation, number })
            }
            Err(error) => {
                vip::roll_back(&added).await;
                Err(error)
            }
        }
    }
}
