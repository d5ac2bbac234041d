//! The account of every connection: who, when, by whom served, and what became of it.
//!
//! A client opens an account before its first packet and closes it with a verdict. Nothing else
//! ends one, so no connection can be lost sight of.

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

/// What a connection is for.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// Says a word now and then, and is silent in between.
    Idle,
    /// Asks, and gets its answer some seconds later.
    LongPoll,
    /// One short request.
    Request,
    /// A connection of a `git clone` over smart HTTP.
    CloneHttp,
    /// The same over the git protocol.
    CloneGit,
    /// A connection of a `git push` over smart HTTP.
    PushHttp,
    /// The same over the git protocol.
    PushGit,
    /// An image on its way to Glance.
    Upload,
    /// An image on its way from Glance.
    Download,
    /// A short request to Glance.
    Glance,
}

impl Kind {
    /// Every kind, in the order of reports.
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

    /// Whether it is over at once, so that its time is a latency.
    pub(crate) const fn is_short(self) -> bool {
        matches!(self, Self::Request)
    }
}

/// What became of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    /// All that was asked for came, and it was right.
    Verified,
    /// It broke, or what came was wrong: in words.
    Broken(String),
}

/// One connection. Times are since the ledger's beginning.
#[derive(Debug, Serialize)]
pub(crate) struct Connection {
    pub(crate) id: u64,
    pub(crate) kind: Kind,
    pub(crate) client: SocketAddr,
    pub(crate) server: SocketAddr,
    #[serde(serialize_with = "seconds")]
    pub(crate) began: Duration,
    /// When the handshake was over.
    #[serde(serialize_with = "maybe_seconds")]
    pub(crate) opened: Option<Duration>,
    #[serde(serialize_with = "maybe_seconds")]
    pub(crate) ended: Option<Duration>,
    pub(crate) outcome: Option<Outcome>,
    /// The backend whose kernel has it.
    #[serde(serialize_with = "node")]
    pub(crate) holder: Option<Node>,
    /// Segments that the client's kernel sent again.
    pub(crate) retransmits: u32,
    /// When the server was last heard of: a byte of it, or its word for one of ours.
    #[serde(skip)]
    pub(crate) proved: Duration,
    /// Bytes that went either way, by the kernel's count.
    pub(crate) bytes: u64,
    /// Whether the client waits for a byte that the server owes it.
    #[serde(skip)]
    pub(crate) expecting: Option<Duration>,
    /// Since when something that was sent has not been acknowledged, as far as the monitor saw.
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

/// All connections.
#[derive(Debug)]
pub(crate) struct Ledger {
    start: Instant,
    books: Mutex<Books>,
}

/// What is inside.
#[derive(Debug, Default)]
pub(crate) struct Books {
    next: u64,
    /// Without a verdict yet.
    pub(crate) open: BTreeMap<u64, Connection>,
    /// With one.
    pub(crate) closed: Vec<Connection>,
    /// The longest that an answer came late, since it was last asked for.
    pub(crate) late: Duration,
}

impl Ledger {
    /// An empty one that begins now.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { start: Instant::now(), books: Mutex::default() })
    }

    /// The time since its beginning.
    pub(crate) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// The books, for as long as the guard lives.
    pub(crate) fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens an account, before the first packet.
    pub(crate) fn begin(
        self: &Arc<Self>,
        kind: Kind,
        client: SocketAddr,
        server: SocketAddr,
    ) -> Account {
        let now = self.now();
        let mut books = self.books();
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
        Account { ledger: Arc::clone(self), id }
    }

    /// Ends every open connection at once, for a run that is given up.
    pub(crate) fn cut_all(&self) {
        for socket in self.books().open.values().filter_map(|c| c.socket.as_ref()) {
            // One that has just ended by itself needs it no more.
            shutdown(socket.as_raw_fd(), Shutdown::Both).ok();
        }
    }

    /// Connections whose handshake is over and that have not ended.
    pub(crate) fn alive(&self) -> Vec<u64> {
        let books = self.books();
        books.open.values().filter(|c| c.is_alive()).map(|connection| connection.id).collect()
    }
}

