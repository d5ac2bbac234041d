//! The running backend: builds generations, keeps the ways to peers fresh, answers signals.

mod build;
mod pin_maintenance;
mod table_file;

use std::{collections::BTreeSet, io, net::IpAddr, sync::Arc};

use glb_common::trace::TraceSettings;
use glb_host::{
    bpf_loader::LoadError,
    bpffs::{PinFolder, PinFolderError, PinLock},
    control::{Call, Refusal},
    generations::{self, SwapError},
    metrics::{self, MetricsError},
    next_hop::{NetlinkError, NextHops, Snapshot},
    packet_trace::trace::{self, Session, TraceEnd, TraceSource},
    pin_guard::PinGuard,
    systemd::{self, Watchdog},
    xdp_link::{self, AttachError},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Duration, MissedTickBehavior, interval},
};
use tracing::{debug, error, info, warn};

use crate::{
    config::{Config, ConfigError},
    connections::{self, Watch},
    control::{self, ControlError},
    counters::CountersError,
    generation::Generation,
    host_state::{Changes, Machine, MachineError},
    image::Image,
    metrics::{Metered, Metrics},
    replay::REASONS,
    self_test::SelfTestError,
    vip::{self, VipError},
};
use build::{build, enter, image, put_vips};
use table_file::Table;

/// Folder in the pin folder with the tc program's link for each interface.
pub(crate) const CLAMPS: &str = "clamps";

