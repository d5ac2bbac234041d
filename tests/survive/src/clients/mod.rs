//! The clients. Each runs in its own threads in the client's namespace, from many addresses and
//! over both families, and records every connection.
//!
//! Nothing is retried: a broken connection stays broken, and the next attempt is a new connection.

mod git;
mod glance;
mod idle;
mod long_poll;
mod relay;
mod requests;
mod stream;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Result;
pub(crate) use glance::{Pool, fill};
use glb_lab::{Family, Netns, client};
pub(crate) use requests::pause_for;

use crate::{accounting::Ledger, options::Load, random::Random};

/// The shared context of all clients.
#[derive(Debug)]
pub(crate) struct ClientContext {
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) netns: Netns,
    pub(crate) load: Load,
    pub(crate) seed: u64,
    /// The repositories that every backend serves.
    pub(crate) repositories: PathBuf,
    /// The target folder of clones.
    pub(crate) copies: PathBuf,
    /// The next client address to use.
    next_address: AtomicU16,
    stop: AtomicBool,
}

/// The number of client addresses in use.
const ADDRESSES: u16 = 4000;

impl ClientContext {
    /// Creates the context for the clients of this namespace.
    pub(crate) fn new(
        ledger: &Arc<Ledger>,
        netns: Netns,
        load: Load,
        seed: u64,
        repositories: PathBuf,
        copies: PathBuf,
    ) -> Self {
        Self {
            ledger: Arc::clone(ledger),
            netns,
            load,
            seed,
            repositories,
            copies,
            next_address: AtomicU16::new(0),
            stop: AtomicBool::new(false),
        }
    }

    /// Returns whether no new work should start.
    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// The next client address.
    fn address(&self, family: Family) -> std::net::IpAddr {
        let number = self.next_address.fetch_add(1, Ordering::Relaxed) % ADDRESSES + 1;
        client(family, number)
    }

    /// Sleeps, but not past the end of the run.
    fn pause(&self, time: Duration) {
        let end = std::time::Instant::now() + time;
        while !self.stopped() && std::time::Instant::now() < end {
            thread::sleep(Duration::from_millis(20).min(time));
        }
    }
}

/// All running clients. On drop, started work is finished first.
#[derive(Debug)]
pub(crate) struct Clients {
    site: Arc<ClientContext>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    /// Starts the clients. `pool` holds Glance's images, if there is Glance.
    pub(crate) fn start(site: &Arc<ClientContext>, pool: Option<&Arc<Pool>>) -> Self {
        let mut clients = Self { site: Arc::clone(site), threads: Vec::new() };
        let load = &site.load;
        clients.run(load.idle, 1, idle::run);
        clients.run(load.long_polls, 2, long_poll::run);
        clients.run(load.requests, 3, requests::run);
        clients.run(load.clones, 4, git::clones);
        clients.run(load.pushes, 5, git::pushes);
        if let Some(pool) = pool {
            let (up, down) = (Arc::clone(pool), Arc::clone(pool));
            clients.run(load.uploads, 6, move |worker| glance::uploads(worker, &up));
            clients.run(load.downloads, 7, move |worker| glance::downloads(worker, &down));
        }
        clients
    }

    fn run(
        &mut self,
        count: u16,
        purpose: u64,
        work: impl Fn(&mut Worker) + Send + Sync + 'static,
    ) {
        let work = Arc::new(work);
        for number in 0..count {
            let (site, work) = (Arc::clone(&self.site), Arc::clone(&work));
            let random = Random::new(site.seed, purpose << 32 | u64::from(number));
            self.threads.push(thread::spawn(move || {
                if let Err(error) = site.netns.enter_this_thread() {
                    eprintln!("a client cannot begin: {error:#}");
                    return;
                }
                let mut worker = Worker { site, number, random };
                // The start times are spread.
                let first = worker.random.below(1500);
                worker.site.pause(Duration::from_millis(first));
                while !worker.site.stopped() {
                    work(&mut worker);
                }
            }));
        }
    }

    /// Starts no new work and waits for the started work.
    ///
    /// # Errors
    /// When a client panicked.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.join()
    }

    fn join(&mut self) -> Result<()> {
        self.site.stop.store(true, Ordering::Relaxed);
        let mut panicked = 0;
        for thread in self.threads.drain(..) {
            panicked += u32::from(thread.join().is_err());
        }
        anyhow::ensure!(panicked == 0, "{panicked} clients panicked");
        Ok(())
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        // An aborted run does not wait for slow transfers.
        self.site.stop.store(true, Ordering::Relaxed);
        while self.threads.iter().any(|thread| !thread.is_finished()) {
            self.site.ledger.cut_all();
            thread::sleep(Duration::from_millis(100));
        }
        if let Err(error) = self.join() {
            eprintln!("{error:#}");
        }
    }
}

/// One client: a thread that runs one job after the other.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) site: Arc<ClientContext>,
    /// The number of this client among those of the same kind.
    pub(crate) number: u16,
    pub(crate) random: Random,
}

impl Worker {
    /// Alternates between the families.
    fn family(&mut self) -> Family {
        if self.random.below(2) == 0 { Family::V4 } else { Family::V6 }
    }
}
