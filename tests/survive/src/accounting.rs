//! The record of every connection: client, times, backend and outcome.
//!
//! A client opens a record before its first packet and closes it with a verdict. Nothing else
//! closes a record, so no connection is lost from the count.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpStream},
    os::fd::{AsRawFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use glb_lab::Node;
use nix::sys::socket::{Shutdown, shutdown};
use serde::Serialize;

/// The kind of a connection.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// Sends a short message now and then, and is silent in between.
    Idle,
    /// Sends a question and gets the answer some seconds later.
    LongPoll,
    /// One short request.
    Request,
    /// A connection of a `git clone` over smart HTTP.
    CloneHttp,
    /// A connection of a `git clone` over the git protocol.
    CloneGit,
    /// A connection of a `git push` over smart HTTP.
    PushHttp,
    /// A connection of a `git push` over the git protocol.
    PushGit,
    /// An image upload to Glance.
    Upload,
    /// An image download from Glance.
    Download,
    /// A short request to Glance.
    Glance,
}

impl Kind {
    /// Every kind, in the order of the reports.
    pub(crate) const ALL: [(Self, &'static str); 10] = [
        (Self::Idle, "idle, a word now and then"),
        (Self::LongPoll, "long poll"),
        (Self::Request, "short request"),
        (Self::CloneHttp, "git clone over HTTP"),
        (Self::CloneGit, "git clone over the git protocol"),
        (Self::PushHttp, "git push over HTTP"),
        (Self::PushGit, "git push over the git protocol"),
        (Self::Upload, "Glance upload"),
        (Self::Download, "Glance download"),
        (Self::Glance, "Glance, other requests"),
    ];

    /// Returns whether the connection ends at once, so that its duration is a latency.
    pub(crate) const fn is_short(self) -> bool {
        matches!(self, Self::Request)
    }
}

/// The outcome of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    /// All requested data arrived and was correct.
    Verified,
    /// The connection broke, or the data was wrong; the text says why.
    Broken(String),
}

/// One connection. Times count from the start of the ledger.
#[derive(Debug, Serialize)]
pub(crate) struct Connection {
    pub(crate) id: u64,
    pub(crate) kind: Kind,
    pub(crate) client: SocketAddr,
    pub(crate) server: SocketAddr,
    #[serde(serialize_with = "seconds")]
    pub(crate) began: Duration,
    /// The end of the handshake.
    #[serde(serialize_with = "maybe_seconds")]
    pub(crate) opened: Option<Duration>,
    #[serde(serialize_with = "maybe_seconds")]
    pub(crate) ended: Option<Duration>,
    pub(crate) outcome: Option<Outcome>,
    /// The backend whose kernel holds the connection.
    #[serde(serialize_with = "node")]
    pub(crate) holder: Option<Node>,
    /// Segments that the client's kernel retransmitted.
    pub(crate) retransmits: u32,
    /// The last sign of life from the server: a byte received, or an acknowledgement of sent bytes.
    #[serde(skip)]
    pub(crate) proved: Duration,
    /// Bytes transferred in both directions, as counted by the kernel.
    pub(crate) bytes: u64,
    /// Since when the client has been waiting for a byte from the server.
    #[serde(skip)]
    pub(crate) expecting: Option<Duration>,
    /// Since when sent data has been unacknowledged, as far as the monitor saw.
    #[serde(skip)]
    pub(crate) unacknowledged: Option<Duration>,
    #[serde(skip)]
    pub(crate) socket: Option<OwnedFd>,
}

fn seconds<S: serde::Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64((time.as_secs_f64() * 1000.0).round() / 1000.0)
}

fn maybe_seconds<S: serde::Serializer>(time: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => seconds(time, to),
        None => to.serialize_none(),
    }
}

fn node<S: serde::Serializer>(node: &Option<Node>, to: S) -> Result<S::Ok, S::Error> {
    match node {
        Some(node) => to.serialize_str(&node.to_string()),
        None => to.serialize_none(),
    }
}

/// The records of all connections.
#[derive(Debug)]
pub(crate) struct Ledger {
    start: Instant,
    books: Mutex<LedgerEntries>,
}

/// The contents of the ledger.
#[derive(Debug, Default)]
pub(crate) struct LedgerEntries {
    next: u64,
    /// Connections without a verdict.
    pub(crate) open: BTreeMap<u64, Connection>,
    /// Connections with a verdict.
    pub(crate) closed: Vec<Connection>,
    /// The longest delay of a late answer since the last query.
    pub(crate) late: Duration,
}

