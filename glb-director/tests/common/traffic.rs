//! Real packets through an interface and back, one window after the other: none may be lost, and each
//! must have been handled wholly by one table.

use std::{
    collections::BTreeMap,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::net::if_::if_nametoindex;

/// Frames under way at once.
const WINDOW: u64 = 32;
/// Much more than a frame takes.
const PATIENCE: Duration = Duration::from_secs(10);

/// What has been seen of the traffic.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Frames sent.
    pub(crate) sent: u64,
    /// Frames that came back.
    pub(crate) back: u64,
    /// How many by which set of backends: the last octets of the outer destination and the listed
    /// hops, sorted.
    pub(crate) by_hops: BTreeMap<Vec<u8>, u64>,
    /// Longest time for a window.
    pub(crate) slowest: Duration,
}

/// Traffic until it is stopped.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

impl Traffic {
    /// Sends to a VIP, 198.51.100.`vip`, through `interface`'s peer in this thread's network.
    pub(crate) fn start(interface: &str, vip: u8) -> Self {
        let socket = Socket::open(&format!("p{interface}"));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut seen = Seen::default();
            // On a busy machine the end may come before the beginning: there is one window at least.
            loop {
                window(&socket, vip, &mut seen);
                if stopped.load(Ordering::Relaxed) {
                    return seen;
                }
            }
        });
        Self { stop, thread }
    }

    /// The sums over all packets seen.
    pub(crate) fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Sends to a VIP, 198.51.100.`vip`, through `interface`'s peer until it is dropped, and does not look
/// for what comes back: some of it is not to come.
pub(crate) struct Stream {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Stream {
    /// One packet after the other, `pause` apart.
    pub(crate) fn start(interface: &str, vip: u8, pause: Duration) -> Self {
        let socket = Socket::open(&format!("p{interface}"));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            for number in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                socket.send(&frame(vip, number));
                thread::sleep(pause);
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.thread.take().map(JoinHandle::join));
    }
}

fn window(socket: &Socket, vip: u8, seen: &mut Seen) {
    let begun = Instant::now();
    let first = seen.sent;
    for number in first..first + WINDOW {
        socket.send(&frame(vip, number));
    }
    seen.sent += WINDOW;
    let mut missing: Vec<u64> = (first..first + WINDOW).collect();
    while !missing.is_empty() {
        let Some(frame) = socket.receive() else {
            assert!(
                begun.elapsed() < PATIENCE,
                "{} of a window are lost: {missing:?}, {seen:?}",
                missing.len()
            );
            continue;
        };
        let Some((number, hops)) = understand(&frame) else { continue };
        let place = missing.iter().position(|wanted| *wanted == number);
        missing
            .swap_remove(place.unwrap_or_else(|| panic!("{number} came twice, or from nowhere")));
        seen.back += 1;
        *seen.by_hops.entry(hops).or_default() += 1;
    }
    seen.slowest = seen.slowest.max(begun.elapsed());
}

/// A TCP packet of a client that the number gives, to port 80 of a VIP.
fn frame(vip: u8, number: u64) -> Vec<u8> {
    let client = (number as u32).wrapping_mul(0x9e37_79b9).to_be_bytes();
    let builder = etherparse::PacketBuilder::ethernet2([2; 6], [2, 0, 0, 0, 0, 1])
        .ipv4([10, client[1], client[2], client[3]], [198, 51, 100, vip], 64)
        .tcp(1024 | u16::from(client[0]), 80, 1, 1000)
        .ack(1);
    let payload = number.to_be_bytes();
    let mut frame = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut frame, &payload).unwrap();
    frame
}

/// The number in a tunnelled frame, and the last octets of its hops.
fn understand(frame: &[u8]) -> Option<(u64, Vec<u8>)> {
    const GUE: usize = 14 + 20 + 8;
    if frame.get(23)? != &17 || frame.get(36..38)? != 19_523_u16.to_be_bytes() {
        return None;
    }
    let listed = usize::from(*frame.get(GUE + 7)?);
    let inner = GUE + 8 + 4 * listed;
    let mut hops: Vec<u8> = (0..listed).map(|hop| frame[GUE + 8 + 4 * hop + 3]).collect();
    hops.push(*frame.get(33)?);
    hops.sort_unstable();
    let payload = frame.get(inner + 40..inner + 48)?;
    Some((u64::from_be_bytes(payload.try_into().unwrap()), hops))
}

/// A packet socket.
struct Socket(OwnedFd);

impl Socket {
    fn open(interface: &str) -> Self {
        let protocol = (libc::ETH_P_IP as u16).to_be();
        // SAFETY: plain system calls on values that live through them.
        unsafe {
            let fd = libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                i32::from(protocol),
            );
            assert!(fd >= 0, "no packet socket: run this test as root");
            let socket = OwnedFd::from_raw_fd(fd);
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = protocol;
            address.sll_ifindex = if_nametoindex(interface).unwrap() as i32;
            let length = size_of::<libc::sockaddr_ll>() as u32;
            assert_eq!(libc::bind(fd, std::ptr::from_ref(&address).cast(), length), 0);
            let patience = libc::timeval { tv_sec: 0, tv_usec: 100_000 };
            let length = size_of::<libc::timeval>() as u32;
            let set = libc::setsockopt(
                fd,
                libc::SOL_SOCKET,
                libc::SO_RCVTIMEO,
                std::ptr::from_ref(&patience).cast(),
                length,
            );
            assert_eq!(set, 0);
            Self(socket)
        }
    }

    fn send(&self, frame: &[u8]) {
        // SAFETY: the frame lives through the call.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(sent, frame.len() as isize, "{}", std::io::Error::last_os_error());
    }

    fn receive(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 2048];
        // SAFETY: the buffer lives through the call and is as long as it says.
        let length =
            unsafe { libc::recv(self.0.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), 0) };
        frame.truncate(usize::try_from(length).ok()?);
        Some(frame)
    }
}
