//! The HTTP server's content: Prometheus metrics, and the status as JSON.

use std::{collections::HashMap, error::Error, sync::mpsc::sync_channel, time::Duration};

use glb_host::metrics::{MetricsSource, Page};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::Histogram,
        info::Info,
    },
    registry::{Registry, Unit},
};
use tokio::sync::mpsc::Sender;

use crate::{
    check::CheckKind, control_socket::Query, health_state::Health, probe::Outcome, status::Snapshot,
};

/// How long a request waits for the event loop.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProbeLabels {
    kind: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TableLabels {
    table: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BackendLabels {
    table: String,
    backend: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CheckLabels {
    backend: String,
    check: String,
}

/// Histogram buckets in seconds, from 0.5 ms to 4 s.
const LATENCY_BUCKETS: [f64; 11] =
    [0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 4.0];

/// Counters of probes. All other metrics are computed from a [`Snapshot`].
#[derive(Clone, Debug)]
pub struct ProbeMetrics {
    probes: Family<ProbeLabels, Counter>,
    latency: Family<KindLabels, Histogram, fn() -> Histogram>,
}

impl Default for ProbeMetrics {
    fn default() -> Self {
        let histogram: fn() -> Histogram = || Histogram::new(LATENCY_BUCKETS);
        Self { probes: Family::default(), latency: Family::new_with_constructor(histogram) }
    }
}

impl ProbeMetrics {
    /// Counts a probe's outcome and latency.
    pub fn record(&self, kind: &CheckKind, outcome: &Outcome, latency: Duration) {
        let result = match outcome {
            Outcome::Pass(_) => "pass",
            Outcome::Fail(failure) | Outcome::Inconclusive(failure) => failure.label(),
        };
        self.probes.get_or_create(&ProbeLabels { kind: kind.name(), result }).inc();
        let kind = KindLabels { kind: kind.name() };
        self.latency.get_or_create(&kind).observe(latency.as_secs_f64());
    }
}

/// Collects the metrics for each request.
#[derive(Debug)]
pub struct Collector {
    /// Counters of probes.
    pub metrics: ProbeMetrics,
    /// Queries to the event loop.
    pub queries: Sender<Query>,
}

impl Collector {
    fn snapshot(&self) -> Result<Snapshot, Box<dyn Error>> {
        let (sender, receiver) = sync_channel(1);
        self.queries
            .try_send(Query::Snapshot(sender))
            .map_err(|_| "the daemon is busy: try again in a second")?;
        Ok(receiver.recv_timeout(SNAPSHOT_TIMEOUT).map_err(|_| "the event loop does not answer")?)
    }
}

impl MetricsSource for Collector {
    fn prefix(&self) -> &'static str {
        "glb_healthcheck"
    }

    fn register(&self, registry: &mut Registry) -> Result<(), Box<dyn Error>> {
        let snapshot = self.snapshot()?;
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "Version of the running health checker", build);
        register_backends(registry, &snapshot);
        register_probes(registry, &self.metrics);
        register_publishing(registry, &snapshot);
        Ok(())
    }

    /// Serves the status under `/status`, and under `/health` as GLB's checker does.
    fn page(&self, path: &str) -> Option<Result<Page, Box<dyn Error>>> {
        let status = || Ok(serde_json::to_string(&self.snapshot()?)?);
        matches!(path, "/status" | "/health")
            .then(|| status().map(|body| Page { kind: "application/json", body }))
    }
}

fn register_backends(registry: &mut Registry, snapshot: &Snapshot) {
    let healthy = Family::<BackendLabels, Gauge>::default();
    let fail_open = Family::<TableLabels, Gauge>::default();
    let check_healthy = Family::<CheckLabels, Gauge>::default();
    let mut healthy_checks = HashMap::new();
    let weight = Family::<CheckLabels, Gauge>::default();
    let transitions = Family::<CheckLabels, Counter>::default();
    let flaps = Family::<CheckLabels, Counter>::default();
    for table in &snapshot.tables {
        let fail_open_count = table.backends.iter().filter(|backend| backend.fail_open).count();
        let label = TableLabels { table: table.name.clone() };
        fail_open.get_or_create(&label).set(i64::try_from(fail_open_count).unwrap_or(i64::MAX));
        for backend in &table.backends {
            if let Some(written) = backend.healthy {
                let (table, backend) = (table.name.clone(), backend.address.clone());
                healthy.get_or_create(&BackendLabels { table, backend }).set(i64::from(written));
            }
            for check in &backend.checks {
                let label =
                    CheckLabels { backend: backend.address.clone(), check: check.check.clone() };
                // Checks whose names are the same share a series; it is 0 if one of them fails.
                let is_healthy = check.health == Health::Healthy;
                let all_healthy = healthy_checks.entry(label.clone()).or_insert(is_healthy);
                *all_healthy &= is_healthy;
                // Several tables may share a check; its counters are added once.
                let missing = |counter: &Counter, value: u64| value.saturating_sub(counter.get());
                let counter = transitions.get_or_create_owned(&label);
                counter.inc_by(missing(&counter, check.transitions));
                let counter = flaps.get_or_create_owned(&label);
                counter.inc_by(missing(&counter, check.flaps));
                if let Some(percent) = check.weight {
                    weight.get_or_create(&label).set(i64::from(percent));
                }
            }
        }
    }
    for (label, healthy) in healthy_checks {
        check_healthy.get_or_create(&label).set(i64::from(healthy));
    }
    registry.register("backend_healthy", "Health of each backend in the output", healthy);
    let help = "Backends written as healthy although a check fails (min_healthy, or isolation)";
    registry.register("fail_open_backends", help, fail_open);
    registry.register("check_healthy", "Health of each check", check_healthy);
    registry.register("agent_weight_percent", "Weight that an agent reports", weight);
    registry.register("transitions", "Changes between healthy and unhealthy", transitions);
    registry.register("flaps", "Failures soon after a return to healthy", flaps);
}

fn register_probes(registry: &mut Registry, metrics: &ProbeMetrics) {
    registry.register("probes", "Probes by kind and result", metrics.probes.clone());
    registry.register_with_unit(
        "probe_latency",
        "Duration of probes",
        Unit::Seconds,
        metrics.latency.clone(),
    );
}

fn register_publishing(registry: &mut Registry, snapshot: &Snapshot) {
    let counters = [
        ("writes", "Successful writes of the output", snapshot.writes),
        ("write_failures", "Failed writes of the output", snapshot.write_failures),
        (
            "foreign_changes",
            "Changes of the output by other programs, which were overwritten",
            snapshot.foreign_changes,
        ),
        ("reloads", "Successful reload requests to the director", snapshot.reloads),
        ("reload_failures", "Failed reload requests to the director", snapshot.reload_failures),
        ("isolations", "Times that this checker became isolated", snapshot.isolations),
    ];
    for (name, help, value) in counters {
        registry.register(name, help, ConstCounter::new(value));
    }
    let gauges = [
        ("isolated", "Whether this checker is isolated", f64::from(u8::from(snapshot.isolated))),
        ("pending", "Targets without a result", snapshot.pending as f64),
    ];
    for (name, help, value) in gauges {
        registry.register(name, help, ConstGauge::new(value));
    }
    registry.register_with_unit(
        "last_write_timestamp",
        "Time of the last write of the output; 0 before the first",
        Unit::Seconds,
        ConstGauge::new(snapshot.last_write.unwrap_or(0.0)),
    );
}
