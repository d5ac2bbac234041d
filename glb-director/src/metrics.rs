//! What the director tells Prometheus.

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use glb_host::{
    bpffs::PinFolder,
    metrics::{PacketsAndBytes, Source, gauge},
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, info::Info},
    registry::{Registry, Unit},
};

use crate::counters;

/// What the daemon itself has to tell; packets are counted by the kernel.
#[derive(Debug, Default)]
pub struct Metrics {
    generation: AtomicU64,
    reloads: AtomicU64,
    failed_reloads: AtomicU64,
    last_swap: AtomicU64,
}

impl Metrics {
    /// A generation has just been swapped in.
    pub fn in_force(&self, generation: u64) {
        self.generation.store(generation, Ordering::Relaxed);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_swap.store(now.as_secs(), Ordering::Relaxed);
    }

    /// A reload has ended, well or not.
    pub fn reloaded(&self, generation: u64, well: bool) {
        if well {
            self.reloads.fetch_add(1, Ordering::Relaxed);
            self.in_force(generation);
        } else {
            self.failed_reloads.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    table: String,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Backend {
    table: String,
    backend: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
}

/// Where the metrics come from: the pinned counters, and the daemon.
pub struct Metered {
    /// The director's pins.
    pub pins: PinFolder,
    /// What the daemon has to tell.
    pub metrics: Arc<Metrics>,
}

impl Source for Metered {
    fn prefix(&self) -> &'static str {
        "glb_director"
    }

    fn register(&self, registry: &mut Registry) -> Result<(), Box<dyn Error>> {
        let report = counters::read(&self.pins)?;
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The running director", build);

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
        registry.register("reloads", "Tables loaded anew, by result", reloads);

        let reasons = PacketsAndBytes::<Reason>::default();
        let no_table = report.reasons.into_iter().map(|counted| (String::new(), counted));
        let of_tables = report.tables.into_iter().flat_map(|table| {
            table.reasons.into_iter().map(move |counted| (table.name.clone(), counted))
        });
        for (table, (reason, count)) in no_table.chain(of_tables) {
            reasons.add(&Reason { table, reason }, count.packets, count.bytes);
        }
        let what = "by table (none if no table is concerned) and reason";
        reasons.register(registry, "packets", "received", what);
        let backends = PacketsAndBytes::<Backend>::default();
        for backend in report.backends {
            let labels = Backend { table: backend.table, backend: backend.address.to_string() };
            backends.add(&labels, backend.count.packets, backend.count.bytes);
        }
        backends.register(registry, "backend_packets", "backend", "sent, by first hop");
        Ok(())
    }
}
