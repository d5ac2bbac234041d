//! ICMP echo, plain and inside the GUE tunnel. One raw socket of each family hears all answers.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use glb_common::checksum::{fold, sum_4, sum_16};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{io::unix::AsyncFd, sync::oneshot};

use super::Failure;

const MAGIC: [u8; 8] = *b"glbcheck";
/// Type of an echo request and of its answer.
const V4_TYPES: (u8, u8) = (8, 0);
const V6_TYPES: (u8, u8) = (128, 129);

/// Why echoes cannot be sent.
#[derive(Debug, thiserror::Error)]
#[error("cannot open a raw ICMP socket: {0}; it needs root or CAP_NET_RAW")]
pub struct EchoError(#[from] io::Error);

/// Who waits for which echo.
type Waiting = Arc<Mutex<HashMap<u64, (IpAddr, oneshot::Sender<()>)>>>;

/// Sends echoes and hears the answers.
#[derive(Debug)]
pub struct Echo {
    v4: Arc<AsyncFd<Socket>>,
    /// None on a machine without IPv6.
    v6: Option<Arc<AsyncFd<Socket>>>,
    waiting: Waiting,
}

/// Of the last echo; one row of numbers for all that this process sends.
static NUMBER: AtomicU64 = AtomicU64::new(0);

impl Echo {
    /// Opens the sockets and begins to listen; needs a running runtime.
    ///
    /// # Errors
    /// Without CAP_NET_RAW.
    pub fn open() -> Result<Self, EchoError> {
        let v4 = Arc::new(open(Domain::IPV4, Protocol::ICMPV4)?);
        let v6 = open(Domain::IPV6, Protocol::ICMPV6).ok().map(Arc::new);
        let waiting = Waiting::default();
        tokio::spawn(listen(Arc::clone(&v4), Arc::clone(&waiting), true));
        if let Some(v6) = &v6 {
            tokio::spawn(listen(Arc::clone(v6), Arc::clone(&waiting), false));
        }
        Ok(Self { v4, v6, waiting })
    }

    /// Pings an address.
    pub(super) async fn ping(&self, address: IpAddr) -> Result<(), Failure> {
        let failed = |source| Failure::Io { step: "ping", source };
        let (number, answer) = self.expect(address);
        let sent = match address {
            IpAddr::V4(_) => {
                let message = message(V4_TYPES.0, number, 0);
                self.v4.get_ref().send_to(&message, &SocketAddr::new(address, 0).into())
            }
            IpAddr::V6(_) => {
                // The kernel enters the checksum.
                let message = message(V6_TYPES.0, number, 0);
                let v6 = self.v6.as_ref().ok_or_else(|| failed(no_ipv6()))?;
                v6.get_ref().send_to(&message, &SocketAddr::new(address, 0).into())
            }
        };
        sent.map_err(failed)?;
        self.wait(number, answer).await
    }

    /// Sends an echo request through the tunnel; the backend answers it directly.
    pub(super) async fn through_gue(
        &self,
        backend: SocketAddr,
        source: Option<IpAddr>,
    ) -> Result<(), Failure> {
        let failed = |source| Failure::Io { step: "gue", source };
        let any: IpAddr = match backend {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((source.unwrap_or(any), 0)).map_err(failed)?;
        socket.connect(backend).map_err(failed)?;
        let own = socket.local_addr().map_err(failed)?.ip();
        let (number, answer) = self.expect(backend.ip());
        let inner = match (own, backend.ip()) {
            (IpAddr::V4(own), IpAddr::V4(to)) => inner_v4(own, to, number),
            (IpAddr::V6(own), IpAddr::V6(to)) => inner_v6(own, to, number),
            _ => return Err(failed(io::ErrorKind::InvalidInput.into())),
        };
        socket.send(&tunnelled(&inner, backend.ip())).map_err(failed)?;
        self.wait(number, answer).await
    }

    fn expect(&self, from: IpAddr) -> (u64, oneshot::Receiver<()>) {
        // Another checker on this machine hears the same answers.
        let number = u64::from(std::process::id()) << 40 | NUMBER.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        lock(&self.waiting).insert(number, (from, sender));
        (number, receiver)
    }

    async fn wait(&self, number: u64, answer: oneshot::Receiver<()>) -> Result<(), Failure> {
        // Whoever stops waiting is forgotten, also when a timeout drops this.
        let _forget = Forget { waiting: &self.waiting, number };
        match answer.await {
            Ok(()) => Ok(()),
            Err(_) => Err(Failure::Setup("nobody listens for echoes".into())),
        }
    }
}

struct Forget<'w> {
    waiting: &'w Waiting,
    number: u64,
}

impl Drop for Forget<'_> {
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
    // Answers to 10,000 echoes may come within milliseconds.
    socket.set_recv_buffer_size(4 << 20)?;
    hear_only_answers(&socket, domain == Domain::IPV4)?;
    // SAFETY: the socket owns its descriptor and keeps it open and the same until it is dropped.
    let socket = unsafe { AsyncFd::register(socket) };
    Ok(socket?)
}

