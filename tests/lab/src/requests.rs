//! Many short requests from many client addresses, each over a connection of its own.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{
    http,
    plan::{Family, Node, client, vip},
    topology::Lab,
};

/// A request that is over.
#[derive(Clone, Debug)]
pub struct Request {
    /// When its connection was begun.
    pub started: Instant,
    /// The name of the backend that answered, or what went wrong.
    pub answer: Result<String, String>,
}

/// Client addresses in use, from number 1 on: number 0 is the clone's.
const ADDRESSES: u16 = 1000;

/// Asks for the page of the VIP until dropped.
#[derive(Debug)]
pub struct Requests {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    next: AtomicU16,
    done: Mutex<Vec<Request>>,
}

impl Requests {
    /// Starts `parallel` clients, each pausing between requests.
    ///
    /// # Errors
    /// When the lab has no client.
    pub fn start(lab: &Lab, family: Family, parallel: usize, pause: Duration) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let netns = lab.netns(Node::Client)?;
        let threads = (0..parallel).map(|_| {
            let (netns, shared) = (netns.clone(), Arc::clone(&shared));
            thread::spawn(move || {
                netns.enter_this_thread()?;
                while !shared.stop.load(Ordering::Relaxed) {
                    shared.ask(family);
                    thread::sleep(pause);
                }
                Ok(())
            })
        });
        let threads = threads.collect();
        Ok(Self { shared, threads })
    }

    /// How many answers of each backend there were to requests begun within a span of time, and
    /// the errors.
    #[must_use]
    pub fn between(&self, from: Instant, to: Instant) -> (BTreeMap<String, u64>, Vec<String>) {
        let (mut answers, mut errors) = (BTreeMap::new(), Vec::new());
        for request in self.shared.lock().iter() {
            if (from..to).contains(&request.started) {
                match &request.answer {
                    Ok(name) => *answers.entry(name.clone()).or_default() += 1,
                    Err(error) => errors.push(error.clone()),
                }
            }
        }
        (answers, errors)
    }
}

impl Shared {
    fn ask(&self, family: Family) {
        let number = self.next.fetch_add(1, Ordering::Relaxed) % ADDRESSES + 1;
        let to = SocketAddr::new(vip(family), 80);
        let started = Instant::now();
        let answer = http::get(client(family, number), to, "/", Duration::from_secs(5));
        let answer = match answer {
            Ok(reply) if reply.status == 200 => {
                Ok(String::from_utf8_lossy(&reply.body).trim().to_owned())
            }
            Ok(reply) => Err(reply.to_string()),
            Err(error) => Err(format!("{error:#}")),
        };
        self.lock().push(Request { started, answer });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Request>> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => eprintln!("a client stopped: {error:#}"),
                Err(_) => eprintln!("a client panicked"),
            }
        }
    }
}
