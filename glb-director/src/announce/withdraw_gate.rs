//! Withdraws announcements before the change that ends their VIPs' service.
//!
//! Before a generation is swapped in, [`WithdrawGate`] withdraws what the new tables do not serve, waits
//! for the confirmation, and then for late packets. If a withdrawal is not confirmed, the change is
//! deferred and the tables in force go on serving the VIP.
//!
//! An announcement with too few healthy backends is withdrawn and waited for too, but never defers a
//! change: old and new tables forward its packets alike.

use std::{sync::Arc, time::Duration};

use glb_table::TableSet;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until, timeout_at},
};
use tracing::{info, warn};

use super::{
    Announcement, AnnouncementState, WithdrawLimits, eligibility,
    messages::{Request, Withdrawal},
    speaker::Speaker,
    state_machine::{Blocker, Cause},
    task::Announcer,
};

/// How long a change waits for announcements with too few healthy backends, and for the thread to
/// take new tables into account.
const SHORT_WAIT: Duration = Duration::from_secs(1);

/// Withdrawals that must precede a change and are not confirmed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot withdraw what the new table does not serve, so the running table stays in force:\n{what}\n  \
     The withdrawal is retried, and the table is reloaded once it is confirmed. `--force` does not \
     wait: packets that still arrive for these VIPs are then dropped."
)]
pub struct WithdrawalUnconfirmed {
    /// One line for each announcement, with the reason.
    pub what: String,
}

/// Withdraws announcements ahead of a change.
#[derive(Debug)]
pub struct WithdrawGate {
    announcements: Vec<Announcement>,
    limits: WithdrawLimits,
    /// The announcement thread; before it is started, the gate withdraws by itself.
    task: Option<Task>,
    /// The change that waits for a withdrawal.
    deferred: Option<DeferredChange>,
}

#[derive(Debug)]
struct Task {
    requests: mpsc::UnboundedSender<Request>,
    withdrawals: watch::Receiver<Vec<Withdrawal>>,
}

#[derive(Debug)]
struct DeferredChange {
    tables: Arc<TableSet>,
    since: Instant,
    /// Indices of the announcements that the change waits for.
    unserved: Vec<usize>,
}

impl WithdrawGate {
    /// Creates the gate. It withdraws by itself until [`Self::use_task`] is called.
    #[must_use]
    pub fn new(announcements: &[Announcement], limits: WithdrawLimits) -> Self {
        Self { announcements: announcements.to_vec(), limits, task: None, deferred: None }
    }

    /// Hands withdrawals, a deferred change's included, to the announcement thread.
    pub fn use_task(&mut self, announcer: &Announcer) {
        self.task =
            announcer.handle().map(|(requests, withdrawals)| Task { requests, withdrawals });
        if let (Some(task), Some(deferred)) = (&self.task, &self.deferred) {
            let (seen, _) = oneshot::channel();
            drop(task.requests.send(Request::Prepare(Arc::clone(&deferred.tables), seen)));
        }
    }

    /// Withdraws what `tables` do not serve, and waits for the confirmation. Until [`Self::finish`],
    /// nothing is announced that they do not serve. With `force`, an unconfirmed withdrawal is no
    /// error.
    ///
    /// # Errors
    /// When a withdrawal is not confirmed in time; [`Self::unblocked`] returns once it is.
    pub async fn withdraw_before_swap(
        &mut self,
        tables: &Arc<TableSet>,
        force: bool,
    ) -> Result<(), WithdrawalUnconfirmed> {
        let (unserved, unhealthy) = self.affected_by(tables);
        if unserved.is_empty() && unhealthy.is_empty() {
            self.finish();
            return Ok(());
        }
        let now = Instant::now();
        // A repeated attempt does not wait again.
        let earlier = self.deferred.as_ref().filter(|deferred| deferred.unserved == unserved);
        let since = earlier.map_or(now, |deferred| deferred.since);
        let longest = if unserved.is_empty() {
            self.limits.timeout.min(SHORT_WAIT)
        } else {
            self.limits.timeout
        };
        let all: Vec<usize> = unserved.iter().chain(&unhealthy).copied().collect();
        let withdrawals = self.withdraw(tables, &all, since + longest).await;
        let confirmed = |index: &usize| withdrawals.get(*index).and_then(|one| one.confirmed);
        let failures = |indices: &[usize]| {
            let late = indices.iter().filter(|index| confirmed(index).is_none());
            late.map(|index| self.failure(*index, &withdrawals)).collect::<Vec<_>>().join("\n")
        };
        let (failed, late) = (failures(&unserved), failures(&unhealthy));
        if !late.is_empty() {
            warn!(announcements = %late, "too few healthy backends, withdrawal not confirmed");
        }
        if failed.is_empty() {
            if let Some(last) = unserved.iter().filter_map(confirmed).max() {
                sleep_until(last + self.limits.grace).await;
            }
            return Ok(());
        }
        if force {
            warn!(announcements = %failed, "forced change: VIPs lose service, withdrawal not confirmed");
            return Ok(());
        }
        self.deferred = Some(DeferredChange { tables: Arc::clone(tables), since, unserved });
        Err(WithdrawalUnconfirmed { what: failed })
    }

