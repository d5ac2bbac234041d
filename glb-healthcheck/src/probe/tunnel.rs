//! Real connections to a VIP through the tunnel to one chosen backend.
//!
//! The kernel's own TCP does the handshake. Its packets to the VIP carry a mark; a routing rule
//! leads what is marked into a TUN device, where each packet is wrapped in GUE and sent to the
//! backend that its source port stands for. The answers come directly, as every client's do. The
//! device, its rule and its routes end with this process, however it ends.

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

use super::{Failure, Step, echo::tunnelled};
use crate::check::{Target, Vip};

/// Marks packets for the tunnel, and names the routing table that leads there: this plus the device's
/// number, so that each checker of a machine has its own.
const MARKS: u32 = 0x676c_0000;
/// The devices' name; the kernel gives each its number.
const NAME: &str = "glbcheck";
/// Before the main table, after the local one.
const PRIORITY: u32 = 19_523;

/// What somebody removes is made anew this often at most.
const RESTORE_GAP: Duration = Duration::from_secs(1);

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The device.
    #[error("cannot make a TUN device: {0}; it needs /dev/net/tun and CAP_NET_ADMIN")]
    Device(io::Error),
    /// Routes.
    #[error("cannot route to the tunnel ({step}): {problem}; it needs CAP_NET_ADMIN")]
    Route {
        /// What was being done.
        step: &'static str,
        /// What the kernel says.
        problem: String,
    },
}

/// Where the packets of a connection go.
#[derive(Clone, Copy, Debug)]
struct Way {
    backend: SocketAddr,
    /// Whether one has come out of the device.
    used: bool,
}

/// Ways by family and source port of the connection.
type Ways = Arc<Mutex<HashMap<(bool, u16), Way>>>;

/// The device, and who is behind which connection.
#[derive(Debug)]
pub struct Tunnel {
    ways: Ways,
    /// Told when a connection did not go through the device.
    missed: Arc<Notify>,
    /// What leads to the device.
    mark: Arc<AtomicU32>,
    keeper: tokio::task::AbortHandle,
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Tunnel {
    /// Makes the device and leads marked packets into it.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN.
    pub(super) async fn open() -> Result<Self, TunnelError> {
        let device = open_device().map_err(TunnelError::Device)?;
        route(&device).await?;
        let ways = Ways::default();
        let missed = Arc::new(Notify::new());
        let mark = Arc::new(AtomicU32::new(device.mark));
        let keeper = keep(device, Arc::clone(&mark), Arc::clone(&ways), Arc::clone(&missed));
        Ok(Self { ways, missed, mark, keeper: tokio::spawn(keeper).abort_handle() })
    }

    pub(super) async fn connect(
        &self,
        target: &Target,
        vip: &Vip,
        step: &Step,
    ) -> Result<TcpStream, Failure> {
        step.set("connect through the tunnel");
        let failed = |source| Failure::Io { step: "connect through the tunnel", source };
        let backend = SocketAddr::new(target.address, vip.tunnel);
        let v4 = vip.address.is_ipv4();
        let own = match target.check.pace.source {
            Some(source) => source,
            None => own_address(vip).map_err(|error| {
                let vip = vip.address;
                Failure::Setup(format!("{error}: give this machine a route to {vip}, or `source`"))
            })?,
        };
        if own == vip.address {
            let text = format!("this machine has the VIP {own} itself: check it from another one");
            return Err(Failure::Setup(text));
        }
        let domain = if v4 { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        socket.set_linger(Some(Duration::ZERO)).map_err(failed)?;
        socket.set_tcp_nodelay(true).map_err(failed)?;
        socket.set_mark(self.mark.load(Ordering::Relaxed)).map_err(failed)?;
        // The port must be known before the first packet.
        socket.bind(&SocketAddr::new(own, 0).into()).map_err(failed)?;
        let port = socket.local_addr().map_err(failed)?.as_socket().map_or(0, |own| own.port());
        // It stays after the connection's end, for its last packet; the port's next user replaces it.
        lock(&self.ways).insert((v4, port), Way { backend, used: false });
        let socket = TcpSocket::from_std_stream(socket.into());
        // However the connection ends, also at its timeout.
        let passage = Passage { tunnel: self, key: (v4, port) };
        let stream = socket.connect(SocketAddr::new(vip.address, vip.port)).await;
        if !passage.is_used() {
            let text =
                "the connection did not go through the tunnel: its device or routing rule is gone";
            return Err(Failure::Setup(text.into()));
        }
        stream.map_err(failed)
    }
}

/// A connection that must go through the device: on any other way somebody else would answer.
struct Passage<'t> {
    tunnel: &'t Tunnel,
    key: (bool, u16),
}

impl Passage<'_> {
    fn is_used(&self) -> bool {
        lock(&self.tunnel.ways).get(&self.key).is_some_and(|way| way.used)
    }
}

