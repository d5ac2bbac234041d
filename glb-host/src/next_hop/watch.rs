//! The schedule of resolutions: after notifications, and regularly.

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
    resolve::{NeighbourKey, resolve_all},
};

/// Debounce time: notifications come in bursts (a link that comes up causes a dozen), and one
/// resolution answers them all.
const DEBOUNCE: Duration = Duration::from_millis(5);

/// The longest time between two resolutions. They confirm neighbours that only an XDP program uses,
/// and repair what a lost notification broke.
const MAX_INTERVAL: Duration = Duration::from_secs(2);

/// The shortest time between two probes of one neighbour.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// How long to wait before netlink is opened again.
const REOPEN_DELAY: Duration = Duration::from_secs(1);

pub(super) struct Watcher {
    kernel: Netlink,
    targets: Receiver<BTreeSet<IpAddr>>,
    publish: Sender<Arc<Snapshot>>,
    probed: HashMap<NeighbourKey, Instant>,
    next: HashMap<NeighbourKey, bool>,
}

impl Watcher {
    pub(super) fn new(
        kernel: Netlink,
        targets: Receiver<BTreeSet<IpAddr>>,
        publish: Sender<Arc<Snapshot>>,
    ) -> Self {
        Self { kernel, targets, publish, probed: HashMap::new(), next: HashMap::new() }
    }

    /// Resolves all targets, publishes changes, and probes missing neighbours.
    pub(super) async fn resolve(&mut self) {
        let targets = self.targets.borrow_and_update().clone();
        let round = resolve_all(&self.kernel, &targets).await;
        self.publish.send_if_modified(|published| {
            let changed = **published != round.snapshot;
            if changed {
                for (target, found) in &round.snapshot {
                    let before = published.get(target);
                    if before != Some(found) {
                        match found {
                            Ok(hop) => tracing::debug!(%target, ?hop, "next hop resolved"),
                            Err(why) => tracing::debug!(%target, %why, "no next hop"),
                        }
                    }
                }
                *published = Arc::new(round.snapshot);
            }
            changed
        });
        self.next = round.next;
        self.probed.retain(|next, _| self.next.contains_key(next));
        let now = Instant::now();
        for (next, unsettled) in &self.next {
            let lately = self.probed.get(next).is_some_and(|at| now < *at + PROBE_INTERVAL);
            if *unsettled && !lately {
                self.probed.insert(*next, now);
                if let Err(error) = self.kernel.probe(next.0, next.1).await {
                    tracing::debug!(interface = next.0, address = %next.1, %error, "cannot probe the neighbour");
                }
            }
        }
    }

    /// Follows the kernel until the handle is dropped.
    pub(super) async fn run(mut self, mut events: Events) {
        let mut due = Instant::now() + MAX_INTERVAL;
        loop {
            tokio::select! {
                () = sleep_until(due) => {}
                // The handle was dropped.
                changed = self.targets.changed() => if changed.is_err() { return },
                event = events.next() => match event {
                    Some(event) => {
                        if self.concerns(&event) {
                            due = due.min(Instant::now() + DEBOUNCE);
                        }
                        continue;
                    }
                    None => {
                        tracing::warn!("netlink connection closed; opening it again");
                        sleep(REOPEN_DELAY).await;
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
            due = Instant::now() + MAX_INTERVAL;
        }
    }

    fn concerns(&self, event: &Event) -> bool {
        match event {
            // A busy segment has thousands of neighbours that are not next hops.
            Event::Neighbour(next) => self.next.contains_key(next),
            Event::Other | Event::Overrun => true,
        }
    }
}
