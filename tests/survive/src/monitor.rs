//! Watches every open connection many times a second: its progress, its stalls, and the backend
//! that holds it.

use std::{
    collections::HashMap,
    net::SocketAddr,
    os::fd::AsFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Result;
use glb_lab::{
    Family, Netns, Node,
    kernel::{self, LISTEN},
    vip,
};

use crate::{
    accounting::{Connection, Ledger},
    tcp_info::tcp_info,
};

/// The interval between two looks, and so the resolution of stalls.
pub(crate) const EVERY: Duration = Duration::from_millis(50);

/// The backends' socket tables are long, so they are read only at every n-th look.
const SOCKETS_EVERY: u32 = 20;

/// The TIME_WAIT state, in which a connection is over.
const TIME_WAIT: u8 = 6;

/// Watches until it is dropped.
#[derive(Debug)]
pub(crate) struct Monitor {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    ledger: Arc<Ledger>,
    backends: Vec<(Node, Netns)>,
    stop: AtomicBool,
    worst: Mutex<(Duration, Option<u64>)>,
    /// A machine that is down. Stalls of its connections are expected.
    down: Mutex<Option<Node>>,
}

impl Monitor {
    /// Starts to watch the connections of `ledger`, which these backends serve.
    pub(crate) fn start(ledger: &Arc<Ledger>, backends: Vec<(Node, Netns)>) -> Self {
        let shared = Arc::new(Shared {
            ledger: Arc::clone(ledger),
            backends,
            stop: AtomicBool::new(false),
            worst: Mutex::default(),
            down: Mutex::default(),
        });
        let mine = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            let mut looks = 0_u32;
            while !mine.stop.load(Ordering::Relaxed) {
                mine.look();
                if looks.is_multiple_of(SOCKETS_EVERY)
                    && let Err(error) = mine.find_holders()
                {
                    eprintln!("a backend's sockets cannot be read: {error:#}");
                }
                looks = looks.wrapping_add(1);
                thread::sleep(EVERY);
            }
        });
        Self { shared, thread: Some(thread) }
    }

    /// Returns the longest stall since the last call, and its connection if known.
    pub(crate) fn worst_stall(&self) -> (Duration, Option<u64>) {
        let late = std::mem::take(&mut self.shared.ledger.entries().late);
        let mut seen = self.shared.worst.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = std::mem::take(&mut *seen);
        seen.max((late, None))
    }

    /// Stops recording stalls for this machine's connections.
    pub(crate) fn ignore(&self, node: Option<Node>) {
        *self.shared.down.lock().unwrap_or_else(PoisonError::into_inner) = node;
    }

    /// Reads the backends' socket tables now.
    ///
    /// # Errors
    /// When a socket table cannot be read.
    pub(crate) fn find_holders(&self) -> Result<()> {
        self.shared.find_holders()
    }
}

impl Shared {
    fn look(&self) {
        let now = self.ledger.now();
        let mut worst = (Duration::ZERO, None);
        let down = *self.down.lock().unwrap_or_else(PoisonError::into_inner);
        for connection in self.ledger.entries().open.values_mut() {
            let stall = look_at(connection, now);
            if down.is_none() || connection.holder != down {
                worst = worst.max((stall, Some(connection.id)));
            }
        }
        let mut known = self.worst.lock().unwrap_or_else(PoisonError::into_inner);
        *known = worst.max(*known);
    }

    fn find_holders(&self) -> Result<()> {
        let vips = [Family::V4, Family::V6].map(vip);
        let mut found: HashMap<(SocketAddr, u16), Node> = HashMap::new();
        for (node, netns) in &self.backends {
            for socket in kernel::tcp_sockets(netns)? {
                let live = socket.state != LISTEN && socket.state != TIME_WAIT;
                if live && vips.contains(&socket.local.ip()) {
                    found.insert((socket.remote, socket.local.port()), *node);
                }
            }
        }
        for connection in self.ledger.entries().open.values_mut() {
            if connection.holder.is_none() {
                let key = (connection.client, connection.server.port());
                connection.holder = found.get(&key).copied();
            }
        }
        Ok(())
    }
}

/// Records progress, and returns how long the connection has been stalled although it should move.
fn look_at(connection: &mut Connection, now: Duration) -> Duration {
    let Some(socket) = &connection.socket else { return Duration::ZERO };
    let Ok(info) = tcp_info(socket.as_fd()) else { return Duration::ZERO };
    connection.retransmits = info.retransmits;
    let bytes = info.acknowledged + info.received;
    // Sent data must be acknowledged, whatever the client waits for.
    let waits = info.unacknowledged > 0;
    connection.unacknowledged = waits.then(|| connection.unacknowledged.unwrap_or(now));
    if bytes != connection.bytes {
        connection.bytes = bytes;
        connection.proved = now;
        return Duration::ZERO;
    }
    // Silence before anything was owed is not a stall.
    let owed = connection.expecting.or(connection.unacknowledged);
    owed.map_or(Duration::ZERO, |since| now.saturating_sub(since.max(connection.proved)))
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the monitor panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::accounting::Kind;

    fn seconds(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    #[test]
    fn silence_is_a_stall_only_while_something_is_owed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let near = TcpStream::connect(address).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        let ledger = Ledger::new();
        let account = ledger.begin(Kind::Idle, address, address);
        account.opened(&near);
        let look = |at| look_at(ledger.entries().open.get_mut(&1).unwrap(), seconds(at));
        // The kernel can have counted the SYN.
        look(10);
        assert_eq!(look(70), Duration::ZERO, "nobody owes anything");
        ledger.entries().open.get_mut(&1).unwrap().expecting = Some(seconds(71));
        assert_eq!(look(74), seconds(3));
        far.write_all(b"x").unwrap();
        while look(80) != Duration::ZERO {}
        assert_eq!(look(82), seconds(2), "from the last sign of life on");
        ledger.entries().open.get_mut(&1).unwrap().expecting = None;
        assert_eq!(look(99), Duration::ZERO);
        account.end(Ok(()));
    }
}
