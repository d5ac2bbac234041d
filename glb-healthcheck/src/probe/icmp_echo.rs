//! ICMP echo requests and replies, for `gue` checks and for connectivity targets. One raw socket for
//! each address family receives all replies.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use glb_common::checksum::{fold, sum_4};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{io::unix::AsyncFd, sync::oneshot};

use super::Failure;

/// Marks the payload of our requests.
const MAGIC: [u8; 8] = *b"glbcheck";
/// ICMP type of an echo request.
pub(super) const V4_REQUEST: u8 = 8;
/// ICMP type of an echo reply.
pub(super) const V4_REPLY: u8 = 0;
/// ICMPv6 type of an echo request.
pub(super) const V6_REQUEST: u8 = 128;
/// ICMPv6 type of an echo reply.
const V6_REPLY: u8 = 129;

/// Why ICMP echo requests cannot be sent.
#[derive(Debug, thiserror::Error)]
#[error("cannot open a raw ICMP socket: {0}. It needs root or CAP_NET_RAW.")]
pub struct IcmpEchoError(#[from] io::Error);

/// The requests that wait for a reply, by number, with the address that replies.
type Waiting = Arc<Mutex<HashMap<u64, (IpAddr, oneshot::Sender<()>)>>>;

/// The raw sockets, and the requests that wait for a reply.
#[derive(Debug)]
pub struct IcmpEcho {
    v4: Arc<AsyncFd<Socket>>,
    /// `None` on a machine without IPv6.
    v6: Option<Arc<AsyncFd<Socket>>>,
    waiting: Waiting,
}

/// The number of the last request of this process.
static LAST_NUMBER: AtomicU64 = AtomicU64::new(0);

impl IcmpEcho {
    /// Opens the sockets and starts to receive; needs a running tokio runtime.
    ///
    /// # Errors
    /// The process lacks CAP_NET_RAW.
    pub fn open() -> Result<Self, IcmpEchoError> {
        let v4 = Arc::new(open(Domain::IPV4, Protocol::ICMPV4)?);
        let v6 = open(Domain::IPV6, Protocol::ICMPV6).ok().map(Arc::new);
        let waiting = Waiting::default();
        tokio::spawn(receive(Arc::clone(&v4), Arc::clone(&waiting), true));
        if let Some(v6) = &v6 {
            tokio::spawn(receive(Arc::clone(v6), Arc::clone(&waiting), false));
        }
        Ok(Self { v4, v6, waiting })
    }

    /// Sends an echo request to an address and waits for the reply.
    pub(super) async fn ping(&self, address: IpAddr) -> Result<(), Failure> {
        let failed = |source| Failure::Io { step: "ping", source };
        let reply = self.expect_reply(address);
        let sent = match address {
            IpAddr::V4(_) => {
                let message = message(V4_REQUEST, reply.number, 0);
                self.v4.get_ref().send_to(&message, &SocketAddr::new(address, 0).into())
            }
            IpAddr::V6(_) => {
                // The kernel fills in the checksum.
                let message = message(V6_REQUEST, reply.number, 0);
                let v6 = self.v6.as_ref().ok_or_else(|| failed(no_ipv6()))?;
                v6.get_ref().send_to(&message, &SocketAddr::new(address, 0).into())
            }
        };
        sent.map_err(failed)?;
        reply.wait().await
    }

    /// Registers a request whose reply comes from `from`.
    pub(super) fn expect_reply(&self, from: IpAddr) -> ExpectedReply<'_> {
        // The process id distinguishes checkers on one machine, which receive each other's replies.
        let number =
            u64::from(std::process::id()) << 40 | LAST_NUMBER.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        lock(&self.waiting).insert(number, (from, sender));
        ExpectedReply { waiting: &self.waiting, number, receiver }
    }
}

/// A request that waits for its reply. Dropping it, for instance at a timeout, removes it.
pub(super) struct ExpectedReply<'w> {
    waiting: &'w Waiting,
    /// The number to put into the request.
    pub(super) number: u64,
    receiver: oneshot::Receiver<()>,
}

impl ExpectedReply<'_> {
    /// Waits for the reply without a time limit.
    pub(super) async fn wait(mut self) -> Result<(), Failure> {
        let reply = (&mut self.receiver).await;
        reply.map_err(|_| Failure::Setup("the ICMP receiver has stopped".into()))
    }
}

