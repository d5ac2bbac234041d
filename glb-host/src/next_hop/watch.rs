//! When to ask the kernel again.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::watch::{Receiver, Sender},
    time::{Instant, sleep, sleep_until},
};

use super::{
    Snapshot,
    kernel::{Event, Events, Netlink},
    resolve::{Next, round},
};

/// Changes come in flocks (a link that comes up is a dozen messages); one round answers them all.
const DEBOUNCE: Duration = Duration::from_millis(5);

/// A round is made at least this often, whatever is heard. It confirms entries that nobody but an
/// XDP program uses, and mends what a lost message would have broken.
const EVERY: Duration = Duration::from_secs(2);

/// The kernel is asked to resolve one neighbour at most this often.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// How long to wait before netlink is opened again.
const REOPEN: Duration = Duration::from_secs(1);

pub(super) struct Watcher {
    kernel: Netlink,
    targets: Receiver<BTreeSet<IpAddr>>,
    publish: Sender<Arc<Snapshot>>,
    asked: HashMap<Next, Instant>,
    next: HashMap<Next, bool>,
}

impl Watcher {
    pub(super) fn new(
        kernel: Netlink,
        targets: Receiver<BTreeSet<IpAddr>>,
        publish: Sender<Arc<Snapshot>>,
    ) -> Self {
        Self { kernel, targets, publish, asked: HashMap::new(), next: HashMap::new() }
    }

    /// One round: asks, publishes what changed, and has missing neighbours resolved.
    pub(super) async fn resolve(&mut self) {
        let targets = self.targets.borrow_and_update().clone();
        let round = round(&self.kernel, &targets).await;
        self.publish.send_if_modified(|published| {
            let changed = **published != round.snapshot;
            if changed {
                for (target, found) in &round.snapshot {
                    let before = published.get(target);
                    if before != Some(found) {
                        match found {
                            Ok(hop) => tracing::debug!(%target, ?hop, "next hop"),
                            Err(why) => tracing::debug!(%target, %why, "no next hop"),
                        }
                    }
                }
                *published = Arc::new(round.snapshot);
            }
            changed
        });
        self.next = round.next;
        self.asked.retain(|next, _| self.next.contains_key(next));
        let now = Instant::now();
        for (next, unsettled) in &self.next {
            let lately = self.asked.get(next).is_some_and(|at| now < *at + ASK_AGAIN);
            if *unsettled && !lately {
                self.asked.insert(*next, now);
                if let Err(error) = self.kernel.ask(next.0, next.1).await {
                    tracing::debug!(interface = next.0, address = %next.1, %error, "cannot ask");
                }
            }
        }
    }

    /// Follows the kernel for ever.
    pub(super) async fn run(mut self, mut events: Events) {
        let mut due = Instant::now() + EVERY;
        loop {
            tokio::select! {
                () = sleep_until(due) => {}
                // The handle is gone: so is the need.
                changed = self.targets.changed() => if changed.is_err() { return },
                event = events.next() => match event {
                    Some(event) => {
                        if self.concerns(&event) {
                            due = due.min(Instant::now() + DEBOUNCE);
                        }
                        continue;
                    }
                    None => {
                        tracing::warn!("netlink closed its side; it is opened again");
                        sleep(REOPEN).await;
                        match (self.kernel.reopen(), Events::open()) {
                            (Ok(kernel), Ok(again)) => (self.kernel, events) = (kernel, again),
                            (Err(error), _) | (_, Err(error)) => {
                                tracing::error!(%error, "cannot open netlink");
                            }
                        }
                    }
                },
            }
            self.resolve().await;
            due = Instant::now() + EVERY;
        }
    }

    fn concerns(&self, event: &Event) -> bool {
        match event {
            // A busy segment has thousands of neighbours that nobody here sends to.
            Event::Neighbour(next) => self.next.contains_key(next),
            Event::Other | Event::Overrun => true,
        }
    }
}
