//! A steady stream of pings to the VIP that shows which packets were lost, and for how long.
//!
//! A lost ping is not retransmitted, unlike a TCP segment, so it measures loss directly.

use std::{
    io::{self, Read},
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::{
    plan::{Family, Node, client, vip},
    topology::Lab,
};

/// The number of client addresses that ping. The router spreads them over the directors.
const SOURCES: usize = 24;

/// The pause between two pings. Each ping comes from the next source.
const EVERY: Duration = Duration::from_millis(1);

/// The first client address that pings.
const FIRST_ADDRESS: u16 = 1500;

/// A ping without an answer after this time counts as lost.
const PATIENCE: Duration = Duration::from_millis(500);

/// Sends pings until it is dropped.
#[derive(Debug)]
pub struct Pings {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    log: Mutex<Vec<Ping>>,
}

#[derive(Clone, Copy, Debug)]
struct Ping {
    source: usize,
    sent: Instant,
    answered: bool,
}

/// The packet loss within a time span.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// Pings sent.
    pub sent: usize,
    /// Pings without an answer.
    pub lost: usize,
    /// The longest time during which one source got no answers.
    pub longest: Duration,
}

impl Pings {
    /// Starts to ping.
    ///
    /// # Errors
    /// When the kernel refuses raw sockets.
    pub fn start(lab: &Lab) -> Result<Self> {
        let sockets = lab.netns(Node::Client)?.run(|| {
            (0..SOURCES)
                .map(|source| socket(source).context("a socket for pings"))
                .collect::<Result<Vec<_>>>()
        })?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = thread::spawn(move || theirs.run(&sockets));
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Computes the loss of all pings sent since `from`. Waits for outstanding answers.
    #[must_use]
    pub fn loss_since(&self, from: Instant) -> Loss {
        let to = Instant::now();
        thread::sleep(PATIENCE);
        let log = self.shared.log();
        let pings: Vec<_> =
            log.iter().filter(|ping| (from..to).contains(&ping.sent)).copied().collect();
        loss(&pings)
    }
}

/// The longest loss reaches from a source's first lost ping to its next answered ping.
fn loss(pings: &[Ping]) -> Loss {
    let mut loss = Loss { sent: pings.len(), ..Loss::default() };
    let mut began = [None; SOURCES];
    for ping in pings {
        let began = &mut began[ping.source];
        if !ping.answered {
            loss.lost += 1;
            began.get_or_insert(ping.sent);
        }
        if let Some(since) = *began {
            loss.longest = loss.longest.max(ping.sent - since);
        }
        if ping.answered {
            *began = None;
        }
    }
    loss
}

impl Drop for Pings {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            eprintln!("the thread that pings panicked");
        }
    }
}

fn socket(source: usize) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::from(libc::SOCK_RAW), Some(Protocol::ICMPV4))?;
    let from = client(Family::V4, FIRST_ADDRESS + u16::try_from(source).unwrap_or(0));
    socket.bind(&SockAddr::from(SocketAddr::new(from, 0)))?;
    socket.connect(&SockAddr::from(SocketAddr::new(vip(Family::V4), 0)))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

impl Shared {
    fn log(&self) -> std::sync::MutexGuard<'_, Vec<Ping>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, sockets: &[Socket]) {
        let mut next = Instant::now();
        let mut number = 0_u64;
        while !self.stop.load(Ordering::Relaxed) {
            let source = usize::try_from(number).unwrap_or(0) % sockets.len();
            self.log().push(Ping { source, sent: Instant::now(), answered: false });
            // A ping that cannot be sent (no route) counts as lost.
            sockets[source].send(&request(number)).ok();
            number += 1;
            for socket in sockets {
                self.receive(socket);
            }
            next += EVERY;
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    }

    fn receive(&self, socket: &Socket) {
        let mut bytes = [0; 128];
        let mut socket = socket;
        while let Ok(length) = socket.read(&mut bytes) {
            let number = number_in(&bytes[..length]);
            let number = number.and_then(|number| usize::try_from(number).ok());
            let mut log = self.log();
            if let Some(ping) = number.and_then(|number| log.get_mut(number)) {
                ping.answered = true;
            }
        }
    }
}

/// Builds an echo request that carries `number`.
fn request(number: u64) -> [u8; 16] {
    let mut packet = [0; 16];
    packet[0] = 8;
    packet[4..6].copy_from_slice(b"GL");
    packet[6..8].copy_from_slice(&number.to_be_bytes()[6..]);
    packet[8..].copy_from_slice(&number.to_be_bytes());
    let sum: u32 =
        packet.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    let checksum = !u16::try_from(folded).unwrap_or(0);
    packet[2..4].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// Reads the number from an echo reply that starts with its IPv4 header.
fn number_in(packet: &[u8]) -> Option<u64> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    let icmp = packet.get(header..)?;
    let is_answer = icmp.first() == Some(&0) && icmp.get(4..6) == Some(b"GL");
    let number = icmp.get(8..16).filter(|_| is_answer)?;
    Some(u64::from_be_bytes(number.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn echo_request_and_reply_carry_the_number() {
        let request = request(0x0102_0304_0506_0708);
        let sum: u32 = request.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "the checksum");
        let mut answer = [&[0x45; 20][..], &request].concat();
        assert_eq!(number_in(&answer), None, "a request is no answer");
        answer[20] = 0;
        assert_eq!(number_in(&answer), Some(0x0102_0304_0506_0708));
    }

    #[test]
    fn loss_is_counted_per_source() {
        let begun = Instant::now();
        let ping = |source, at, answered| Ping {
            source,
            sent: begun + Duration::from_millis(at),
            answered,
        };
        let pings = [
            ping(0, 0, true),
            ping(1, 1, true),
            ping(0, 10, false),
            ping(1, 11, true),
            ping(0, 20, false),
            ping(1, 21, false),
            ping(0, 30, true),
            ping(1, 31, true),
        ];
        let wanted = Loss { sent: 8, lost: 3, longest: Duration::from_millis(20) };
        assert_eq!(loss(&pings), wanted);
    }
}