impl Drop for ExpectedReply<'_> {
    fn drop(&mut self) {
        lock(self.waiting).remove(&self.number);
    }
}

fn lock(
    waiting: &Waiting,
) -> std::sync::MutexGuard<'_, HashMap<u64, (IpAddr, oneshot::Sender<()>)>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

fn no_ipv6() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "this machine has no IPv6")
}

fn open(domain: Domain, protocol: Protocol) -> io::Result<AsyncFd<Socket>> {
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    socket.set_nonblocking(true)?;
    // 10,000 replies may arrive within milliseconds.
    socket.set_recv_buffer_size(4 << 20)?;
    receive_only_replies(&socket, domain == Domain::IPV4)?;
    // SAFETY: the socket owns its descriptor and keeps it open and the same until it is dropped.
    let socket = unsafe { AsyncFd::register(socket) };
    Ok(socket?)
}

/// Sets the kernel's filter of ICMP types (ICMP_FILTER, RFC 3542 section 3.2). A set bit blocks a type.
fn receive_only_replies(socket: &Socket, v4: bool) -> io::Result<()> {
    const ICMP_FILTER: libc::c_int = 1;
    const SOL_RAW: libc::c_int = 255;
    const ICMPV6_FILTER: libc::c_int = 1;
    let mut filter = [u32::MAX; 8];
    let (level, name, length) = if v4 {
        filter[0] &= !(1 << V4_REPLY);
        (SOL_RAW, ICMP_FILTER, 4)
    } else {
        filter[usize::from(V6_REPLY >> 5)] &= !(1 << (V6_REPLY & 31));
        (libc::IPPROTO_ICMPV6, ICMPV6_FILTER, 32)
    };
    // SAFETY: the descriptor is open, and `filter` holds `length` bytes and outlives the call.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, filter.as_ptr().cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

async fn receive(socket: Arc<AsyncFd<Socket>>, waiting: Waiting, v4: bool) {
    let mut buffer = [std::mem::MaybeUninit::<u8>::uninit(); 2048];
    loop {
        let Ok(mut ready) = socket.readable().await else { return };
        let received = ready.try_io(|socket| socket.get_ref().recv_from(&mut buffer));
        let Ok(Ok((length, from))) = received else { continue };
        let Some(from) = from.as_socket() else { continue };
        // SAFETY: the kernel has written the first `length` bytes.
        let bytes: Vec<u8> =
            buffer[..length].iter().map(|byte| unsafe { byte.assume_init() }).collect();
        let Some(number) = reply_number(&bytes, v4) else { continue };
        let mut waiting = lock(&waiting);
        if waiting.get(&number).is_some_and(|(address, _)| *address == from.ip())
            && let Some((_, sender)) = waiting.remove(&number)
        {
            // The probe may have timed out in the meantime.
            sender.send(()).ok();
        }
    }
}

/// Returns the number in a reply to one of our requests. IPv4 raw sockets deliver the IP header too.
pub(super) fn reply_number(packet: &[u8], v4: bool) -> Option<u64> {
    let header = if v4 { usize::from(packet.first()? & 0xf) * 4 } else { 0 };
    let message = packet.get(header..header + 24)?;
    let reply = if v4 { V4_REPLY } else { V6_REPLY };
    if message[0] != reply || message[8..16] != MAGIC {
        return None;
    }
    message[16..24].try_into().ok().map(u64::from_be_bytes)
}

/// Builds an echo request. `pseudo` is the sum of the pseudo header, if the checksum covers one.
pub(super) fn message(kind: u8, number: u64, pseudo: u32) -> [u8; 24] {
    let mut message = [0; 24];
    message[0] = kind;
    message[4..8].copy_from_slice(&number.to_be_bytes()[4..]);
    message[8..16].copy_from_slice(&MAGIC);
    message[16..].copy_from_slice(&number.to_be_bytes());
    let sum = !fold(pseudo + sum(&message));
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// Adds up bytes as an Internet checksum does; their number is a multiple of four.
pub(super) fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks_exact(4).map(|word| sum_4([word[0], word[1], word[2], word[3]])).sum()
}
