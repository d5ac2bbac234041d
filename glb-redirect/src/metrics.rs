//! What the backend tells Prometheus.

use std::{
    error::Error,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use glb_host::{
    bpffs::PinFolder,
    metrics::{MetricsSource, PacketsAndBytes, gauge},
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::{Registry, Unit},
};

use crate::{connections::Watch, counters};

/// What the daemon itself has to tell; packets are counted by the kernel.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    generation: AtomicU64,
    reloads: AtomicU64,
    failed_reloads: AtomicU64,
    last_swap: AtomicU64,
    peers: AtomicU64,
    unresolved_peers: AtomicU64,
}

impl Metrics {
    /// This generation is in force; if it is a new one, it has just been swapped in.
    pub(crate) fn in_force(&self, generation: u64) {
        if self.generation.swap(generation, Ordering::Relaxed) == generation {
            return;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_swap.store(now.as_secs(), Ordering::Relaxed);
    }

    /// The configuration or the table was read anew, and taken or not.
    pub(crate) fn reloaded(&self, well: bool) {
        let counter = if well { &self.reloads } else { &self.failed_reloads };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// So many fellow backends there are, and to so many no way is known.
    pub(crate) fn peers(&self, all: usize, unresolved: usize) {
        self.peers.store(all as u64, Ordering::Relaxed);
        self.unresolved_peers.store(unresolved as u64, Ordering::Relaxed);
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfReason {
    vip: String,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfVip {
    vip: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfState {
    vip: String,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
}

/// Where the metrics come from: the pinned counters, the watch over connections, and the daemon.
pub(crate) struct Metered {
    pub(crate) pins: PinFolder,
    pub(crate) connections: Watch,
    pub(crate) metrics: Arc<Metrics>,
}

impl MetricsSource for Metered {
    fn prefix(&self) -> &'static str {
        "glb_redirect"
    }

    fn register(&self, registry: &mut Registry) -> Result<(), Box<dyn Error>> {
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The running backend", build);
        self.daemon(registry);
        self.packets(registry)?;
        self.connections(registry);
        Ok(())
    }
}

impl Metered {
    fn daemon(&self, registry: &mut Registry) {
        let metrics = &self.metrics;
        let load = |value: &AtomicU64| value.load(Ordering::Relaxed);
        registry.register("generation", "Generation in force", gauge(load(&metrics.generation)));
        registry.register_with_unit(
            "last_swap_timestamp",
            "When the generation in force was swapped in, since the epoch",
            Unit::Seconds,
            gauge(load(&metrics.last_swap)),
        );
        let reloads = Family::<Outcome, Counter>::default();
        reloads.get_or_create(&Outcome { result: "ok" }).inc_by(load(&metrics.reloads));
        reloads.get_or_create(&Outcome { result: "failed" }).inc_by(load(&metrics.failed_reloads));
        registry.register("reloads", "Configurations and tables read anew, by result", reloads);
        registry.register("peers", "Fellow backends", gauge(load(&metrics.peers)));
        registry.register(
            "unresolved_peers",
            "Fellow backends to whom no way is known",
            gauge(load(&metrics.unresolved_peers)),
        );
    }

    fn packets(&self, registry: &mut Registry) -> Result<(), Box<dyn Error>> {
        let report = counters::read(&self.pins)?;
        let packets = PacketsAndBytes::<OfReason>::default();
        for (reason, count) in report.of_no_vip() {
            packets.add(&OfReason { vip: String::new(), reason }, count.packets, count.bytes);
        }
        for (vip, reasons) in report.vips {
            for (reason, count) in reasons {
                let labels = OfReason { vip: vip.to_string(), reason };
                packets.add(&labels, count.packets, count.bytes);
            }
        }
        let what = "by VIP (none where it was not found out) and reason";
        packets.register(registry, "packets", "received", what);
        let clamped = Counter::<u64>::default();
        clamped.inc_by(report.clamped_syn_acks);
        registry.register("clamped_syn_acks", "SYN-ACKs whose MSS was lowered", clamped);
        Ok(())
    }

    /// What was seen last; nothing if that could not be seen.
    fn connections(&self, registry: &mut Registry) {
        let Some(survey) = self.connections.newest() else { return };
        let label = |vip: &IpAddr| OfVip { vip: vip.to_string() };
        let live = Family::<OfVip, Gauge>::default();
        let time_wait = Family::<OfVip, Gauge>::default();
        let states = Family::<OfState, Gauge>::default();
        let oldest = Family::<OfVip, Gauge<f64, AtomicU64>>::default();
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        for (vip, of_vip) in &survey.vips {
            live.get_or_create(&label(vip)).set(number(of_vip.live));
            time_wait.get_or_create(&label(vip)).set(number(of_vip.time_wait));
            // 0 and not nothing: an alert on the age must not lose its series at the end of a drain.
            oldest.get_or_create(&label(vip)).set(of_vip.oldest_seconds.unwrap_or(0.0));
            for (state, count) in &of_vip.states {
                let labels = OfState { vip: vip.to_string(), state };
                states.get_or_create(&labels).set(number(*count));
            }
        }
        registry.register("live_connections", "Clients' live connections", live);
        registry.register("connections", "Clients' live connections by state", states);
        registry.register("time_wait_connections", "Connections that are over", time_wait);
        registry.register_with_unit(
            "oldest_connection_age",
            "For how long the oldest live connection has been known; 0 without any",
            Unit::Seconds,
            oldest,
        );
    }
}
