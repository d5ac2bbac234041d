//! Long-lived connections that must survive every event, each with its own thread.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use super::server::{CHUNK, CHUNK_EVERY, Kind, Numbers, PORT};
use crate::{
    http, interrupt,
    plan::{Family, Node, client, vip},
    topology::Lab,
};

/// A connection that receives nothing for this long counts as broken, even if TCP still retries.
const SILENCE: Duration = Duration::from_secs(30);

/// The pause between two echo records.
const ECHO_EVERY: Duration = Duration::from_millis(20);

/// The first client address that these connections use.
const FIRST_ADDRESS: u16 = 2000;

/// Open connections. They end on drop; [`Live::finish`] closes them cleanly and reports.
#[derive(Debug)]
pub struct Live {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// The number of connections of each kind.
    pub counts: BTreeMap<Kind, usize>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// Idle connections send a record when this number grows.
    looks: AtomicU64,
    /// The progress counter of each connection.
    progress: Vec<AtomicU64>,
    broken: Mutex<Vec<String>>,
    /// The longest echo time since the last call of [`Live::longest_stall`], in microseconds.
    stall: AtomicU64,
}

impl Live {
    /// Opens `each` connections of each kind, from as many addresses, over both families.
    ///
    /// # Errors
    /// When a connection is not open after the time limit.
    pub fn start(lab: &Lab, each: usize) -> Result<Self> {
        let total = each * Kind::ALL.len();
        let progress = (0..total).map(|_| AtomicU64::new(0)).collect();
        let shared = Arc::new(Shared { progress, ..Shared::default() });
        let netns = lab.netns(Node::Client)?;
        let threads = (0..total).map(|index| {
            let (shared, netns) = (Arc::clone(&shared), netns.clone());
            let kind = Kind::ALL[index % Kind::ALL.len()];
            thread::spawn(move || {
                let even = (index / Kind::ALL.len()).is_multiple_of(2);
                let family = if even { Family::V4 } else { Family::V6 };
                let result = netns
                    .enter_this_thread()
                    .map_err(io::Error::other)
                    .and_then(|()| connect(index, family))
                    .and_then(|stream| shared.live(index, kind, stream));
                if let Err(error) = result {
                    let what = format!("{kind:?} {index} over {family:?}: {error}");
                    shared.broken().push(what);
                }
            })
        });
        let threads = threads.collect();
        let counts = Kind::ALL.map(|kind| (kind, each)).into();
        let live = Self { shared, threads, counts };
        live.all_alive()?;
        Ok(live)
    }

    /// Waits until every connection that is not broken makes progress.
    ///
    /// # Errors
    /// When a connection neither breaks nor makes progress.
    pub fn all_alive(&self) -> Result<()> {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let before: Vec<_> = self.shared.progress.iter().map(count).collect();
        self.shared.looks.fetch_add(1, Ordering::Relaxed);
        let result = interrupt::wait("every connection's progress", SILENCE * 2, || {
            // Two steps are needed, because one was under way when the check began.
            let moved = self.shared.progress.iter().zip(&before);
            let moved = moved.filter(|(now, before)| count(now) >= *before + 2).count();
            Ok((moved + self.broken().len() >= before.len()).then_some(()))
        });
        match result {
            Err(error) => bail!("{error:#}; broken so far: {:?}", self.broken()),
            Ok(()) => Ok(()),
        }
    }

    /// Returns the connections that broke, with reasons.
    #[must_use]
    pub fn broken(&self) -> Vec<String> {
        self.shared.broken().clone()
    }

    /// Returns the longest echo time since the last call.
    pub fn longest_stall(&self) -> Duration {
        Duration::from_micros(self.shared.stall.swap(0, Ordering::Relaxed))
    }

    /// Closes all connections cleanly and returns those that broke, including at the end.
    #[must_use]
    pub fn finish(mut self) -> Vec<String> {
        self.stop();
        self.broken()
    }

    fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                self.shared.broken().push("a client panicked".to_owned());
            }
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.stop();
    }
}

fn connect(index: usize, family: Family) -> io::Result<TcpStream> {
    let from = client(family, FIRST_ADDRESS + u16::try_from(index).map_err(io::Error::other)?);
    let stream = http::connect(from, SocketAddr::new(vip(family), PORT), SILENCE)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl Shared {
    fn broken(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn live(&self, index: usize, kind: Kind, mut stream: TcpStream) -> io::Result<()> {
        stream.write_all(&[kind.byte()])?;
        let step = || self.progress[index].fetch_add(1, Ordering::Relaxed);
        let goes_on = || !self.stop.load(Ordering::Relaxed);
        let mut numbers = Numbers::default();
        let mut bytes = [0; CHUNK];
        match kind {
            Kind::Echo => {
                while goes_on() {
                    let stall = echo(&mut stream, &mut numbers)?.as_micros();
                    let stall = u64::try_from(stall).unwrap_or(u64::MAX);
                    self.stall.fetch_max(stall, Ordering::Relaxed);
                    step();
                    thread::sleep(ECHO_EVERY);
                }
            }
            Kind::Idle => {
                let mut seen = 0;
                while goes_on() {
                    let looks = self.looks.load(Ordering::Relaxed);
                    if looks != seen {
                        seen = looks;
                        for _ in 0..2 {
                            echo(&mut stream, &mut numbers)?;
                            step();
                        }
                    }
                    thread::sleep(ECHO_EVERY);
                }
            }
            Kind::Upload => {
                while goes_on() {
                    numbers.fill(&mut bytes);
                    stream.write_all(&bytes)?;
                    stream.read_exact(&mut [0])?;
                    step();
                    thread::sleep(CHUNK_EVERY);
                }
                stream.shutdown(Shutdown::Write)?;
                let mut count = [0; 8];
                stream.read_exact(&mut count)?;
                let (came, sent) = (u64::from_be_bytes(count), numbers.count());
                if came != sent {
                    return Err(io::Error::other(format!("{came} of {sent} bytes arrived")));
                }
            }
            Kind::Download => {
                while goes_on() {
                    let length = stream.read(&mut bytes)?;
                    if length == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    numbers.check(&bytes[..length])?;
                    step();
                }
            }
        }
        Ok(())
    }
}

/// Sends a number, waits for the echo, and returns the round-trip time.
fn echo(stream: &mut TcpStream, numbers: &mut Numbers) -> io::Result<Duration> {
    let (mut sent, mut back) = ([0; 8], [0; 8]);
    numbers.fill(&mut sent);
    let begun = Instant::now();
    stream.write_all(&sent)?;
    stream.read_exact(&mut back)?;
    if sent != back {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "another number came back"));
    }
    Ok(begun.elapsed())
}