/// How often the pins are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// Why the daemon does not start, or a configuration is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("`{key}` was changed from {from} to {to}: restart the daemon to have it so")]
    Moved { key: &'static str, from: String, to: String },
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Vips(#[from] VipError),
    #[error(transparent)]
    Counters(#[from] CountersError),
    #[error(transparent)]
    Pins(#[from] PinFolderError),
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Swap(#[from] SwapError),
    #[error(transparent)]
    SelfTest(#[from] SelfTestError),
    #[error(transparent)]
    NextHops(#[from] NetlinkError),
    #[error("cannot follow this machine's addresses by netlink: {0}")]
    Changes(io::Error),
    #[error("cannot listen for signals: {0}")]
    Signals(io::Error),
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// Runs until a signal ends it. The program stays attached and works.
pub(crate) async fn run(config: Config) -> Result<(), Error> {
    let signals = |kind| signal(kind).map_err(Error::Signals);
    let mut hangup = signals(SignalKind::hangup())?;
    let mut terminate = signals(SignalKind::terminate())?;
    let mut interrupt = signals(SignalKind::interrupt())?;

    // Before anything is attached: a port that is in use is found while nothing has changed.
    let listener = config.metrics.map(metrics::bind).transpose()?;
    // Before anything is looked at: no change is missed.
    let mut changes = Changes::follow().map_err(Error::Changes)?;
    let mut channel = control::open(&config.control)?;
    let mut table = Table::watch(&config);
    let mut backend = Backend::start(config).await?;
    if let Some(listener) = listener {
        metrics::serve(listener, backend.metered())?;
    }
    info!(generation = backend.number, interfaces = backend.config.interfaces.join(","), "ready");
    backend.say();
    let mut watchdog = Watchdog::from_environment();
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut next_hops = backend.next_hops.subscribe();
    loop {
        tokio::select! {
            changed = next_hops.changed() => {
                if changed.is_err() {
                    error!("netlink is gone; the ways to peers stay as they are until a restart");
                    std::future::pending::<()>().await;
                }
                let snapshot = next_hops.borrow_and_update().clone();
                backend.enter(&snapshot);
            }
            () = changes.next() => backend.follow().await,
            Some(call) = channel.calls.recv() => backend.begin_to_show(call).await,
            why = trace::session_end(backend.watcher.as_ref().map(|(session, _)| session)) => {
                backend.end_showing(why).await;
            }
            () = table.changed() => backend.table_changed().await,
            () = watchdog.turn() => {}
            _ = look.tick() => backend.keep_pinned(),
            _ = hangup.recv() => {
                systemd::reloading("the configuration is read anew");
                let result = backend.reload().await;
                backend.reloaded(result.is_ok());
                match result {
                    Ok(()) => table.follow(&backend.config),
                    Err(error) => error!(
                        running_generation = backend.number,
                        "the configuration was not loaded, the running one stays:\n{error}"
                    ),
                }
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    systemd::stopping();
    backend.end_showing(TraceEnd::Stopping).await;
    info!(
        "ended; the pinned program goes on working (`glb-redirect detach --config {}` ends that)",
        backend.config.path.display()
    );
    Ok(())
}

/// Refuses a change of what is settled when the daemon starts.
fn not_moved(running: &Config, wanted: &Config) -> Result<(), Error> {
    let settled = |config: &Config| {
        let place = &config.control.place;
        let group = |name: &Option<String>| name.clone().unwrap_or_else(|| "none".to_owned());
        let metrics = config.metrics.map_or_else(|| "nowhere".to_owned(), |at| at.to_string());
        [
            ("pin", config.pin.display().to_string()),
            ("metrics", metrics),
            ("control.socket", place.path.display().to_string()),
            ("control.mode", format!("{:04o}", place.mode)),
            ("control.group", group(&place.group)),
            ("control.operators", group(&config.control.operators)),
        ]
    };
    for ((key, from), (_, to)) in settled(running).into_iter().zip(settled(wanted)) {
        if from != to {
            return Err(Error::Moved { key, from, to });
        }
    }
    Ok(())
}

struct Backend {
    config: Config,
    metrics: Arc<Metrics>,
    pins: PinFolder,
    lock: PinLock,
    /// What is pinned, for when it is not any more.
    kept: PinGuard,
    /// Why what is pinned no more cannot be pinned again, so that it is said once.
    pins_problem: Option<String>,
    next_hops: NextHops,
    connections: Watch,
    machine: Machine,
    /// What the machine was when following it failed: said once.
    refused: Option<Machine>,
    image: Image,
    generation: Generation,
    number: u64,
    reload_failed: bool,
    /// Who watches, and what he wants to see.
    watcher: Option<(Session, TraceSettings)>,
}

/// A generation in force, and what it was made of.
struct Built {
    machine: Machine,
    image: Image,
    next_hops: NextHops,
    generation: Generation,
    number: u64,
}

impl Backend {
    async fn start(config: Config) -> Result<Self, Error> {
        // What costs nothing to find out comes first.
        for interface in &config.interfaces {
            xdp_link::interface_index(interface)?;
        }
        let pins = PinFolder::create(&config.pin, crate::OWNER)?;
        let lock = pins.lock()?;
        match Self::bring_up(&config, &pins).await {
            Ok(Built { machine, image, next_hops, generation, number }) => {
                let connections = Watch::start(config.vips.clone(), pins.join(connections::PIN))
                    .map_err(Error::Thread)?;
                let mut backend = Self {
                    config,
                    metrics: Arc::default(),
                    pins,
                    lock,
                    kept: PinGuard::default(),
                    pins_problem: None,
                    next_hops,
                    connections,
                    machine,
                    refused: None,
                    image,
                    generation,
                    number,
                    reload_failed: false,
                    watcher: None,
                };
                backend.tidy()?;
                backend.tell();
                backend.hold();
                Ok(backend)
            }
            Err(error) => {
                // Of a backend that never worked nothing stays.
                if let Err(error) = generations::remove_if_detached(&pins) {
                    warn!("{error}");
                }
                Err(error)
            }
        }
    }

    /// The first generation of this process, in force.
    async fn bring_up(config: &Config, pins: &PinFolder) -> Result<Built, Error> {
        let machine = Machine::look(config)?;
        let image = image(config, &machine)?;
        let put = put_vips(config).await?;
        let first = async {
            let next_hops = NextHops::start(image.peers.iter().copied()).await?;
            let running = generations::current_program(&config.interfaces, pins)?;
            let keep: Vec<u64> = running.iter().map(|(number, _)| *number).collect();
            if let Some(generation) = keep.first() {
                info!(generation, "adopting what a former daemon left running");
            }
            let number = generations::remove_stale(pins, &keep)?;
            let generation =
                build(config, &machine, &image, &next_hops, number, pins, None).await?;
            Ok((next_hops, number, generation))
        };
        match first.await {
            Ok((next_hops, number, generation)) => {
                Ok(Built { machine, image, next_hops, generation, number })
            }
            Err(error) => {
                vip::take_back(&put).await;
                Err(error)
            }
        }
    }

    /// Reads the configuration anew and puts it in force, whole or not at all.
    async fn reload(&mut self) -> Result<(), Error> {
        let config = Config::load(&self.config.path)?;
        not_moved(&self.config, &config)?;
        self.apply(config).await
    }

    /// Reads the table anew. Most of its changes are none to a backend: states, health, weights.
    async fn table_changed(&mut self) {
        let result = match self.config.with_table() {
            Ok(config) if config == self.config => {
                return debug!("the table has changed, its backends and hops have not");
            }
            Ok(config) => {
                info!("the table's backends or hops have changed");
                systemd::reloading("the table's backends are taken");
                self.apply(config).await
            }
            Err(error) => Err(error.into()),
        };
        self.reloaded(result.is_ok());
        if let Err(error) = result {
            error!(
                running_generation = self.number,
                "the table was not taken, the backends known so far stay:\n{error}"
            );
        }
    }

    /// Enters the ways to all peers into the running generation.
    fn enter(&mut self, snapshot: &Snapshot) {
        enter(&mut self.generation, &self.image, snapshot);
        self.tell();
    }

    /// Tells the metrics how things are.
    fn tell(&self) {
        self.metrics.in_force(self.number);
        self.metrics.peers(self.image.peers.len(), self.generation.unresolved_peers());
    }

    /// A reload has ended, well or not.
    fn reloaded(&mut self, well: bool) {
        self.metrics.reloaded(well);
        self.reload_failed = !well;
        self.say();
    }

    /// Tells the service manager that the daemon works, and with what.
    fn say(&self) {
        let after = if self.reload_failed { "; the last reload failed" } else { "" };
        systemd::ready(&format!("generation {} is in force{after}", self.number));
    }

    fn metered(&self) -> Metered {
        let (pins, connections) = (self.pins.clone(), self.connections.clone());
        Metered { pins, connections, metrics: Arc::clone(&self.metrics) }
    }

    /// Has the program know the machine as it is now, if that is another than it was.
    async fn follow(&mut self) {
        let machine = match Machine::look(&self.config) {
            Ok(machine) => machine,
            // It will be back, or somebody has more to mend than this.
            Err(error) => return warn!("the running generation stays as it is: {error}"),
        };
        if machine == self.machine || self.refused.as_ref() == Some(&machine) {
            return;
        }
        info!("this machine's addresses or interfaces have changed");
        self.refused = None;
        if let Err(error) = self.apply(self.config.clone()).await {
            error!(running_generation = self.number, "the change was not followed:\n{error}");
            self.refused = Some(machine);
        }
        self.say();
    }

    async fn apply(&mut self, config: Config) -> Result<(), Error> {
        let machine = Machine::look(&config)?;
        let image = image(&config, &machine)?;
        let put = put_vips(&config).await?;
        // Peers of both: those of the running generation are followed until it is replaced.
        let both: BTreeSet<IpAddr> = self.image.peers.union(&image.peers).copied().collect();
        self.keep_pinned();
        self.next_hops.set_targets(both);
        let number = self.number + 1;
        let settings = self.watcher.as_ref().map(|(_, settings)| settings);
        let built =
            build(&config, &machine, &image, &self.next_hops, number, &self.pins, settings).await;
        let generation = match built {
            Ok(generation) => generation,
            Err(error) => {
                self.next_hops.set_targets(self.image.peers.iter().copied());
                vip::take_back(&put).await;
                return Err(error);
            }
        };
        let gone: BTreeSet<IpAddr> = self.config.vips.difference(&config.vips).copied().collect();
        let removes_vips = self.config.vips_on_lo;
        (self.config, self.machine, self.image) = (config, machine, image);
        (self.generation, self.number) = (generation, number);
        self.next_hops.set_targets(self.image.peers.iter().copied());
        self.connections.set_vips(self.config.vips.clone());
        let tidied = self.tidy();
        // What is no longer wanted would go on as long as it is held, and be pinned again.
        self.kept = PinGuard::default();
        self.hold();
        tidied?;
        self.tell();
        if removes_vips {
            vip::remove_own(&gone).await?;
        }
        info!(generation = number, "in force");
        if let Some((session, _)) = &self.watcher {
            session.show(&self.showing());
        }
        Ok(())
    }

    /// Has the program show its decisions, or tells who asked why not.
    async fn begin_to_show(&mut self, call: Call<control::Command>) {
        let control::Command::Trace { options } = call.command.clone();
        if options.filter.table.is_some() {
            let text = "a backend has no tables: leave out `table NAME`";
            return call.answer.done(Err::<(), _>(Refusal::failed(text)));
        }
        if self.watcher.as_ref().is_some_and(|(session, _)| session.is_gone()) {
            self.end_showing(TraceEnd::Disconnected).await;
        }
        let running = self.watcher.as_ref().map(|(session, _)| session);
        let Some(session) = Session::open(call, options, running) else { return };
        let settings = match session.request.settings(&REASONS, None) {
            Ok(settings) => settings,
            Err(refusal) => return session.end(Err(refusal)),
        };
        match self.exchange(Some(&settings)).await {
            Ok(()) => {
                info!(pid = session.pid(), generation = self.number, "decisions are shown");
                session.show(&self.showing());
                self.watcher = Some((session, settings));
            }
            Err(error) => {
                error!("decisions cannot be shown, the plain program stays:\n{error}");
                session.end(Err(Refusal::failed(error)));
            }
        }
    }

    /// Brings the plain program back.
    async fn end_showing(&mut self, why: TraceEnd) {
        let Some((session, _)) = self.watcher.take() else { return };
        match self.exchange(None).await {
            Ok(()) => info!(generation = self.number, ?why, "decisions are no longer shown"),
            // It forwards as well as the plain one, and the next change replaces it.
            Err(error) => error!("the program that shows its decisions stays:\n{error}"),
        }
        session.end(Ok(why));
    }

    fn showing(&self) -> TraceSource {
        let folder = generations::folder(&self.pins, self.number);
        TraceSource { generation: self.number, folder }
    }

    /// Swaps in the other build of the program, for what is in force.
    async fn exchange(&mut self, settings: Option<&TraceSettings>) -> Result<(), Error> {
        self.keep_pinned();
        let number = self.number + 1;
        let (config, machine, image) = (&self.config, &self.machine, &self.image);
        let (next_hops, pins) = (&self.next_hops, &self.pins);
        self.generation = build(config, machine, image, next_hops, number, pins, settings).await?;
        self.number = number;
        self.say();
        if let Err(error) = self.tidy() {
            warn!("{error}");
        }
        self.hold();
        Ok(())
    }

    /// Takes away what the running generation does not need.
    fn tidy(&self) -> Result<(), Error> {
        for interface in generations::detach_all_but(&self.pins, &self.config.interfaces)? {
            info!(%interface, "detached: it is not configured any more");
        }
        // The one before is kept until the next change.
        let keep = [self.number, self.number.wrapping_sub(1)];
        generations::remove_stale(&self.pins, &keep)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn what_is_settled_at_the_start_is_not_moved() {
        let config = |more: &str| {
            let text = format!(
                "interfaces = [\"eth0\"]\nvips = [\"203.0.113.10\"]\n\
                 directors = [\"10.0.2.10\"]\n{more}\n"
            );
            Config::parse(&text, Path::new("/etc/glb/redirect.toml")).unwrap()
        };
        let running = config("");
        not_moved(&running, &config("strangers = \"pass\"")).unwrap();
        for (more, key, value) in [
            ("pin = \"/sys/fs/bpf/x\"", "`pin`", "to /sys/fs/bpf/x"),
            ("metrics = \"10.0.2.21:9101\"", "`metrics`", "from nowhere to 10.0.2.21:9101"),
            ("control.socket = \"/run/x.sock\"", "`control.socket`", "to /run/x.sock"),
            ("control.mode = \"0600\"", "`control.mode`", "from 0660 to 0600"),
            ("control.group = \"adm\"", "`control.group`", "from none to adm"),
            ("control.operators = \"adm\"", "`control.operators`", "from none to adm"),
        ] {
            let error = not_moved(&running, &config(more)).unwrap_err().to_string();
            for word in [key, value, "restart the daemon"] {
                assert!(error.contains(word), "{word:?} is missing in: {error}");
            }
        }
    }
}