impl Drop for Passage<'_> {
    fn drop(&mut self) {
        if !self.is_used() {
            self.tunnel.missed.notify_one();
        }
    }
}

fn lock(ways: &Ways) -> std::sync::MutexGuard<'_, HashMap<(bool, u16), Way>> {
    ways.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The address that this machine would ask the VIP from by itself; nothing is sent.
fn own_address(vip: &Vip) -> io::Result<IpAddr> {
    let any: IpAddr = match vip.address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect((vip.address, vip.port))?;
    Ok(socket.local_addr()?.ip())
}

/// A TUN device that goes with its process.
#[derive(Debug)]
struct Device {
    file: AsyncFd<File>,
    name: String,
    /// Of packets that are led to it, and of the table that leads them.
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
    Ok(Device { file: file?, name, mark: MARKS + u32::from(number) })
}

async fn route(device: &Device) -> Result<(), TunnelError> {
    let failed = |step| {
        move |problem: &dyn std::fmt::Display| TunnelError::Route {
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

async fn routes(netlink: &Handle, name: &str, mark: u32) -> Result<(), TunnelError> {
    let failed = |step| {
        move |error: rtnetlink::Error| TunnelError::Route { step, problem: error.to_string() }
    };
    let mut links = netlink.link().get().match_name(name.to_owned()).execute();
    let link = links.try_next().await.map_err(failed("find the device"))?;
    let index = link.map(|link| link.header.index).unwrap_or_default();
    // Small packets only; they must fit into the tunnel on any link.
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
            Err(_) if !v4 => return Ok(()), // A machine without IPv6.
            other => other.map_err(failed("add a route"))?,
        }
        add_rule(netlink, v4, mark).await.map_err(failed("add a rule"))?;
    }
    Ok(())
}

/// A rule outlives the process; without a route in its table it leads nowhere, and the next start
/// finds it there.
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

/// Carries packets, and makes device, routes and rule anew when somebody has removed them.
async fn keep(mut device: Device, mark: Arc<AtomicU32>, ways: Ways, missed: Arc<Notify>) {
    let mut restored = None;
    loop {
        let gone = tokio::select! {
            () = carry(&device.file, &ways) => true,
            () = missed.notified() => false,
        };
        // Where something else keeps packets from the device, this does not help.
        if let Some(at) =
            restored.map(|at: Instant| at + RESTORE_GAP).filter(|at| *at > Instant::now())
        {
            if !gone {
                continue;
            }
            tokio::time::sleep_until(at).await;
        }
        restored = Some(Instant::now());
        warn!(
            "checks of VIPs do not go through the tunnel: its device and routing rules are made anew"
        );
        if !gone && route(&device).await.is_ok() {
            continue;
        }
        let done = match open_device() {
            Ok(new) => {
                device = new;
                mark.store(device.mark, Ordering::Relaxed);
                route(&device).await
            }
            Err(problem) => Err(TunnelError::Device(problem)),
        };
        if let Err(problem) = done {
            error!("{problem}");
            tokio::time::sleep(RESTORE_GAP).await;
        }
    }
}

/// Wraps what the kernel sends into the device, and sends it to its backend, until the device is gone.
async fn carry(device: &AsyncFd<File>, ways: &Ways) {
    let out = |any: IpAddr| {
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_nonblocking(true).map(|()| socket)
    };
    let v4 = out(Ipv4Addr::UNSPECIFIED.into());
    let v6 = out(Ipv6Addr::UNSPECIFIED.into());
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
        let way = lock(ways).get_mut(&key).map(|way| {
            way.used = true;
            way.backend
        });
        let Some(backend) = way else { continue };
        let socket = if backend.is_ipv4() { &v4 } else { &v6 };
        if let Ok(socket) = socket {
            // What cannot be sent is lost, as on any way; the probe's timeout tells.
            drop(socket.send_to(&tunnelled(&packet[..length], backend.ip()), backend));
        }
    }
}

/// Whether a TCP packet is IPv4, and its source port.
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
