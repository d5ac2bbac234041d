//! The results of the prober: which backends answer, at which packet sizes, and what that means.

use std::{net::IpAddr, sync::Arc};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, histogram::Histogram},
};
use serde::{Deserialize, Serialize};

use crate::model::Problem;

/// Consecutive losses after which a probe counts as failing.
pub const FAILING_AFTER: u32 = 2;

/// The size of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeSize {
    /// A small packet.
    Small,
    /// The largest packet that fits the path.
    Full,
}

impl ProbeSize {
    /// The name used in metrics and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Full => "full",
        }
    }
}

/// Whether the prober works.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProberState {
    /// The configuration disables it, or it has not started.
    #[default]
    Disabled,
    /// It probes.
    Running,
    /// It pauses while the director is drained, since probes count as traffic.
    Paused,
    /// It cannot probe.
    Unavailable(String),
}

/// The probes of one size to one backend, over one VIP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbeResult {
    /// Name of the table.
    pub table: String,
    /// The VIP that the probes are addressed to.
    pub vip: IpAddr,
    /// The backend.
    pub backend: IpAddr,
    /// The size.
    pub size: ProbeSize,
    /// Bytes of the inner packet.
    pub bytes: usize,
    /// The source of the probes, where the answers go.
    pub source: Option<IpAddr>,
    /// Whether the table says that the backend is healthy.
    pub healthy: bool,
    /// Probes lost since the last answer.
    pub losses: u32,
    /// Milliseconds from sending to the last answer.
    pub milliseconds: Option<f64>,
    /// Why the last probe was not sent, if so.
    pub error: Option<String>,
}

impl ProbeResult {
    /// Whether the backend does not answer.
    #[must_use]
    pub const fn is_failing(&self) -> bool {
        self.losses >= FAILING_AFTER
    }

    /// Whether the last probe was answered.
    #[must_use]
    pub const fn is_answered(&self) -> bool {
        self.losses == 0 && self.error.is_none() && self.milliseconds.is_some()
    }
}

/// Labels of the latency histogram.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ProbeLabels {
    /// Name of the table.
    pub table: String,
    /// The backend.
    pub backend: String,
    /// `ipv4` or `ipv6`: the family of the VIP.
    pub family: &'static str,
    /// `small` or `full`.
    pub size: &'static str,
}

impl ProbeLabels {
    /// The labels of a result.
    #[must_use]
    pub fn of(result: &ProbeResult) -> Self {
        Self {
            table: result.table.clone(),
            backend: result.backend.to_string(),
            family: if result.vip.is_ipv4() { "ipv4" } else { "ipv6" },
            size: result.size.name(),
        }
    }
}

/// Latencies of answered probes.
pub type ProbeLatency = Family<ProbeLabels, Histogram, fn() -> Histogram>;

/// A new, empty set of latency histograms, in seconds.
#[must_use]
pub fn new_latency() -> ProbeLatency {
    ProbeLatency::new_with_constructor(|| {
        Histogram::new([0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5])
    })
}

/// All results at one moment.
#[derive(Clone, Debug)]
pub struct ProbeSnapshot {
    /// Whether the prober works.
    pub state: ProberState,
    /// The results, by table, VIP, backend and size.
    pub results: Vec<ProbeResult>,
    /// Latencies since the start.
    pub latency: Arc<ProbeLatency>,
}

impl Default for ProbeSnapshot {
    fn default() -> Self {
        Self {
            state: ProberState::default(),
            results: Vec::new(),
            latency: Arc::new(new_latency()),
        }
    }
}

impl ProbeSnapshot {
    /// The results of a backend of a table.
    pub fn of<'s>(
        &'s self,
        table: &'s str,
        backend: IpAddr,
    ) -> impl Iterator<Item = &'s ProbeResult> {
        self.results.iter().filter(move |one| one.table == table && one.backend == backend)
    }

    /// What the results mean for an operator.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if let ProberState::Unavailable(why) = &self.state {
            problems
                .push(Problem::new("probe_unavailable", format!("cannot probe backends: {why}")));
        }
        if self.state != ProberState::Running {
            return problems;
        }
        for group in self.results.chunk_by(|a, b| (&a.table, a.vip) == (&b.table, b.vip)) {
            let small = || group.iter().filter(|one| one.size == ProbeSize::Small && one.healthy);
            let failing = small().filter(|one| one.is_failing()).count();
            let (total, table, vip) = (small().count(), &group[0].table, group[0].vip);
            if total > 1 && failing == total {
                let text = format!(
                    "table {table}: none of {total} backends answers probes to VIP {vip}. The fault is \
                     probably on this director or its link: see `glb-director doctor`"
                );
                problems.push(Problem::new("probe_path", text));
                continue;
            }
            for one in group.iter().filter(|one| one.is_failing() && one.healthy) {
                let ProbeResult { backend, bytes, .. } = one;
                let answers_small =
                    small().any(|other| other.backend == one.backend && other.is_answered());
                let source =
                    one.source.map_or_else(String::new, |source| format!(" from {source}"));
                match one.size {
                    ProbeSize::Small => problems.push(Problem::new(
                        "probe_failed",
                        format!(
                            "table {table}: backend {backend} does not answer probes to VIP {vip}\
                             {source}. Check there that `directors` has this director's address, that \
                             the VIP is on `lo`, and `glb-redirect status`"
                        ),
                    )),
                    ProbeSize::Full if answers_small => problems.push(Problem::new(
                        "probe_mtu",
                        format!(
                            "table {table}: backend {backend} answers small probes to VIP {vip}, but \
                             none of {bytes} bytes: a link on the path has a smaller MTU than its ends"
                        ),
                    )),
                    // The failing small probe says it.
                    ProbeSize::Full => {}
                }
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(backend: &str, size: ProbeSize, losses: u32) -> ProbeResult {
        ProbeResult {
            table: "web".into(),
            vip: "203.0.113.10".parse().unwrap(),
            backend: backend.parse().unwrap(),
            size,
            bytes: 1460,
            source: None,
            healthy: true,
            losses,
            milliseconds: (losses == 0).then_some(0.2),
            error: None,
        }
    }

    fn problems(losses: [(u32, u32); 2]) -> Vec<String> {
        let backends = ["10.0.0.1", "10.0.0.2"];
        let results = backends.iter().zip(losses).flat_map(|(backend, (small, full))| {
            [result(backend, ProbeSize::Small, small), result(backend, ProbeSize::Full, full)]
        });
        let snapshot = ProbeSnapshot {
            state: ProberState::Running,
            results: results.collect(),
            ..ProbeSnapshot::default()
        };
        snapshot.problems().into_iter().map(|problem| problem.name).collect()
    }

    #[test]
    fn failing_probes_are_told_apart_by_what_fails() {
        assert_eq!(problems([(0, 0), (0, 0)]), Vec::<String>::new());
        assert_eq!(problems([(1, 1), (0, 0)]), Vec::<String>::new());
        assert_eq!(problems([(2, 2), (0, 0)]), ["probe_failed"]);
        assert_eq!(problems([(0, 2), (0, 0)]), ["probe_mtu"]);
        assert_eq!(problems([(2, 2), (3, 3)]), ["probe_path"]);
    }
}
