//! A relay between git and the VIP: it forwards each of git's connections from a client address of
//! the lab, at the job's pace, and records it.
//!
//! git cannot be given a source address or a reading speed. It talks to the relay over the loopback
//! of the client's namespace; all bytes in both directions are those of the real git. When a
//! connection breaks, the relay breaks git's side too.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Result;
use glb_lab::Family;

use crate::{
    accounting::{ConnectionRecord, Kind},
    clients::{ClientContext, stream},
};

/// A relay for one job. Must be created in the client's namespace.
#[derive(Debug)]
pub(crate) struct Relay {
    shared: Arc<Shared>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    site: Arc<ClientContext>,
    kind: Kind,
    family: Family,
    port: u16,
    /// The pace towards git, in bytes per second.
    pace: u64,
    over: AtomicBool,
    /// The record of each connection, with its error if any.
    legs: Mutex<Vec<(ConnectionRecord, Option<RelayError>)>>,
}

/// The error of a connection.
#[derive(Debug)]
struct RelayError {
    why: String,
    /// Whether the only error was a long silence.
    silence: bool,
}

impl Relay {
    /// Starts a relay to a port of the VIP.
    ///
    /// # Errors
    /// When the loopback cannot be used.
    pub(crate) fn start(
        site: &Arc<ClientContext>,
        kind: Kind,
        family: Family,
        port: u16,
        pace: u64,
    ) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            site: Arc::clone(site),
            kind,
            family,
            port,
            pace,
            over: AtomicBool::new(false),
            legs: Mutex::default(),
        });
        let mine = Arc::clone(&shared);
        let thread = thread::spawn(move || mine.accept(&listener));
        Ok(Self { shared, address, thread: Some(thread) })
    }

    /// Returns the address that git connects to.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes the records when the job is over. A connection that broke counts as broken, whatever
    /// the result of the job.
    pub(crate) fn judge(mut self, outcome: &Result<(), String>) {
        self.close();
        let mut legs = std::mem::take(&mut *self.shared.legs());
        let last = legs.len().saturating_sub(1);
        let none_broke = legs.iter().all(|(_, broke)| broke.is_none());
        for (number, (account, broke)) in legs.drain(..).enumerate() {
            account.end(match (outcome, broke) {
                // The connection was good to the end, and silent because git had all its data.
                (Ok(()), Some(RelayError { silence: true, .. })) if number == last => Ok(()),
                // The connection counts as broken even if git recovered with another connection.
                (Ok(()), Some(broke)) => Err(broke.why),
                (Err(why), Some(broke)) => Err(format!("{}; {why}", broke.why)),
                (Err(why), None) if none_broke && number == last => Err(why.clone()),
                (_, None) => Ok(()),
            });
        }
    }

    fn close(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        // This wakes the thread that accepts connections.
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("a relay panicked");
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn legs(&self) -> std::sync::MutexGuard<'_, Vec<(ConnectionRecord, Option<RelayError>)>> {
        self.legs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(&self, listener: &TcpListener) {
        thread::scope(|scope| {
            for git in listener.incoming() {
                if self.over.load(Ordering::Relaxed) {
                    return;
                }
                if let Ok(git) = git {
                    scope.spawn(move || self.lead(git));
                }
            }
        });
    }

    fn lead(&self, git: TcpStream) {
        let Some((vip, account)) = stream::open(&self.site, self.kind, self.family, self.port)
        else {
            return;
        };
        let broke = self.copy_both(&git, &vip);
        account.closed();
        drop(vip);
        let broke = broke.err().map(|error| RelayError {
            why: stream::in_words(&error, self.site.load.patience),
            silence: error.kind() == io::ErrorKind::WouldBlock,
        });
        self.legs().push((account, broke));
    }

    fn copy_both(&self, git: &TcpStream, vip: &TcpStream) -> io::Result<()> {
        vip.set_read_timeout(Some(LOOK_UP))?;
        let heard =
            LastActivity { patience: self.site.load.patience, last: Mutex::new(Instant::now()) };
        // Both directions end together with git's connection.
        thread::scope(|scope| {
            let up = scope.spawn(|| {
                let sent = self.copy(git, vip, u64::MAX, &heard);
                // A half-close tells the server that no more data follows.
                vip.shutdown(Shutdown::Write).ok();
                sent
            });
            let received = self.copy(vip, git, self.pace, &heard);
            git.shutdown(Shutdown::Both).ok();
            let sent = up.join().unwrap_or_else(|_| Err(io::Error::other("a relay panicked")));
            received?;
            // git can close its connection while the last bytes are still on the way.
            match sent {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
                other => other,
            }
        })
    }

    /// Copies until the end. Errors on the VIP's side are returned; errors on git's side end the
    /// copy.
    fn copy(
        &self,
        mut from: &TcpStream,
        mut to: &TcpStream,
        pace: u64,
        heard: &LastActivity,
    ) -> io::Result<()> {
        let mut buffer = vec![0; 32 << 10];
        let begun = Instant::now();
        let mut copied = 0_u64;
        let from_git = from.peer_addr()?.ip().is_loopback();
        loop {
            let length = match from.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) if from_git || self.over.load(Ordering::Relaxed) => return Ok(()),
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock && !heard.too_long_ago() =>
                {
                    continue;
                }
                Err(error) => return Err(error),
            };
            heard.now();
            match to.write_all(&buffer[..length]) {
                Ok(()) => heard.now(),
                Err(error) if from_git => return Err(error),
                Err(_) => return Ok(()),
            }
            copied += length as u64;
            if pace != u64::MAX {
                let due = Duration::from_secs_f64(copied as f64 / pace as f64);
                thread::sleep(due.saturating_sub(begun.elapsed()));
            }
        }
    }
}

/// How often a relay that waits for the server checks git's side.
const LOOK_UP: Duration = Duration::from_secs(1);

/// The time of the last byte in either direction. While git sends a pack, the server is silent.
struct LastActivity {
    patience: Duration,
    last: Mutex<Instant>,
}

impl LastActivity {
    fn now(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn too_long_ago(&self) -> bool {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).elapsed() >= self.patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silent_server_is_fine_while_git_sends() {
        let heard = |age: u64| LastActivity {
            patience: Duration::from_millis(100),
            last: Mutex::new(Instant::now().checked_sub(Duration::from_millis(age)).unwrap()),
        };
        assert!(!heard(10).too_long_ago());
        let silent = heard(150);
        assert!(silent.too_long_ago());
        silent.now();
        assert!(!silent.too_long_ago());
    }
}
