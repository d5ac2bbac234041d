//! The backend's Prometheus metrics: packet counters, connections, and the daemon's own state.

use std::{
    error::Error,
    net::IpAddr,
    sync::{Arc, atomic::AtomicU64},
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

use crate::{
    connections::ConnectionMonitor,
    counters::{self, CountersError},
    daemon_state::DaemonState,
    status::{PROBLEMS, Status},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    vip: String,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VipLabels {
    vip: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    vip: String,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InterfaceLabels {
    interface: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProblemLabels {
    problem: &'static str,
}

/// Collects the metrics for each request of Prometheus.
pub(crate) struct Collector(pub(crate) Arc<DaemonState>);

impl MetricsSource for Collector {
    fn prefix(&self) -> &'static str {
        "glb_redirect"
    }

    fn register(&self, registry: &mut Registry) -> Result<(), Box<dyn Error>> {
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The running backend", build);
        self.daemon(registry);
        self.status(registry);
        self.packets(registry)?;
        self.connections(registry);
        Ok(())
    }
}

impl Collector {
    fn daemon(&self, registry: &mut Registry) {
        let snapshot = self.0.snapshot();
        if let Some((number, since)) = snapshot.generation {
            registry.register("generation", "Generation in force", gauge(number));
            registry.register_with_unit(
                "last_swap_timestamp",
                "When the generation in force was activated, since the epoch",
                Unit::Seconds,
                gauge(since.epoch_seconds() as u64),
            );
        }
        let reloads = Family::<ResultLabel, Counter>::default();
        reloads.get_or_create(&ResultLabel { result: "ok" }).inc_by(snapshot.reloads);
        reloads.get_or_create(&ResultLabel { result: "failed" }).inc_by(snapshot.failed_reloads);
        registry.register(
            "reloads",
            "Reloads of the configuration or the table, by result",
            reloads,
        );
        let failed = snapshot.last_reload.is_some_and(|last| last.error.is_some());
        registry.register(
            "last_reload_success",
            "1 unless the last reload failed",
            gauge(u64::from(!failed)),
        );
        registry.register("peers", "Fellow backends", gauge(snapshot.peers as u64));
        registry.register(
            "unresolved_peers",
            "Fellow backends without a usable next hop",
            gauge(snapshot.unresolved_peers.len() as u64),
        );
    }

    /// What `status` reports: 1 for each problem that exists now, and the state of interfaces and VIPs.
    fn status(&self, registry: &mut Registry) {
        let status = Status::of(&self.0);
        let problems = Family::<ProblemLabels, Gauge>::default();
        for problem in PROBLEMS {
            let count = status.problems.iter().filter(|found| found.name == problem).count();
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            problems.get_or_create(&ProblemLabels { problem }).set(count);
        }
        registry.register("problems", "Problems that `status` reports, by name", problems);
        let attached = Family::<InterfaceLabels, Gauge>::default();
        for interface in status.interfaces {
            let is_attached = i64::from(interface.mode.is_some());
            attached.get_or_create(&InterfaceLabels { interface: interface.name }).set(is_attached);
        }
        let help = "1 if this backend's program is attached to the interface";
        registry.register("interface_attached", help, attached);
        let local = Family::<VipLabels, Gauge>::default();
        for vip in status.vips {
            let labels = VipLabels { vip: vip.address.to_string() };
            local.get_or_create(&labels).set(i64::from(vip.local));
        }
        registry.register("vip_local", "1 if the VIP is an address of this host", local);
    }

    fn packets(&self, registry: &mut Registry) -> Result<(), Box<dyn Error>> {
        let folder = self.0.bpffs_dir();
        let pins = PinFolder::open(folder, crate::PIN_OWNER)?
            .ok_or_else(|| CountersError::Missing { folder: folder.to_owned() })?;
        let report = counters::read(&pins)?;
        let packets = PacketsAndBytes::<ReasonLabels>::default();
        for (reason, count) in report.without_vip() {
            packets.add(&ReasonLabels { vip: String::new(), reason }, count.packets, count.bytes);
        }
        for (vip, reasons) in report.vips {
            for (reason, count) in reasons {
                let labels = ReasonLabels { vip: vip.to_string(), reason };
                packets.add(&labels, count.packets, count.bytes);
            }
        }
        let what = "by VIP (empty for packets that were not matched to one) and reason";
        packets.register(registry, "packets", "received", what);
        let clamped = Counter::<u64>::default();
        clamped.inc_by(report.clamped_syn_acks);
        registry.register("clamped_syn_acks", "SYN-ACKs whose MSS was lowered", clamped);
        Ok(())
    }

    /// The newest report of connections; nothing while they cannot be listed.
    fn connections(&self, registry: &mut Registry) {
        let newest = self.0.connections().and_then(ConnectionMonitor::newest);
        let Some(report) = newest else { return };
        let label = |vip: &IpAddr| VipLabels { vip: vip.to_string() };
        let live = Family::<VipLabels, Gauge>::default();
        let time_wait = Family::<VipLabels, Gauge>::default();
        let states = Family::<StateLabels, Gauge>::default();
        let oldest = Family::<VipLabels, Gauge<f64, AtomicU64>>::default();
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        for (vip, connections) in &report.vips {
            live.get_or_create(&label(vip)).set(number(connections.live));
            time_wait.get_or_create(&label(vip)).set(number(connections.time_wait));
            // 0 without a connection: an alert on the age must not lose its series at the end of a
            // drain.
            oldest.get_or_create(&label(vip)).set(connections.oldest_seconds.unwrap_or(0.0));
            for (state, count) in &connections.states {
                let labels = StateLabels { vip: vip.to_string(), state };
                states.get_or_create(&labels).set(number(*count));
            }
        }
        registry.register("live_connections", "Clients' live connections", live);
        registry.register("connections", "Clients' live connections by state", states);
        registry.register("time_wait_connections", "Connections in TIME_WAIT", time_wait);
        registry.register_with_unit(
            "oldest_connection_age",
            "Age of the oldest live connection, since the daemon first saw it; 0 without any",
            Unit::Seconds,
            oldest,
        );
    }
}
