//! TCP connections to a VIP through the tunnel to a chosen backend.
//!
//! The kernel's own TCP opens the connection. Its packets carry a mark, and a routing rule sends marked
//! packets to a TUN device. There each packet is encapsulated in GUE and sent to the backend that its
//! source port stands for. Replies arrive directly, as for any client. The device and its routes go
//! with the process; the rule stays and has no effect without them.

use std::{
    collections::HashMap,
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures::TryStreamExt as _;
use rtnetlink::{
    Handle, LinkUnspec, RouteMessageBuilder,
    packet_route::{
        route::RouteMessage,
        rule::{RuleAction, RuleAttribute},
    },
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::unix::AsyncFd,
    net::{TcpSocket, TcpStream},
    sync::Notify,
    time::Instant,
};
use tracing::{error, warn};

use super::{CurrentStep, Failure, gue::encapsulate};
use crate::check::{Target, VipCheck};

/// The packet mark and the routing table's id of device number 0. Each checker on a machine has its own
/// device, and adds that device's number.
const FIRST_MARK: u32 = 0x676c_0000;
/// Prefix of the device's name; the kernel appends a number.
const NAME: &str = "glbcheck";
/// Priority of the routing rule: after the local table's, before the main table's.
const PRIORITY: u32 = 19_523;

/// Shortest time between two restorations of a removed device or rule.
const RESTORE_INTERVAL: Duration = Duration::from_secs(1);

/// Why the tunnel device cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum VipTunnelError {
    /// The TUN device cannot be created.
    #[error("cannot create a TUN device: {0}. It needs /dev/net/tun and CAP_NET_ADMIN.")]
    Device(io::Error),
    /// The routes or the rule cannot be added.
    #[error("cannot route to the TUN device ({step}): {problem}. It needs CAP_NET_ADMIN.")]
    Route {
        /// The operation that failed.
        step: &'static str,
        /// The error.
        problem: String,
    },
}

/// The backend of a connection.
#[derive(Clone, Copy, Debug)]
struct Destination {
    backend: SocketAddr,
    /// True if a packet of the connection has passed the device.
    used: bool,
}

/// Destinations by address family (true for IPv4) and source port of the connection.
type Destinations = Arc<Mutex<HashMap<(bool, u16), Destination>>>;

/// The TUN device, and the destinations of the connections through it.
#[derive(Debug)]
pub struct VipTunnel {
    destinations: Destinations,
    /// Notified when a connection did not pass the device.
    bypassed: Arc<Notify>,
    /// The mark that routes packets to the device.
    mark: Arc<AtomicU32>,
    carrier: tokio::task::AbortHandle,
}

impl Drop for VipTunnel {
    fn drop(&mut self) {
        self.carrier.abort();
    }
}

impl VipTunnel {
    /// Creates the device and routes marked packets to it.
    ///
    /// # Errors
    /// The process lacks CAP_NET_ADMIN.
    pub(super) async fn open() -> Result<Self, VipTunnelError> {
        let device = open_device().map_err(VipTunnelError::Device)?;
        route(&device).await?;
        let destinations = Destinations::default();
        let bypassed = Arc::new(Notify::new());
        let mark = Arc::new(AtomicU32::new(device.mark));
        let carrier = forward_and_restore(
            device,
            Arc::clone(&mark),
            Arc::clone(&destinations),
            Arc::clone(&bypassed),
        );
        Ok(Self { destinations, bypassed, mark, carrier: tokio::spawn(carrier).abort_handle() })
    }

