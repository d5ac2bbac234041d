//! Withdrawing before the change that ends a VIP's service, never after.
//!
//! Before a generation is swapped in, [`Ahead`] has whatever its tables will not serve withdrawn, waits
//! until that is done, and then for the packets that are still on their way. What cannot be withdrawn
//! keeps the change from being made: the tables in force serve it. An announcement that goes because
//! too few of its backends are healthy is waited for too, but holds nothing back: its packets are
//! forwarded by the new tables as well as by the old ones, and who is healthy concerns all tables.

use std::{sync::Arc, time::Duration};

use glb_table::TableSet;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until, timeout_at},
};
use tracing::{info, warn};

use super::{
    Announcement, Level, WithdrawLimits, eligibility,
    speaker::Way,
    state_machine::{Cause, Unfit},
    task::{Announcer, Request},
};

/// How long a change waits for what it leaves with too few healthy backends, and for the thread to look
/// at its tables.
const PATIENCE: Duration = Duration::from_secs(1);

/// Announcements that a change would leave without service, and that are not known to be withdrawn.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "what the new table does not serve cannot be withdrawn first, so it is not brought into force, and \
     what runs goes on serving it:\n{what}\n  \
     The withdrawal is tried on, and a reload follows it by itself. `--force` does not wait for it: \
     packets that still come to these VIPs are then lost."
)]
pub struct NotWithdrawn {
    /// A line for each, with the reason.
    pub what: String,
}

/// What is known of an announcement's withdrawal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// Since when it has been wished and known to be withdrawn, without a break.
    pub(super) withdrawn: Option<Instant>,
    /// What the way complains of; empty if nothing.
    pub(super) error: String,
}

/// Has announcements withdrawn ahead of a change.
#[derive(Debug)]
pub struct Ahead {
    announcements: Vec<Announcement>,
    limits: WithdrawLimits,
    /// The thread of the announcements; before it is started, it is done from here.
    thread: Option<Thread>,
    /// The change that waits for a withdrawal.
    put_off: Option<PutOff>,
}

#[derive(Debug)]
struct Thread {
    requests: mpsc::UnboundedSender<Request>,
    known: watch::Receiver<Vec<Known>>,
}

#[derive(Debug)]
struct PutOff {
    tables: Arc<TableSet>,
    since: Instant,
    /// Indices of the announcements that it waits for.
    leaving: Vec<usize>,
}

impl Ahead {
    /// Withdraws by itself, as long as there is no thread.
    #[must_use]
    pub fn new(announcements: &[Announcement], limits: WithdrawLimits) -> Self {
        Self { announcements: announcements.to_vec(), limits, thread: None, put_off: None }
    }

    /// From now on the thread is asked, also for what has been put off.
    pub fn ask(&mut self, announcer: &Announcer) {
        self.thread = announcer.hands().map(|(requests, known)| Thread { requests, known });
        if let (Some(thread), Some(put_off)) = (&self.thread, &self.put_off) {
            let (seen, _) = oneshot::channel();
            drop(thread.requests.send(Request::Ahead(Arc::clone(&put_off.tables), seen)));
        }
    }

    /// Sees to it that nothing is announced that `tables`, which are about to come into force, do not
    /// serve. They count for the announcements from now on until [`Self::over`]. With `force` it goes
    /// on when that cannot be had in time.
    ///
    /// # Errors
    /// When it cannot be had in time. [`Self::cleared`] then tells when it can.
    pub async fn make_way(
        &mut self,
        tables: &Arc<TableSet>,
        force: bool,
    ) -> Result<(), NotWithdrawn> {
        let (leaving, ill) = self.parting(tables);
        if leaving.is_empty() && ill.is_empty() {
            self.over();
            return Ok(());
        }
        let now = Instant::now();
        // Whoever asks again does not wait again.
        let again = self.put_off.as_ref().filter(|put_off| put_off.leaving == leaving);
        let since = again.map_or(now, |put_off| put_off.since);
        let patience = if leaving.is_empty() {
            self.limits.timeout.min(PATIENCE)
        } else {
            self.limits.timeout
        };
        let all: Vec<usize> = leaving.iter().chain(&ill).copied().collect();
        let known = self.withdraw(tables, &all, since + patience).await;
        let there = |index: &usize| known.get(*index).and_then(|known| known.withdrawn);
        let late = |indices: &[usize]| {
            let late = indices.iter().filter(|index| there(index).is_none());
            late.map(|index| self.complaint(*index, &known)).collect::<Vec<_>>().join("\n")
        };
        let (unserved, too_few) = (late(&leaving), late(&ill));
        if !too_few.is_empty() {
            warn!("not withdrawn yet, though too few backends are healthy:\n{too_few}");
        }
        if unserved.is_empty() {
            if let Some(last) = leaving.iter().filter_map(there).max() {
                sleep_until(last + self.limits.grace).await;
            }
            return Ok(());
        }
        if force {
            warn!("no longer served, and not known to be withdrawn, as was asked for:\n{unserved}");
            return Ok(());
        }
        self.put_off = Some(PutOff { tables: Arc::clone(tables), since, leaving });
        Err(NotWithdrawn { what: unserved })
    }