    /// Ends what [`Self::withdraw_before_swap`] began: its tables are in force, or will not be.
    pub fn finish(&mut self) {
        // A change that was deferred before the thread started is handed to the thread.
        if let Some(task) = &self.task {
            self.deferred = None;
            drop(task.requests.send(Request::PrepareDone));
        }
    }

    /// Returns when the deferred change can be tried again; never without one. May be cancelled and
    /// called again.
    pub async fn unblocked(&mut self) {
        if let (Some(task), Some(DeferredChange { unserved, .. })) =
            (&mut self.task, &self.deferred)
        {
            let done = |all: &Vec<Withdrawal>| are_confirmed(all, unserved);
            if task.withdrawals.wait_for(done).await.is_ok() {
                info!("withdrawal confirmed, deferred change is tried again");
                return;
            }
        }
        std::future::pending().await
    }

    /// Returns the indices of announcements that these tables do not serve, and of those with too
    /// few healthy backends.
    fn affected_by(&self, tables: &TableSet) -> (Vec<usize>, Vec<usize>) {
        let all = self.announcements.iter().enumerate();
        let blocked =
            all.filter_map(|(index, one)| Some((index, eligibility::by_tables(one, tables)?)));
        let (unserved, unhealthy): (Vec<_>, Vec<_>) =
            blocked.partition(|(_, Blocker { cause, .. })| *cause == Cause::NotInTables);
        let indices =
            |blocked: Vec<(usize, Blocker)>| blocked.into_iter().map(|(index, _)| index).collect();
        (indices(unserved), indices(unhealthy))
    }

    /// Withdraws the announcements of `indices`; returns when all are confirmed, or at `until`.
    async fn withdraw(
        &mut self,
        tables: &Arc<TableSet>,
        indices: &[usize],
        until: Instant,
    ) -> Vec<Withdrawal> {
        let Some(task) = &mut self.task else {
            return self.withdraw_without_task(indices, until).await;
        };
        let (seen, was_seen) = oneshot::channel();
        drop(task.requests.send(Request::Prepare(Arc::clone(tables), seen)));
        // Until the thread has seen these tables, its report concerns other decisions.
        let soon = until.max(Instant::now() + SHORT_WAIT);
        match timeout_at(soon, was_seen).await {
            Ok(Ok(())) => {}
            failed => {
                let error = match failed {
                    Ok(_) => "the announcement thread has ended; restart the daemon",
                    Err(_) => "the announcement thread does not answer",
                };
                let failed = Withdrawal { confirmed: None, error: error.to_owned() };
                return vec![failed; self.announcements.len()];
            }
        }
        let done = |all: &Vec<Withdrawal>| are_confirmed(all, indices);
        drop(timeout_at(until, task.withdrawals.wait_for(done)).await);
        task.withdrawals.borrow().clone()
    }

    async fn withdraw_without_task(&self, indices: &[usize], until: Instant) -> Vec<Withdrawal> {
        let mut all = vec![Withdrawal::default(); self.announcements.len()];
        for index in indices {
            let mut speaker = Speaker::new(&self.announcements[*index]);
            let begun = Instant::now();
            let work = async {
                if speaker.observe().await? != Some(AnnouncementState::Withdrawn) {
                    speaker.apply(AnnouncementState::Withdrawn).await?;
                    return Ok(Instant::now());
                }
                // It was withdrawn before: no late packets are to be expected.
                Ok(begun.checked_sub(self.limits.grace).unwrap_or(begun))
            };
            let result: Result<Result<_, super::SpeakerError>, _> = timeout_at(until, work).await;
            all[*index] = match result {
                Ok(Ok(since)) => Withdrawal { confirmed: Some(since), error: String::new() },
                Ok(Err(error)) => Withdrawal { confirmed: None, error: error.to_string() },
                Err(_) => Withdrawal { confirmed: None, error: "no answer in time".to_owned() },
            };
        }
        all
    }

    fn failure(&self, index: usize, withdrawals: &[Withdrawal]) -> String {
        let error = withdrawals.get(index).map_or("", |one| one.error.as_str());
        let Announcement { name, method, .. } = &self.announcements[index];
        let error = if error.is_empty() { "no answer yet" } else { error };
        format!("  announcement {name:?} (method \"{}\"): {error}", method.name())
    }
}

fn are_confirmed(all: &[Withdrawal], indices: &[usize]) -> bool {
    indices.iter().all(|index| all.get(*index).is_some_and(|one| one.confirmed.is_some()))
}
