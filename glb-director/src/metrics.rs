//! The director's Prometheus metrics. `docs/director.md` and `docs/announcing.md` list them.

use std::{
    collections::{BTreeSet, HashSet},
    error::Error,
    net::IpAddr,
    sync::atomic::AtomicU64,
};

use glb_common::reason::{Action, DirectorReason};
use glb_host::metrics::{MetricsSource, PacketsAndBytes, Page, gauge};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::{Registry, Unit},
};

use crate::{
    announce::{AnnounceView, AnnouncementState, Stage, state_machine::Cause},
    counters::{self, CountersError, Report},
    daemon_status::StatusSnapshot,
    fleet::Member,
    model::{Phase, Timestamp},
    probe_results::{ProbeLabels, ProbeLatency, ProbeSnapshot, ProberState},
    views::Observer,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    table: String,
    reason: String,
    action: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Backend {
    table: String,
    backend: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Hop {
    table: String,
    backend: String,
    hop: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BackendState {
    table: String,
    backend: String,
    state: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Interface {
    interface: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfAnnouncement {
    announcement: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Session {
    announcement: String,
    session: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AnnouncementStateLabels {
    announcement: String,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Withdrawal {
    announcement: String,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DrainStage {
    stage: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Digest {
    table: String,
    membership: String,
    order: String,
}

/// A family of integer gauges.
type Gauges<L> = Family<L, Gauge>;

/// The source of the metrics.
#[derive(Debug)]
pub struct Metered {
    /// The view of the running director.
    pub observer: Observer,
}

impl MetricsSource for Metered {
    fn prefix(&self) -> &'static str {
        "glb_director"
    }

    fn register(&self, registry: &mut Registry) -> Result<(), Box<dyn Error>> {
        let report = match self.observer.counters() {
            // Before the first start there are no counters.
            Err(CountersError::Missing { .. }) => Report::default(),
            other => other?,
        };
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The running director", build);
        let snapshot = self.observer.snapshot();
        generation(registry, &snapshot);
        announcements(registry, &self.observer.status().announcements());
        reloads(registry, &snapshot);
        self.interfaces(registry);
        self.tables(registry, &report);
        probes(registry, &self.observer.status().probes());
        overflow(registry, &snapshot, &report);
        packets(registry, report);
        Ok(())
    }

    fn page(&self, path: &str) -> Option<Result<Page, Box<dyn Error>>> {
        let told = || Ok(serde_json::to_string(&Member::of(&self.observer))?);
        (path == "/status").then(|| told().map(|body| Page { kind: "application/json", body }))
    }
}

fn announcements(registry: &mut Registry, view: &AnnounceView) {
    let announced = Gauges::<OfAnnouncement>::default();
    let states = Gauges::<AnnouncementStateLabels>::default();
    let failing = Gauges::<OfAnnouncement>::default();
    let withdrawals = Family::<Withdrawal, Counter>::default();
    let dropped = Family::<OfAnnouncement, Counter>::default();
    let sessions = Gauges::<Session>::default();
    let exported = Gauges::<OfAnnouncement>::default();
    for one in &view.announcements {
        let of = OfAnnouncement { announcement: one.name.clone() };
        let is_announced = one.state == Some(AnnouncementState::Announced);
        announced.get_or_create(&of).set(is_announced.into());
        failing.get_or_create(&of).set((!one.error.is_empty()).into());
        for state in AnnouncementState::ALL {
            let (announcement, name) = (one.name.clone(), state.name());
            let labels = AnnouncementStateLabels { announcement, state: name };
            states.get_or_create(&labels).set((one.state == Some(state)).into());
        }
        for cause in Cause::ALL {
            let (announcement, reason) = (one.name.clone(), cause.name());
            let count = one.withdrawals.get(reason).copied().unwrap_or_default();
            withdrawals.get_or_create(&Withdrawal { announcement, reason }).inc_by(count);
        }
        for session in &one.sessions {
            let (announcement, name) = (one.name.clone(), session.name.clone());
            let labels = Session { announcement, session: name };
            sessions.get_or_create(&labels).set(session.established.into());
        }
        if let Some(is_exported) = one.is_exported() {
            exported.get_or_create(&of).set(is_exported.into());
        }
        if one.method == "tun" {
            dropped.get_or_create(&of).inc_by(one.dropped);
        }
    }
    let help = "Whether the prefixes are announced with normal preference";
    registry.register("announced", help, announced);
    let help = "State of the announcement: 1 for the current one; all 0 if it is unknown";
    registry.register("announcement_state", help, states);
    let help = "Whether the method fails to carry out the desired state, or cannot be asked";
    registry.register("announcement_failing", help, failing);
    let help = "Whether the BGP session of the routing daemon is established";
    registry.register("announcement_session_up", help, sessions);
    let help = "Whether an established BGP session carries the prefixes";
    registry.register("announcement_exported", help, exported);
    registry.register("withdrawals", "Withdrawals by reason", withdrawals);
    let help = "Packets to the prefixes that came out of the TUN interface and were dropped";
    registry.register("announcement_dropped_packets", help, dropped);
    let stages = Gauges::<DrainStage>::default();
    for stage in [Stage::LowPreference, Stage::Withdrawn, Stage::Drained] {
        let is_there = view.drain.as_ref().is_some_and(|drain| drain.stage == stage);
        stages.get_or_create(&DrainStage { stage: stage.name() }).set(is_there.into());
    }
    let help = "What a drain is at: 1 for its stage; all 0 if the director is not being drained";
    registry.register("drain", help, stages);
}

fn seconds(value: f64) -> Gauge<f64, AtomicU64> {
    let gauge = Gauge::default();
    gauge.set(value);
    gauge
}

fn since_epoch(at: Option<Timestamp>) -> Gauge<f64, AtomicU64> {
    seconds(at.map_or(0.0, |at| at.epoch()))
}

fn generation(registry: &mut Registry, snapshot: &StatusSnapshot) {
    let in_force = snapshot.in_force.as_ref();
    let number = in_force.map_or(0, |in_force| in_force.generation);
    registry.register("generation", "Generation in force; 0 before the first", gauge(number));
    registry.register_with_unit(
        "last_swap_timestamp",
        "When the generation in force was swapped in, or taken over, since the epoch",
        Unit::Seconds,
        since_epoch(in_force.map(|in_force| in_force.since)),
    );
    let digests = Gauges::<Digest>::default();
    let all = in_force.map(|in_force| (String::new(), in_force.digest));
    let tables = in_force.iter().flat_map(|in_force| &in_force.tables.tables);
    let each = tables.map(|table| (table.name.clone(), table.digest()));
    for (table, digest) in all.into_iter().chain(each) {
        let membership = glb_table::hex(&digest.membership);
        let order = glb_table::hex(&digest.order);
        digests.get_or_create(&Digest { table, membership, order }).set(1);
    }
    registry.register(
        "table_digest_info",
        "What must be equal on all directors of a fleet (membership) and the states and health \
         (order), of each table, and of all together (no table)",
        digests,
    );
}

fn reloads(registry: &mut Registry, snapshot: &StatusSnapshot) {
    let reloads = Family::<Outcome, Counter>::default();
    reloads.get_or_create(&Outcome { result: "ok" }).inc_by(snapshot.reloads);
    reloads.get_or_create(&Outcome { result: "failed" }).inc_by(snapshot.failed_reloads);
    registry.register("reloads", "Tables loaded anew, by result", reloads);
    let unsafe_changes = Family::<Outcome, Counter>::default();
    unsafe_changes.get_or_create(&Outcome { result: "made" }).inc_by(snapshot.unsafe_changes);
    unsafe_changes.get_or_create(&Outcome { result: "refused" }).inc_by(snapshot.refused_changes);
    let help = "Changes that could break established flows, by what was done with them";
    registry.register("unsafe_changes", help, unsafe_changes);
    let reloading = u64::from(snapshot.phase == Phase::Reloading);
    registry.register("reloading", "Whether a reload is running", gauge(reloading));
    let last = snapshot.last_reload.as_ref();
    let well = u64::from(last.is_none_or(|last| last.error.is_none()));
    registry.register("last_reload_success", "Whether the last reload succeeded", gauge(well));
    registry.register_with_unit(
        "last_reload_timestamp",
        "End of the last reload as Unix time; 0 if there was none",
        Unit::Seconds,
        since_epoch(last.map(|last| last.at)),
    );
    registry.register_with_unit(
        "last_reload_duration",
        "Duration of the last reload",
        Unit::Seconds,
        seconds(last.map_or(0.0, |last| last.took.as_secs_f64())),
    );
}

impl Metered {
    fn interfaces(&self, registry: &mut Registry) {
        let attached = Gauges::<Interface>::default();
        let generations = Gauges::<Interface>::default();
        for view in self.observer.interfaces() {
            let labels = Interface { interface: view.name };
            attached.get_or_create(&labels).set(i64::from(view.attached));
            let number = view.generation.unwrap_or(0).try_into().unwrap_or(i64::MAX);
            generations.get_or_create(&labels).set(number);
        }
        let help = "Whether a generation of this director is attached to the interface";
        registry.register("interface_attached", help, attached);
        let help = "Generation attached to the interface; 0 for none";
        registry.register("interface_generation", help, generations);
    }

    fn tables(&self, registry: &mut Registry, report: &Report) {
        let rows = Gauges::<Hop>::default();
        let states = Gauges::<BackendState>::default();
        let (healthy, reachable) = (Gauges::<Backend>::default(), Gauges::<Backend>::default());
        for view in self.observer.backends(report) {
            let labels = Backend { table: view.table, backend: view.address.to_string() };
            healthy.get_or_create(&labels).set(i64::from(view.healthy));
            reachable.get_or_create(&labels).set(i64::from(view.next_hop.is_some()));
            let Backend { table, backend } = labels;
            for (hop, count) in (1..).zip(view.rows) {
                let (table, backend) = (table.clone(), backend.clone());
                rows.get_or_create(&Hop { table, backend, hop }).set(count.into());
            }
            states.get_or_create(&BackendState { table, backend, state: view.state }).set(1);
        }
        let help = "Rows, of 65,536, that list the backend at this hop";
        registry.register("backend_rows", help, rows);
        registry.register("backend_state_info", "State of the backend in the table", states);
        registry.register("backend_healthy", "Health of the backend in the table", healthy);
        let help = "Whether the backend has a usable next hop";
        registry.register("backend_reachable", help, reachable);
    }
}

/// The prober's results. A probe that was not sent has no value.
fn probes(registry: &mut Registry, probes: &ProbeSnapshot) {
    if probes.state == ProberState::Disabled {
        return;
    }
    let running = gauge(u64::from(probes.state == ProberState::Running));
    registry.register("prober_running", "Whether the director probes its backends now", running);
    let success = Gauges::<ProbeLabels>::default();
    for result in probes.results.iter().filter(|result| result.error.is_none()) {
        let answered = i64::from(result.is_answered());
        success.get_or_create(&ProbeLabels::of(result)).set(answered);
    }
    let help = "Whether the backend answered the last probe, by family of the VIP and size";
    registry.register("probe_success", help, success);
    let help = "Time from a probe to its answer";
    registry.register_with_unit("probe", help, Unit::Seconds, ProbeLatency::clone(&probes.latency));
}

/// Tables and backends without a counter slot: slots of live generations are not reused.
fn overflow(registry: &mut Registry, snapshot: &StatusSnapshot, report: &Report) {
    let of_tables: HashSet<&str> = report.tables.iter().map(|table| table.name.as_str()).collect();
    let of_backends: HashSet<(&str, IpAddr)> =
        report.backends.iter().map(|backend| (backend.table.as_str(), backend.address)).collect();
    let tables = snapshot.in_force.iter().flat_map(|in_force| &in_force.tables.tables);
    let backends = tables.clone().flat_map(|table| {
        table.backends.iter().map(|backend| (table.name.as_str(), backend.address))
    });
    let tables = tables.filter(|table| !of_tables.contains(table.name.as_str())).count();
    let backends = backends.filter(|backend| !of_backends.contains(backend)).count();
    let help = "Tables in force without a counter slot of their own: they share the overflow slot";
    registry.register("overflow_tables", help, gauge(tables as u64));
    let help =
        "Backends in force without a counter slot of their own: they share the overflow slot";
    registry.register("overflow_backends", help, gauge(backends as u64));
}

fn packets(registry: &mut Registry, report: Report) {
    let reasons = PacketsAndBytes::<Reason>::default();
    // Every reason is exported as 0 from the first scrape on, so that its first packet is an increase.
    // Tables have the reasons of their packets, "no table" those of packets passed to the kernel.
    let zeros = report.backends.iter().map(|backend| (&backend.table, false));
    let none = String::new();
    let zeros = zeros.chain([(&none, true)]).collect::<BTreeSet<_>>();
    for (table, is_none) in zeros {
        let all = DirectorReason::ALL.iter();
        for reason in all.filter(|reason| (reason.action() == Action::Pass) == is_none) {
            let (reason, action) = (reason.name().to_owned(), action_name(reason.action()));
            reasons.add(&Reason { table: table.clone(), reason, action }, 0, 0);
        }
    }
    let no_table = report.reasons.into_iter().map(|counted| (String::new(), counted));
    let of_tables = report.tables.into_iter().flat_map(|table| {
        table.reasons.into_iter().map(move |counted| (table.name.clone(), counted))
    });
    for (table, (reason, count)) in no_table.chain(of_tables) {
        let action = counters::action(&reason).map_or("unknown", action_name);
        reasons.add(&Reason { table, reason, action }, count.packets, count.bytes);
    }
    let what = "by table (empty for none), reason and action";
    reasons.register(registry, "packets", "received", what);
    let backends = PacketsAndBytes::<Backend>::default();
    for backend in report.backends {
        let labels = Backend { table: backend.table, backend: backend.address.to_string() };
        backends.add(&labels, backend.count.packets, backend.count.bytes);
    }
    backends.register(registry, "backend_packets", "backend", "sent, by first hop");
}

/// The name of an action in the metrics.
fn action_name(action: Action) -> &'static str {
    match action {
        Action::Pass => "pass",
        Action::Send => "send",
        Action::Take => "take",
        Action::Drop => "drop",
        Action::Answer => "answer",
    }
}
