//! Prometheus metrics (OpenMetrics text).

use std::time::Duration;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::Histogram,
    },
    registry::{Registry, Unit},
};

use crate::{check::Kind, probe::Outcome, status::Snapshot};

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

    /// The text of all metrics.
    #[must_use]
    pub fn text(&self, snapshot: &Snapshot) -> String {
        let mut registry = Registry::with_prefix("glb_healthcheck");
        let healthy = Family::<OfBackend, Gauge>::default();
        let up = Family::<OfCheck, Gauge>::default();
        let weight = Family::<OfCheck, Gauge>::default();
        let transitions = Family::<OfCheck, Counter>::default();
        let flaps = Family::<OfCheck, Counter>::default();
        for table in &snapshot.tables {
            for backend in &table.backends {
                if let Some(written) = backend.healthy {
                    let (table, backend) = (table.name.clone(), backend.address.clone());
                    healthy.get_or_create(&OfBackend { table, backend }).set(i64::from(written));
                }
                for check in &backend.checks {
                    let label =
                        OfCheck { backend: backend.address.clone(), check: check.check.clone() };
                    up.get_or_create(&label).set(i64::from(check.standing == "up"));
                    // Tables share checks: each is entered once, whoever is first.
                    let missing =
                        |counter: &Counter, value: u64| value.saturating_sub(counter.get());
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
        registry.register("backend_healthy", "What is written of each backend", healthy);
        registry.register("up", "Each check's judgement", up);
        registry.register("agent_weight_percent", "The weight that an agent says", weight);
        registry.register("transitions", "Changes between up and down", transitions);
        registry.register("flaps", "Failures soon after a return", flaps);
        registry.register("probes", "Probes by kind and result", self.probes.clone());
        registry.register_with_unit(
            "probe_latency",
            "Time that probes take",
            Unit::Seconds,
            self.latency.clone(),
        );
        let counters = [
            ("writes", "Times that the checked table was written", snapshot.writes),
            ("write_failures", "Times that it could not be", snapshot.write_failures),
            ("reloads", "Times that the reload command did its work", snapshot.reloads),
            ("reload_failures", "Times that it did not", snapshot.reload_failures),
            ("cut_offs", "Times that this checker found itself cut off", snapshot.cut_offs),
        ];
        for (name, help, value) in counters {
            registry.register(name, help, ConstCounter::new(value));
        }
        let gauges = [
            ("cut_off", "Whether it is cut off now", f64::from(u8::from(snapshot.cut_off))),
            ("pending", "Targets without a result", snapshot.pending as f64),
            (
                "last_write_timestamp_seconds",
                "When the checked table was last written",
                snapshot.last_write.unwrap_or(0.0),
            ),
        ];
        for (name, help, value) in gauges {
            registry.register(name, help, ConstGauge::new(value));
        }
        let mut text = String::new();
        match encode(&mut text, &registry) {
            Ok(()) => text,
            Err(_) => String::new(),
        }
    }
}