impl Connection {
    /// Whether the handshake is over and it has not ended.
    pub(crate) const fn is_alive(&self) -> bool {
        self.opened.is_some() && self.ended.is_none()
    }

    /// When and why it broke, if it did.
    pub(crate) fn broke(&self) -> Option<(Duration, &str)> {
        match &self.outcome {
            Some(Outcome::Broken(why)) => Some((self.ended.unwrap_or(self.began), why)),
            _ => None,
        }
    }
}

/// A client's hand on its connection's account. Dropped without a verdict, the connection counts as
/// broken.
#[derive(Debug)]
pub(crate) struct Account {
    ledger: Arc<Ledger>,
    id: u64,
}

impl Account {
    fn with(&self, change: impl FnOnce(&mut Connection)) {
        if let Some(connection) = self.ledger.books().open.get_mut(&self.id) {
            change(connection);
        }
    }

    /// The handshake is over.
    pub(crate) fn opened(&self, stream: &TcpStream) {
        let (now, socket) = (self.ledger.now(), stream.try_clone().ok());
        self.with(|connection| {
            connection.opened = Some(now);
            connection.proved = now;
            connection.socket = socket.map(OwnedFd::from);
        });
    }

    /// The client waits for a byte that the server owes it, from now on or no more.
    pub(crate) fn expects(&self, expects: bool) {
        let now = self.ledger.now();
        self.with(|connection| connection.expecting = expects.then_some(now));
    }

    /// The answer came so much later than it was due.
    pub(crate) fn late(&self, by: Duration) {
        let mut books = self.ledger.books();
        books.late = books.late.max(by);
    }

    /// The server named itself.
    pub(crate) fn served_by(&self, name: &str) {
        let number = name.strip_prefix("backend").and_then(|number| number.parse().ok());
        if let Some(number) = number {
            self.with(|connection| connection.holder = Some(Node::Backend(number)));
        }
    }

    /// No packet of it comes any more; the verdict is still to come.
    pub(crate) fn closed(&self) {
        let now = self.ledger.now();
        self.with(|connection| {
            connection.ended.get_or_insert(now);
            connection.expecting = None;
            connection.socket = None;
        });
    }

    /// The verdict.
    pub(crate) fn end(self, outcome: Result<(), String>) {
        self.verdict(match outcome {
            Ok(()) => Outcome::Verified,
            Err(why) => Outcome::Broken(why),
        });
    }

    fn verdict(&self, outcome: Outcome) {
        let now = self.ledger.now();
        let mut books = self.ledger.books();
        if let Some(mut connection) = books.open.remove(&self.id) {
            connection.ended.get_or_insert(now);
            connection.socket = None;
            connection.outcome = Some(outcome);
            books.closed.push(connection);
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.verdict(Outcome::Broken("its client gave up without a word".to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_connection_gets_one_verdict() {
        let ledger = Ledger::new();
        let [client, server] = ["198.18.0.1:5000", "203.0.113.10:80"].map(|a| a.parse().unwrap());
        let good = ledger.begin(Kind::Idle, client, server);
        let bad = ledger.begin(Kind::Upload, client, server);
        let lost = ledger.begin(Kind::Request, client, server);
        assert_eq!(ledger.books().open.len(), 3);
        assert!(ledger.alive().is_empty());
        good.end(Ok(()));
        bad.end(Err("reset".to_owned()));
        drop(lost);
        let books = ledger.books();
        assert!(books.open.is_empty());
        let broken: Vec<bool> = books.closed.iter().map(|c| c.broke().is_some()).collect();
        assert_eq!(broken, [false, true, true]);
    }

    #[test]
    fn what_is_closed_waits_for_its_verdict_and_keeps_its_time() {
        let ledger = Ledger::new();
        let address = "198.18.0.1:5000".parse().unwrap();
        let account = ledger.begin(Kind::CloneGit, address, address);
        account.closed();
        let at = ledger.books().open[&1].ended;
        std::thread::sleep(Duration::from_millis(5));
        account.end(Err("fsck".to_owned()));
        assert_eq!(ledger.books().closed[0].ended, at);
    }
}
