//! What the checker tells Prometheus, and its status, over HTTP.

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

use crate::{check::Kind, control_socket::Question, probe::Outcome, status::Snapshot};

/// How long the daemon's loop may take to say how things are.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Probe {
    kind: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfTable {
    table: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfBackend {
    table: String,
    backend: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCheck {
    backend: String,
    check: String,
}

/// From 0.5 ms to 4 s.
const LATENCIES: [f64; 11] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 4.0];

/// What adds up from probe to probe; all else is read off a snapshot.
#[derive(Clone, Debug)]
pub struct Metrics {
    probes: Family<Probe, Counter>,
    latency: Family<OfKind, Histogram, fn() -> Histogram>,
}

impl Default for Metrics {
    fn default() -> Self {
        let histogram: fn() -> Histogram = || Histogram::new(LATENCIES);
        Self { probes: Family::default(), latency: Family::new_with_constructor(histogram) }
    }
}

impl Metrics {
    /// Counts a probe.
    pub fn probed(&self, kind: &Kind, outcome: &Outcome, latency: Duration) {
        let result = match outcome {
            Outcome::Pass(_) => "pass",
            Outcome::Fail(failure) | Outcome::Unsure(failure) => failure.word(),
        };
        self.probes.get_or_create(&Probe { kind: kind.name(), result }).inc();
        let kind = OfKind { kind: kind.name() };
        self.latency.get_or_create(&kind).observe(latency.as_secs_f64());
    }
}

/// Where the metrics come from: what is counted here, and the daemon's loop.
#[derive(Debug)]
pub struct Metered {
    /// What adds up.
    pub metrics: Metrics,
    /// Where the loop is asked.
    pub questions: Sender<Question>,
}

impl Metered {
    fn snapshot(&self) -> Result<Snapshot, Box<dyn Error>> {
        let (sender, receiver) = sync_channel(1);
        self.questions
            .try_send(Question::Snapshot(sender))
            .map_err(|_| "the checker is busy; ask again in a moment")?;
        Ok(receiver.recv_timeout(PATIENCE).map_err(|_| "the checker does not answer")?)
    }
}

impl MetricsSource for Metered {
    fn prefix(&self) -> &'static str {
        "glb_healthcheck"
    }

    fn register(&self, registry: &mut Registry) -> Result<(), Box<dyn Error>> {
        let snapshot = self.snapshot()?;
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The running checker", build);
        of_backends(registry, &snapshot);
        of_probes(registry, &self.metrics);
        of_publishing(registry, &snapshot);
        Ok(())
    }

    /// `/status`, and `/health` as GLB calls it.
    fn page(&self, path: &str) -> Option<Result<Page, Box<dyn Error>>> {
        let told = || Ok(serde_json::to_string(&self.snapshot()?)?);
        matches!(path, "/status" | "/health")
            .then(|| told().map(|body| Page { kind: "application/json", body }))
    }
}

fn of_backends(registry: &mut Registry, snapshot: &Snapshot) {
    let healthy = Family::<OfBackend, Gauge>::default();
    let fail_open = Family::<OfTable, Gauge>::default();
    let up = Family::<OfCheck, Gauge>::default();
    let mut ups = HashMap::new();
    let weight = Family::<OfCheck, Gauge>::default();
    let transitions = Family::<OfCheck, Counter>::default();
    let flaps = Family::<OfCheck, Counter>::default();
    for table in &snapshot.tables {
        let kept = table.backends.iter().filter(|backend| backend.fail_open).count();
        let label = OfTable { table: table.name.clone() };
        fail_open.get_or_create(&label).set(i64::try_from(kept).unwrap_or(i64::MAX));
        for backend in &table.backends {
            if let Some(written) = backend.healthy {
                let (table, backend) = (table.name.clone(), backend.address.clone());
                healthy.get_or_create(&OfBackend { table, backend }).set(i64::from(written));
            }
            for check in &backend.checks {
                let label =
                    OfCheck { backend: backend.address.clone(), check: check.check.clone() };
                // What differs in less than its name shares it: the one that fails is told.
                let is_up = check.standing == "up";
                let known = ups.entry(label.clone()).or_insert(is_up);
                *known &= is_up;
                // Tables share checks: each is entered once, whoever is first.
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
    for (label, is_up) in ups {
        up.get_or_create(&label).set(i64::from(is_up));
    }
    registry.register("backend_healthy", "What is written of each backend", healthy);
    let help = "Backends that are written healthy although a check fails: min_healthy, or cut off";
    registry.register("fail_open_backends", help, fail_open);
    registry.register("up", "Each check's judgement", up);
    registry.register("agent_weight_percent", "The weight that an agent says", weight);
    registry.register("transitions", "Changes between up and down", transitions);
    registry.register("flaps", "Failures soon after a return", flaps);
}

fn of_probes(registry: &mut Registry, metrics: &Metrics) {
    registry.register("probes", "Probes by kind and result", metrics.probes.clone());
    registry.register_with_unit(
        "probe_latency",
        "Time that probes take",
        Unit::Seconds,
        metrics.latency.clone(),
    );
}

fn of_publishing(registry: &mut Registry, snapshot: &Snapshot) {
    let counters = [
        ("writes", "Times that the checked table was written", snapshot.writes),
        ("write_failures", "Times that it could not be", snapshot.write_failures),
        ("reloads", "Times that the director was told", snapshot.reloads),
        ("reload_failures", "Times that it could not be", snapshot.reload_failures),
        ("cut_offs", "Times that this checker found itself cut off", snapshot.cut_offs),
    ];
    for (name, help, value) in counters {
        registry.register(name, help, ConstCounter::new(value));
    }
    let gauges = [
        ("cut_off", "Whether it is cut off now", f64::from(u8::from(snapshot.cut_off))),
        ("pending", "Targets without a result", snapshot.pending as f64),
    ];
    for (name, help, value) in gauges {
        registry.register(name, help, ConstGauge::new(value));
    }
    registry.register_with_unit(
        "last_write_timestamp",
        "When the checked table was last written, since the epoch; 0 before the first time",
        Unit::Seconds,
        ConstGauge::new(snapshot.last_write.unwrap_or(0.0)),
    );
}
