//! Probes every backend through the attached program, all the time.
//!
//! At each interval, for each table, family of VIP and backend, the prober sends a small packet and one
//! of full size, as a client's packets go:
//!
//! 1. The attached program itself handles a made-up client's packet whose row has this backend first
//!    (`BPF_PROG_TEST_RUN`). That shows that the program, its tables and its next hop are right.
//! 2. In what the program made of it, an ICMP echo request of the same length takes the place of the
//!    inner packet. Its source is this machine, so that the answer comes back here.
//! 3. The frame leaves by the driver's XDP transmission (`xdp_send`), with DF set.
//! 4. The backend's program decapsulates it, and the backend's kernel answers from the VIP.
//!
//! A lost probe is repeated at once; two losses in a row are a failure. [`crate::probe_results`] says
//! what the results mean. Probes are counted like clients' packets, so the prober pauses during a drain.
//! It does not replace health checks: those judge backends, the prober judges this director's paths.

mod packet;
mod reply_socket;
mod xdp_send;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use aya::programs::Xdp;
use glb_common::{
    flow::{Address as _, FiveTuple, V4, V6},
    hash::flow_hash,
};
use glb_host::{
    bpffs::PinFolder,
    generations,
    next_hop::{NextHop, Snapshot},
    raw_socket,
};
use glb_table::Table;
use tokio::sync::watch;
use tracing::{debug, info, warn};

pub use self::reply_socket::open_reply_sockets;
use self::xdp_send::XdpSender;
use crate::{
    config::Config,
    daemon_status::{ActiveTables, DaemonStatus},
    generation::self_test,
    model::Phase,
    probe_results::{
        FAILING_AFTER, ProbeLabels, ProbeLatency, ProbeResult, ProbeSize, ProbeSnapshot,
        ProberState, new_latency,
    },
};

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Made-up clients that are tried for each backend of a table.
const CLIENTS: u32 = 400;
/// The largest inner packet: a test run takes no more than one page.
const MAX_PACKET: usize = 3_300;
/// The pause between looks at the status.
const TICK: Duration = Duration::from_millis(100);

/// Starts the prober's thread, which ends with the daemon.
///
/// # Errors
/// When the thread cannot be started.
pub fn start(config: &Config, status: &Arc<DaemonStatus>, pins: &PinFolder) -> io::Result<()> {
    let (results, receiver) = watch::channel(Arc::default());
    status.follow_probes(receiver);
    let prober = Prober {
        interfaces: config.interfaces.clone(),
        pins: pins.clone(),
        interval: config.probe.interval,
        max_size: config.probe.size.map_or(MAX_PACKET, usize::from).min(MAX_PACKET),
        outer_sources: [
            config.options.outer_source.map(IpAddr::from),
            config.options.outer_source_ipv6.map(IpAddr::from),
        ],
        status: Arc::clone(status),
        sender: XdpSender::default(),
        sends_by_xdp: true,
        number: u64::from(std::process::id()) << 32,
        generation: 0,
        targets: Vec::new(),
        known: BTreeMap::new(),
        latency: Arc::new(new_latency()),
        results,
    };
    thread::Builder::new().name("prober".into()).spawn(move || prober.run()).map(drop)
}

/// A backend of a table, probed over one VIP.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Target {
    table: String,
    vip: IpAddr,
    backend: IpAddr,
    port: u16,
    protocol: u8,
    healthy: bool,
    /// A made-up client whose row has the backend first.
    client: (IpAddr, u16),
}

/// A probe that waits for its answer.
struct Sent {
    index: usize,
    size: ProbeSize,
    at: Instant,
}

struct Prober {
    interfaces: Vec<String>,
    pins: PinFolder,
    interval: Duration,
    max_size: usize,
    outer_sources: [Option<IpAddr>; 2],
    status: Arc<DaemonStatus>,
    sender: XdpSender,
    sends_by_xdp: bool,
    /// The number of the last probe.
    number: u64,
    /// The generation that `targets` are of.
    generation: u64,
    targets: Vec<Target>,
    known: BTreeMap<(Target, ProbeSize), ProbeResult>,
    latency: Arc<ProbeLatency>,
    results: watch::Sender<Arc<ProbeSnapshot>>,
}

impl Prober {
    fn run(mut self) {
        let mut next = Instant::now();
        loop {
            let snapshot = self.status.snapshot();
            if snapshot.phase == Phase::Ending {
                return;
            }
            if let Some(active) = &snapshot.in_force {
                let is_new = active.generation != self.generation;
                if is_new || Instant::now() >= next {
                    next = Instant::now() + self.interval;
                    self.round(active);
                }
            }
            thread::sleep(TICK);
        }
    }