    /// The tables of [`Self::make_way`] are in force, or will not come into force.
    pub fn over(&mut self) {
        // What a start puts off is for the thread.
        if let Some(thread) = &self.thread {
            self.put_off = None;
            drop(thread.requests.send(Request::Over));
        }
    }

    /// Returns when what a change was put off for is withdrawn: it can be tried again. For ever if
    /// nothing is put off. Can be dropped and called again.
    pub async fn cleared(&mut self) {
        if let (Some(thread), Some(PutOff { leaving, .. })) = (&mut self.thread, &self.put_off) {
            let done = |known: &Vec<Known>| all_withdrawn(known, leaving);
            if thread.known.wait_for(done).await.is_ok() {
                info!("withdrawn; what was put off is tried again");
                return;
            }
        }
        std::future::pending().await
    }

    /// Indices of the announcements that these tables do not serve, and of those that they leave with
    /// too few healthy backends.
    fn parting(&self, tables: &TableSet) -> (Vec<usize>, Vec<usize>) {
        let all = self.announcements.iter().enumerate();
        let unfit =
            all.filter_map(|(index, one)| Some((index, eligibility::by_tables(one, tables)?)));
        let (leaving, ill): (Vec<_>, Vec<_>) =
            unfit.partition(|(_, Unfit { cause, .. })| *cause == Cause::NotInTables);
        let indices =
            |unfit: Vec<(usize, Unfit)>| unfit.into_iter().map(|(index, _)| index).collect();
        (indices(leaving), indices(ill))
    }

    /// What is known of each announcement when those of `indices` are withdrawn, or the time is up.
    async fn withdraw(
        &mut self,
        tables: &Arc<TableSet>,
        indices: &[usize],
        until: Instant,
    ) -> Vec<Known> {
        let Some(thread) = &mut self.thread else {
            return self.withdraw_from_here(indices, until).await;
        };
        let (seen, was_seen) = oneshot::channel();
        drop(thread.requests.send(Request::Ahead(Arc::clone(tables), seen)));
        // What is known before it has looked at these tables is about other wishes. Looking takes no
        // time, also where that of the withdrawal is up.
        let soon = until.max(Instant::now() + PATIENCE);
        match timeout_at(soon, was_seen).await {
            Ok(Ok(())) => {}
            gone => {
                let error = match gone {
                    Ok(_) => "the thread of the announcements has ended",
                    Err(_) => "the thread of the announcements does not answer",
                };
                let known = Known { withdrawn: None, error: error.to_owned() };
                return vec![known; self.announcements.len()];
            }
        }
        let done = |known: &Vec<Known>| all_withdrawn(known, indices);
        drop(timeout_at(until, thread.known.wait_for(done)).await);
        thread.known.borrow().clone()
    }

    async fn withdraw_from_here(&self, indices: &[usize], until: Instant) -> Vec<Known> {
        let mut all = vec![Known::default(); self.announcements.len()];
        for index in indices {
            let mut way = Way::new(&self.announcements[*index]);
            let begun = Instant::now();
            let work = async {
                let is_there = way.look().await? != Some(Level::Withdrawn);
                if is_there {
                    way.bring(Level::Withdrawn).await?;
                    return Ok(Instant::now());
                }
                // It has been so for nobody knows how long.
                Ok(begun.checked_sub(self.limits.grace).unwrap_or(begun))
            };
            all[*index] = match timeout_at(until, work).await {
                Ok(Ok(since)) => Known { withdrawn: Some(since), error: String::new() },
                Ok(Err(error)) => {
                    let withdrawn = Way::is_away(&error).then_some(begun);
                    Known { withdrawn, error: error.to_string() }
                }
                Err(_) => Known { withdrawn: None, error: "it takes too long".to_owned() },
            };
        }
        all
    }

    fn complaint(&self, index: usize, known: &[Known]) -> String {
        let error = known.get(index).map_or("", |known| known.error.as_str());
        let Announcement { name, way, .. } = &self.announcements[index];
        let error = if error.is_empty() { "no answer yet" } else { error };
        format!("  announcement {name:?} (way \"{}\"): {error}", way.name())
    }
}

fn all_withdrawn(known: &[Known], indices: &[usize]) -> bool {
    indices.iter().all(|index| known.get(*index).is_some_and(|known| known.withdrawn.is_some()))
}
