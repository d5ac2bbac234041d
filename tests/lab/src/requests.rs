//! Many short requests from many client addresses, each over a new connection.

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

/// A finished request.
#[derive(Clone, Debug)]
pub struct Request {
    /// The start of its connection.
    pub started: Instant,
    /// The name of the backend that answered, or the error.
    pub answer: Result<String, String>,
}

/// The client addresses in use, from number 1 on. Number 0 belongs to the clone.
const ADDRESSES: u16 = 1000;

/// Requests the VIP's page until it is dropped.
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
    /// Starts `parallel` clients, each with a pause between requests.
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

    /// Counts the answers by backend, and the errors, of requests started within a time span.
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