    /// Probes all targets, and those again whose probes were lost.
    fn round(&mut self, active: &ActiveTables) {
        if self.status.announcements().drain.is_some() {
            return self.publish(ProberState::Paused);
        }
        if reply_socket::sockets().is_empty() {
            let why = "no ICMP socket can be opened; allow the daemon's group in \
                       `net.ipv4.ping_group_range`, or disable the prober (`[probe] enabled = false`)";
            return self.publish(ProberState::Unavailable(why.into()));
        }
        if active.generation != self.generation {
            self.generation = active.generation;
            self.targets = active.tables.tables.iter().flat_map(targets).collect();
            let targets: BTreeSet<&Target> = self.targets.iter().collect();
            let gone = |key: &(Target, ProbeSize)| !targets.contains(&key.0);
            for (key, result) in &self.known {
                if gone(key) {
                    self.latency.remove(&ProbeLabels::of(result));
                }
            }
            self.known.retain(|key, _| !gone(key));
        }
        let program = match generations::current_program(&self.interfaces, &self.pins) {
            Ok(Some((_, program))) => program,
            Ok(None) => {
                return self.publish(ProberState::Unavailable("no program is attached".into()));
            }
            Err(error) => return self.publish(ProberState::Unavailable(error.to_string())),
        };
        let mut all: Vec<usize> = (0..self.targets.len()).collect();
        for _ in 0..FAILING_AFTER {
            all = self.attempt(&program, &all);
            if all.is_empty() {
                break;
            }
        }
        self.publish(ProberState::Running);
    }

    /// Probes these targets once. Returns those that lost a probe which is not failing yet.
    fn attempt(&mut self, program: &Xdp, indices: &[usize]) -> Vec<usize> {
        let next_hops = self.status.next_hops().unwrap_or_default();
        let mut sent: HashMap<u64, Sent> = HashMap::new();
        for &index in indices {
            let mut overhead = None;
            for size in [ProbeSize::Small, ProbeSize::Full] {
                let target = self.targets[index].clone();
                match self.send(program, &target, size, &next_hops, &mut overhead) {
                    Ok(()) => {
                        sent.insert(self.number, Sent { index, size, at: Instant::now() });
                    }
                    Err(why) => self.record(&target, size, |result| result.error = Some(why)),
                }
            }
            self.receive(&mut sent, Duration::ZERO);
        }
        let deadline = Instant::now() + TIMEOUT;
        while !sent.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.receive(&mut sent, left);
        }
        let mut again = BTreeSet::new();
        for lost in sent.into_values() {
            let target = self.targets[lost.index].clone();
            self.record(&target, lost.size, |result| {
                result.error = None;
                result.losses = result.losses.saturating_add(1);
                if !result.is_failing() {
                    again.insert(lost.index);
                }
            });
        }
        again.into_iter().collect()
    }

    /// Sends one probe. `overhead` is the length of the outer headers, once it is known.
    fn send(
        &mut self,
        program: &Xdp,
        target: &Target,
        size: ProbeSize,
        next_hops: &Snapshot,
        overhead: &mut Option<usize>,
    ) -> Result<(), String> {
        let hop = match next_hops.get(&target.backend) {
            Some(Ok(hop)) => *hop,
            Some(Err(why)) => return Err(format!("no next hop: {why}")),
            None => return Err("the kernel has not named a next hop yet".into()),
        };
        let source = self.source(target, &hop)?;
        let smallest = packet::smallest(target.vip);
        let length = match size {
            ProbeSize::Small => smallest,
            ProbeSize::Full => {
                let overhead = overhead.ok_or("the small probe was not sent")?;
                (hop.mtu as usize).saturating_sub(overhead).clamp(smallest, self.max_size)
            }
        };
        self.record(target, size, |result| {
            (result.bytes, result.source, result.healthy) = (length, Some(source), target.healthy);
        });
        let vip = (target.vip, target.port);
        let client = packet::client_frame(target.client, vip, target.protocol, length);
        let (verdict, mut frame) =
            self_test::test_run(program, &client).map_err(|error| error.to_string())?;
        let inner = frame.len().saturating_sub(length);
        if inner <= 14 || frame[inner..] != client[14..] {
            return Err(format!(
                "the attached program does not forward it (XDP verdict {verdict})"
            ));
        }
        if packet::outer_destination(&frame) != Some(target.backend) {
            return Err("the attached program forwards it to another backend".into());
        }
        *overhead = Some(inner - 14);
        let socket = reply_socket::sockets().iter().find(|one| one.is_v4 == target.vip.is_ipv4());
        let identifier = socket.ok_or("no socket for this address family")?.identifier;
        self.number += 1;
        frame.truncate(inner);
        let number = self.number;
        frame.extend(packet::echo_request(source, target.vip, identifier, number, length));
        self.transmit(hop.interface, &frame).map_err(|error| format!("cannot send: {error}"))
    }

    fn transmit(&mut self, interface: u32, frame: &[u8]) -> io::Result<()> {
        if self.sends_by_xdp {
            match self.sender.send(interface, frame) {
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EPERM)) => {
                    info!(%error, "cannot transmit by XDP; probes leave by a packet socket instead");
                    self.sends_by_xdp = false;
                }
                sent => return sent,
            }
        }
        raw_socket::send_frame(interface, frame)
    }

    /// The own address that a probe comes from.
    fn source(&self, target: &Target, hop: &NextHop) -> Result<IpAddr, String> {
        let outer = self.outer_sources.into_iter().flatten().chain(hop.source);
        let source = match outer.into_iter().find(|one| one.is_ipv4() == target.vip.is_ipv4()) {
            Some(source) => source,
            None => own_address(target.vip)
                .map_err(|error| format!("no own address for the VIP's family: {error}"))?,
        };
        if source == target.vip {
            return Err("the VIP is an address of this machine".into());
        }
        Ok(source)
    }

    /// Handles the answers that have arrived, or arrive within `timeout`.
    fn receive(&mut self, sent: &mut HashMap<u64, Sent>, timeout: Duration) {
        let sockets = reply_socket::sockets();
        if !timeout.is_zero() {
            reply_socket::wait(sockets, timeout);
        }
        for socket in sockets {
            while let Some((from, message)) = socket.receive() {
                let Some(number) = packet::answered_number(&message, socket.is_v4) else {
                    continue;
                };
                let Some(answered) = sent.get(&number) else { continue };
                let target = self.targets[answered.index].clone();
                if from != target.vip {
                    continue;
                }
                let (took, size) = (answered.at.elapsed(), answered.size);
                sent.remove(&number);
                let latency = Arc::clone(&self.latency);
                self.record(&target, size, |result| {
                    (result.losses, result.error) = (0, None);
                    result.milliseconds = Some(took.as_secs_f64() * 1e3);
                    latency.get_or_create(&ProbeLabels::of(result)).observe(took.as_secs_f64());
                });
            }
        }
    }

    /// Changes the result of a target, and logs when it begins or ceases to fail.
    fn record(&mut self, target: &Target, size: ProbeSize, change: impl FnOnce(&mut ProbeResult)) {
        let result = self.known.entry((target.clone(), size)).or_insert_with(|| ProbeResult {
            table: target.table.clone(),
            vip: target.vip,
            backend: target.backend,
            size,
            bytes: 0,
            source: None,
            healthy: target.healthy,
            losses: 0,
            milliseconds: None,
            error: None,
        });
        let was_failing = result.is_failing();
        change(result);
        let ProbeResult { table, backend, vip, bytes, error, .. } = &*result;
        if let Some(why) = error {
            debug!(table, %backend, %vip, bytes, why, "probe not sent");
        }
        match (was_failing, result.is_failing()) {
            (false, true) => {
                warn!(table, %backend, %vip, size = size.name(), bytes, "backend does not answer probes");
            }
            (true, false) => {
                info!(table, %backend, %vip, size = size.name(), bytes, "backend answers probes again");
            }
            _ => {}
        }
    }

    fn publish(&self, state: ProberState) {
        let results = self.known.values().cloned().collect();
        let latency = Arc::clone(&self.latency);
        drop(self.results.send(Arc::new(ProbeSnapshot { state, results, latency })));
    }
}