impl Ledger {
    /// Creates an empty ledger that starts now.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { start: Instant::now(), books: Mutex::default() })
    }

    /// Returns the time since the ledger started.
    pub(crate) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Locks the contents.
    pub(crate) fn entries(&self) -> MutexGuard<'_, LedgerEntries> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a record before the first packet.
    pub(crate) fn begin(
        self: &Arc<Self>,
        kind: Kind,
        client: SocketAddr,
        server: SocketAddr,
    ) -> ConnectionRecord {
        let now = self.now();
        let mut books = self.entries();
        books.next += 1;
        let id = books.next;
        let connection = Connection {
            id,
            kind,
            client,
            server,
            began: now,
            opened: None,
            ended: None,
            outcome: None,
            holder: None,
            retransmits: 0,
            proved: Duration::ZERO,
            bytes: 0,
            expecting: None,
            unacknowledged: None,
            socket: None,
        };
        books.open.insert(id, connection);
        ConnectionRecord { ledger: Arc::clone(self), id }
    }

    /// Ends every open connection at once when a run is aborted.
    pub(crate) fn cut_all(&self) {
        for socket in self.entries().open.values().filter_map(|c| c.socket.as_ref()) {
            // A connection that has just ended needs no shutdown.
            shutdown(socket.as_raw_fd(), Shutdown::Both).ok();
        }
    }

    /// Returns the connections with a completed handshake that have not ended.
    pub(crate) fn alive(&self) -> Vec<u64> {
        let books = self.entries();
        books.open.values().filter(|c| c.is_alive()).map(|connection| connection.id).collect()
    }
}

impl Connection {
    /// Returns whether the handshake is complete and the connection has not ended.
    pub(crate) const fn is_alive(&self) -> bool {
        self.opened.is_some() && self.ended.is_none()
    }

    /// Returns when and why the connection broke, if it did.
    pub(crate) fn broke(&self) -> Option<(Duration, &str)> {
        match &self.outcome {
            Some(Outcome::Broken(why)) => Some((self.ended.unwrap_or(self.began), why)),
            _ => None,
        }
    }
}

/// A client's handle on the record of its connection. If it is dropped without a verdict, the
/// connection counts as broken.
#[derive(Debug)]
pub(crate) struct ConnectionRecord {
    ledger: Arc<Ledger>,
    id: u64,
}

impl ConnectionRecord {
    fn with(&self, change: impl FnOnce(&mut Connection)) {
        if let Some(connection) = self.ledger.entries().open.get_mut(&self.id) {
            change(connection);
        }
    }

    /// Records the end of the handshake.
    pub(crate) fn opened(&self, stream: &TcpStream) {
        let (now, socket) = (self.ledger.now(), stream.try_clone().ok());
        self.with(|connection| {
            connection.opened = Some(now);
            connection.proved = now;
            connection.socket = socket.map(OwnedFd::from);
        });
    }

    /// Records whether the client waits for a byte from the server.
    pub(crate) fn expects(&self, expects: bool) {
        let now = self.ledger.now();
        self.with(|connection| connection.expecting = expects.then_some(now));
    }

    /// Records how late an answer came.
    pub(crate) fn late(&self, by: Duration) {
        let mut books = self.ledger.entries();
        books.late = books.late.max(by);
    }

    /// Records the server's name.
    pub(crate) fn served_by(&self, name: &str) {
        let number = name.strip_prefix("backend").and_then(|number| number.parse().ok());
        if let Some(number) = number {
            self.with(|connection| connection.holder = Some(Node::Backend(number)));
        }
    }

    /// Records that no more packets follow; the verdict comes later.
    pub(crate) fn closed(&self) {
        let now = self.ledger.now();
        self.with(|connection| {
            connection.ended.get_or_insert(now);
            connection.expecting = None;
            connection.socket = None;
        });
    }

    /// Records the verdict.
    pub(crate) fn end(self, outcome: Result<(), String>) {
        self.verdict(match outcome {
            Ok(()) => Outcome::Verified,
            Err(why) => Outcome::Broken(why),
        });
    }

    fn verdict(&self, outcome: Outcome) {
        let now = self.ledger.now();
        let mut books = self.ledger.entries();
        if let Some(mut connection) = books.open.remove(&self.id) {
            connection.ended.get_or_insert(now);
            connection.socket = None;
            connection.outcome = Some(outcome);
            books.closed.push(connection);
        }
    }
}

impl Drop for ConnectionRecord {
    fn drop(&mut self) {
        self.verdict(Outcome::Broken("its client gave up without a word".to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_connection_gets_one_verdict() {
        let ledger = Ledger::new();
        let [client, server] = ["198.18.0.1:5000", "203.0.113.10:80"].map(|a| a.parse().unwrap());
        let good = ledger.begin(Kind::Idle, client, server);
        let bad = ledger.begin(Kind::Upload, client, server);
        let lost = ledger.begin(Kind::Request, client, server);
        assert_eq!(ledger.entries().open.len(), 3);
        assert!(ledger.alive().is_empty());
        good.end(Ok(()));
        bad.end(Err("reset".to_owned()));
        drop(lost);
        let books = ledger.entries();
        assert!(books.open.is_empty());
        let broken: Vec<bool> = books.closed.iter().map(|c| c.broke().is_some()).collect();
        assert_eq!(broken, [false, true, true]);
    }

    #[test]
    fn closed_connection_keeps_its_end_time_until_the_verdict() {
        let ledger = Ledger::new();
        let address = "198.18.0.1:5000".parse().unwrap();
        let account = ledger.begin(Kind::CloneGit, address, address);
        account.closed();
        let at = ledger.entries().open[&1].ended;
        std::thread::sleep(Duration::from_millis(5));
        account.end(Err("fsck".to_owned()));
        assert_eq!(ledger.entries().closed[0].ended, at);
    }
}