    /// Connects to a VIP by way of the target's backend.
    pub(super) async fn connect(
        &self,
        target: &Target,
        vip: &VipCheck,
        step: &CurrentStep,
    ) -> Result<TcpStream, Failure> {
        step.set("connect through the tunnel");
        let failed = |source| Failure::Io { step: "connect through the tunnel", source };
        let backend = SocketAddr::new(target.address, vip.tunnel_port);
        let v4 = vip.address.is_ipv4();
        let own = match target.check.settings.source {
            Some(source) => source,
            None => own_address(vip).map_err(|error| {
                let vip = vip.address;
                Failure::Setup(format!(
                    "{error}: add a route to {vip} on this machine, or set `source`"
                ))
            })?,
        };
        if own == vip.address {
            let text =
                format!("this machine has the VIP {own} itself: run the check on another machine");
            return Err(Failure::Setup(text));
        }
        let domain = if v4 { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        socket.set_linger(Some(Duration::ZERO)).map_err(failed)?;
        socket.set_tcp_nodelay(true).map_err(failed)?;
        socket.set_mark(self.mark.load(Ordering::Relaxed)).map_err(failed)?;
        // The source port identifies the connection, so it is chosen before the first packet.
        socket.bind(&SocketAddr::new(own, 0).into()).map_err(failed)?;
        let port = socket.local_addr().map_err(failed)?.as_socket().map_or(0, |own| own.port());
        // The entry stays after the connection for its last packets; a connection that reuses the port
        // replaces it.
        lock(&self.destinations).insert((v4, port), Destination { backend, used: false });
        let socket = TcpSocket::from_std_stream(socket.into());
        let passage = Passage { tunnel: self, key: (v4, port) };
        let stream = socket.connect(SocketAddr::new(vip.address, vip.port)).await;
        if !passage.is_used() {
            let text =
                "the connection bypassed the tunnel: the TUN device or the routing rule is missing";
            return Err(Failure::Setup(text.into()));
        }
        stream.map_err(failed)
    }
}

/// A connection that must pass the device: otherwise its reply came from another backend. Dropping it
/// reports a connection that did not.
struct Passage<'t> {
    tunnel: &'t VipTunnel,
    key: (bool, u16),
}

impl Passage<'_> {
    fn is_used(&self) -> bool {
        lock(&self.tunnel.destinations).get(&self.key).is_some_and(|destination| destination.used)
    }
}

impl Drop for Passage<'_> {
    fn drop(&mut self) {
        if !self.is_used() {
            self.tunnel.bypassed.notify_one();
        }
    }
}

fn lock(
    destinations: &Destinations,
) -> std::sync::MutexGuard<'_, HashMap<(bool, u16), Destination>> {
    destinations.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the source address that the kernel chooses for the VIP; sends nothing.
fn own_address(vip: &VipCheck) -> io::Result<IpAddr> {
    let any: IpAddr = match vip.address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect((vip.address, vip.port))?;
    Ok(socket.local_addr()?.ip())
}

/// A TUN device; the kernel removes it when its file is closed.
#[derive(Debug)]
struct Device {
    file: AsyncFd<File>,
    name: String,
    /// The mark of its packets, and the id of its routing table.
    mark: u32,
}

fn open_device() -> io::Result<Device> {
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all-zero bytes are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(format!("{NAME}%d").as_bytes()) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the descriptor is open, and the request outlives the call and is of its shape.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let name: Vec<u8> = request
        .ifr_name
        .iter()
        .map(|byte| byte.to_ne_bytes()[0])
        .take_while(|byte| *byte != 0)
        .collect();
    // SAFETY: the descriptor is open; the call takes and gives plain numbers.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    // SAFETY: as above.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let name = String::from_utf8_lossy(&name).into_owned();
    let number = name.strip_prefix(NAME).and_then(|number| number.parse::<u16>().ok());
    let number = number.ok_or_else(|| io::Error::other(format!("{name} has no number")))?;
    // SAFETY: the file owns its descriptor and keeps it open and the same until it is dropped.
    let file = unsafe { AsyncFd::register(file) };
    Ok(Device { file: file?, name, mark: FIRST_MARK + u32::from(number) })
}

async fn route(device: &Device) -> Result<(), VipTunnelError> {
    let failed = |step| {
        move |problem: &dyn std::fmt::Display| VipTunnelError::Route {
            step,
            problem: problem.to_string(),
        }
    };
    let (connection, netlink, _) =
        rtnetlink::new_connection().map_err(|error| failed("netlink")(&error))?;
    let connection = tokio::spawn(connection);
    let done = routes(&netlink, &device.name, device.mark).await;
    connection.abort();
    done
}

async fn routes(netlink: &Handle, name: &str, mark: u32) -> Result<(), VipTunnelError> {
    let failed = |step| {
        move |error: rtnetlink::Error| VipTunnelError::Route { step, problem: error.to_string() }
    };
    let mut links = netlink.link().get().match_name(name.to_owned()).execute();
    let link = links.try_next().await.map_err(failed("find the device"))?;
    let index = link.map(|link| link.header.index).unwrap_or_default();
    // A small MTU, so that encapsulated packets fit any link.
    let up = LinkUnspec::new_with_index(index).mtu(1280).up().build();
    netlink.link().set(up).execute().await.map_err(failed("set the device up"))?;
    for v4 in [true, false] {
        let message: RouteMessage = if v4 {
            RouteMessageBuilder::<Ipv4Addr>::new().output_interface(index).table_id(mark).build()
        } else {
            RouteMessageBuilder::<Ipv6Addr>::new().output_interface(index).table_id(mark).build()
        };
        let added = netlink.route().add(message).replace().execute().await;
        match added {
            Err(_) if !v4 => return Ok(()), // This machine has no IPv6.
            other => other.map_err(failed("add a route"))?,
        }
        add_rule(netlink, v4, mark).await.map_err(failed("add a rule"))?;
    }
    Ok(())
}