/// The targets of a table: each backend that is the first hop of a row, over each family of VIP.
fn targets(table: &Table) -> Vec<Target> {
    let rows = table.rows();
    let first_hops: Vec<Option<u16>> = rows.iter().map(|row| row.first().copied()).collect();
    let mut found = BTreeMap::new();
    for bind in &table.binds {
        let vip = bind.prefix.addr();
        let backends = found.entry(vip.is_ipv4()).or_insert_with(BTreeMap::<u16, Target>::new);
        if !backends.is_empty() {
            continue;
        }
        let tries = CLIENTS * table.backends.len() as u32;
        for number in 0..tries {
            if backends.len() == table.backends.len() {
                break;
            }
            let client = packet::client(vip, number);
            let (port, protocol) = (*bind.ports.start(), bind.proto.number());
            let flow = five_tuple(client, (vip, port), protocol);
            let row = flow_hash(table.hash_key.words(), table.hash_fields, &flow) as u16;
            let Some(Some(index)) = first_hops.get(usize::from(row)) else { continue };
            let Some(backend) = table.backends.get(usize::from(*index)) else { continue };
            let (table, healthy) = (table.name.clone(), backend.healthy);
            let backend = backend.address;
            let target = Target { table, vip, backend, port, protocol, healthy, client };
            backends.entry(*index).or_insert(target);
        }
    }
    found.into_values().flat_map(BTreeMap::into_values).collect()
}

fn five_tuple(client: (IpAddr, u16), vip: (IpAddr, u16), protocol: u8) -> FiveTuple {
    let words = |address: IpAddr| match address {
        IpAddr::V4(address) => V4::new(address.octets()).words(),
        IpAddr::V6(address) => V6::new(address.octets()).words(),
    };
    FiveTuple {
        source: words(client.0),
        destination: words(vip.0),
        source_port: client.1,
        destination_port: vip.1,
        protocol,
        family: if vip.0.is_ipv4() { 4 } else { 6 },
        padding: 0,
    }
}

/// The address that this machine would reach the VIP from. Nothing is sent.
fn own_address(vip: IpAddr) -> io::Result<IpAddr> {
    let any: IpAddr = match vip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect((vip, 1))?;
    Ok(socket.local_addr()?.ip())
}