/// Sets the kernel's filter of ICMP types (ICMP_FILTER, RFC 3542 section 3.2): a set bit blocks.
fn hear_only_answers(socket: &Socket, v4: bool) -> io::Result<()> {
    const ICMP_FILTER: libc::c_int = 1;
    const SOL_RAW: libc::c_int = 255;
    const ICMPV6_FILTER: libc::c_int = 1;
    let mut filter = [u32::MAX; 8];
    let (level, name, length) = if v4 {
        filter[0] &= !(1 << V4_TYPES.1);
        (SOL_RAW, ICMP_FILTER, 4)
    } else {
        filter[usize::from(V6_TYPES.1 >> 5)] &= !(1 << (V6_TYPES.1 & 31));
        (libc::IPPROTO_ICMPV6, ICMPV6_FILTER, 32)
    };
    // SAFETY: the descriptor is open, and `filter` holds `length` bytes and outlives the call.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, filter.as_ptr().cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

async fn listen(socket: Arc<AsyncFd<Socket>>, waiting: Waiting, v4: bool) {
    let mut buffer = [std::mem::MaybeUninit::<u8>::uninit(); 2048];
    loop {
        let Ok(mut ready) = socket.readable().await else { return };
        let received = ready.try_io(|socket| socket.get_ref().recv_from(&mut buffer));
        let Ok(Ok((length, from))) = received else { continue };
        let Some(from) = from.as_socket() else { continue };
        // SAFETY: the kernel has written the first `length` bytes.
        let bytes: Vec<u8> =
            buffer[..length].iter().map(|byte| unsafe { byte.assume_init() }).collect();
        let Some(number) = number(&bytes, v4) else { continue };
        let mut waiting = lock(&waiting);
        if waiting.get(&number).is_some_and(|(address, _)| *address == from.ip())
            && let Some((_, sender)) = waiting.remove(&number)
        {
            // Who has given up meanwhile does not mind.
            sender.send(()).ok();
        }
    }
}

/// The number in an echo answer of ours. An IPv4 raw socket gives the IP header too.
fn number(packet: &[u8], v4: bool) -> Option<u64> {
    let header = if v4 { usize::from(packet.first()? & 0xf) * 4 } else { 0 };
    let message = packet.get(header..header + 24)?;
    let wanted = if v4 { V4_TYPES.1 } else { V6_TYPES.1 };
    if message[0] != wanted || message[8..16] != MAGIC {
        return None;
    }
    message[16..24].try_into().ok().map(u64::from_be_bytes)
}

/// An echo request; `before` is the sum of a pseudo header, if the checksum has one.
fn message(kind: u8, number: u64, before: u32) -> [u8; 24] {
    let mut message = [0; 24];
    message[0] = kind;
    message[4..8].copy_from_slice(&number.to_be_bytes()[4..]);
    message[8..16].copy_from_slice(&MAGIC);
    message[16..].copy_from_slice(&number.to_be_bytes());
    let sum = !fold(before + sum(&message));
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks_exact(4).map(|word| sum_4([word[0], word[1], word[2], word[3]])).sum()
}

fn inner_v4(own: Ipv4Addr, to: Ipv4Addr, number: u64) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 44, 0, 0, 0x40, 0, 64, 1, 0, 0];
    packet.extend(own.octets());
    packet.extend(to.octets());
    let checksum = !fold(sum(&packet));
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend(message(V4_TYPES.0, number, 0));
    packet
}

fn inner_v6(own: Ipv6Addr, to: Ipv6Addr, number: u64) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 24, 58, 64];
    packet.extend(own.octets());
    packet.extend(to.octets());
    let pseudo = sum_16(own.octets()) + sum_16(to.octets()) + 24 + 58;
    packet.extend(message(V6_TYPES.0, number, pseudo));
    packet
}

/// The UDP payload of a tunnel packet to one backend: GUE, and GLB's list of hops without a hop
/// (type 1 where it would list IPv6 addresses).
pub(super) fn tunnelled(inner: &[u8], backend: IpAddr) -> Vec<u8> {
    let protocol = if inner.first().is_some_and(|byte| byte >> 4 == 4) { 4 } else { 41 };
    let private_type = u8::from(backend.is_ipv6());
    let mut payload = vec![1, protocol, 0, 0, 0, private_type, 0, 0];
    payload.extend_from_slice(inner);
    payload
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_right() {
        let packet = inner_v4([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), 0x1234_5678_9abc);
        assert_eq!(packet.len(), 44);
        assert_eq!(fold(sum(&packet[..20])), 0xffff);
        assert_eq!(fold(sum(&packet[20..])), 0xffff);
        let (own, to) = ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap());
        let packet = inner_v6(own, to, 77);
        let pseudo = sum_16(own.octets()) + sum_16(to.octets()) + 24 + 58;
        assert_eq!(fold(pseudo + sum(&packet[40..])), 0xffff);
    }

    #[test]
    fn only_our_answers_count() {
        let mut packet = inner_v4([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), 99);
        assert_eq!(number(&packet, true), None);
        packet[20] = V4_TYPES.1;
        assert_eq!(number(&packet, true), Some(99));
        packet[30] ^= 1;
        assert_eq!(number(&packet, true), None);
        assert_eq!(number(&packet[..30], true), None);
    }
}