/// Adds the routing rule. It outlives the process, has no effect while its table is empty, and is used
/// by the next start.
async fn add_rule(netlink: &Handle, v4: bool, mark: u32) -> Result<(), rtnetlink::Error> {
    let request = netlink.rule().add();
    let of_mark = RuleAttribute::FwMark(mark);
    let added = if v4 {
        let mut request =
            request.v4().table_id(mark).priority(PRIORITY).action(RuleAction::ToTable);
        request.message_mut().attributes.push(of_mark);
        request.execute().await
    } else {
        let mut request =
            request.v6().table_id(mark).priority(PRIORITY).action(RuleAction::ToTable);
        request.message_mut().attributes.push(of_mark);
        request.execute().await
    };
    match added {
        Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -libc::EEXIST => {
            Ok(())
        }
        other => other,
    }
}

/// Forwards packets, and restores device, routes and rule when another program has removed them.
async fn forward_and_restore(
    mut device: Device,
    mark: Arc<AtomicU32>,
    destinations: Destinations,
    bypassed: Arc<Notify>,
) {
    let mut restored = None;
    loop {
        let gone = tokio::select! {
            () = forward(&device.file, &destinations) => true,
            () = bypassed.notified() => false,
        };
        // Limited, because restoring does not help if other rules keep packets from the device.
        if let Some(at) =
            restored.map(|at: Instant| at + RESTORE_INTERVAL).filter(|at| *at > Instant::now())
        {
            if !gone {
                continue;
            }
            tokio::time::sleep_until(at).await;
        }
        restored = Some(Instant::now());
        warn!("`vip` checks bypass the tunnel: restoring its TUN device and routing rule");
        if !gone && route(&device).await.is_ok() {
            continue;
        }
        let done = match open_device() {
            Ok(new) => {
                device = new;
                mark.store(device.mark, Ordering::Relaxed);
                route(&device).await
            }
            Err(problem) => Err(VipTunnelError::Device(problem)),
        };
        if let Err(error) = done {
            error!(%error, "cannot restore the tunnel of `vip` checks");
            tokio::time::sleep(RESTORE_INTERVAL).await;
        }
    }
}

/// Encapsulates the device's packets and sends them to their backends, until the device is removed.
async fn forward(device: &AsyncFd<File>, destinations: &Destinations) {
    let udp_socket = |any: IpAddr| {
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_nonblocking(true).map(|()| socket)
    };
    let v4 = udp_socket(Ipv4Addr::UNSPECIFIED.into());
    let v6 = udp_socket(Ipv6Addr::UNSPECIFIED.into());
    let mut packet = [0; 2048];
    loop {
        let Ok(mut ready) = device.readable().await else { return };
        let read = ready.try_io(|device| io::Read::read(&mut device.get_ref(), &mut packet));
        let length = match read {
            Ok(Ok(length)) => length,
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => continue,
            Ok(Err(_)) => return,
            Err(_) => continue,
        };
        let Some(key) = source_port(&packet[..length]) else { continue };
        let destination = lock(destinations).get_mut(&key).map(|destination| {
            destination.used = true;
            destination.backend
        });
        let Some(backend) = destination else { continue };
        let socket = if backend.is_ipv4() { &v4 } else { &v6 };
        if let Ok(socket) = socket {
            // A packet that cannot be sent is lost; the probe's timeout reports that.
            drop(socket.send_to(&encapsulate(&packet[..length], backend.ip()), backend));
        }
    }
}

/// Returns whether a TCP packet is IPv4, and its source port.
fn source_port(packet: &[u8]) -> Option<(bool, u16)> {
    let (v4, protocol, header) = match packet.first()? >> 4 {
        4 => (true, packet.get(9)?, usize::from(packet[0] & 0xf) * 4),
        6 => (false, packet.get(6)?, 40),
        _ => return None,
    };
    if *protocol != 6 {
        return None;
    }
    let port = packet.get(header..header + 2)?;
    Some((v4, u16::from_be_bytes([port[0], port[1]])))
}
