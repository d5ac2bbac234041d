//! The announcement thread: it feeds the state machine and publishes its decisions.
//!
//! It has a runtime of its own, so a reload in the daemon's loop does not delay a withdrawal.

use std::{collections::BTreeMap, future::Future, io, sync::Arc, thread, time::Duration};

use glb_host::{
    control::{Refusal, Responder},
    failpoints,
};
use glb_table::TableSet;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, timeout},
};
use tracing::{info, warn};

use super::{
    AnnounceView, Announcement, AnnouncementState, AnnouncementView, DrainLimits, SpeakerError,
    Stage, eligibility,
    messages::{DrainOutcome, Request, Withdrawal},
    speaker::{self, Speaker, SpeakerStatus, Target},
    state_machine::{Decision, DrainEvent, DrainRequest, Inputs, Observation, StateMachine},
};
use crate::views::Observer;

/// How often the state machine runs when nothing has changed.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How often it runs during a drain.
const DRAIN_CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// How long the thread waits for the first report of every speaker.
const FIRST_REPORTS: Duration = Duration::from_secs(5);

/// The daemon's handle of the announcement thread; empty if no announcement is configured.
#[derive(Debug)]
pub struct Announcer(Option<ThreadHandle>);

#[derive(Debug)]
struct ThreadHandle {
    requests: mpsc::UnboundedSender<Request>,
    withdrawals: watch::Receiver<Vec<Withdrawal>>,
    outcomes: mpsc::UnboundedReceiver<DrainOutcome>,
}

impl Announcer {
    /// Starts the thread, if announcements are configured. Call it once the director serves.
    ///
    /// `drain` continues the drain of the previous process: `Some(None)` stays drained.
    ///
    /// # Errors
    /// When the thread or its runtime cannot be started.
    pub fn start(
        announcements: &[Announcement],
        limits: DrainLimits,
        observer: Observer,
        drain: Option<Option<DrainRequest>>,
    ) -> io::Result<Self> {
        if announcements.is_empty() {
            return Ok(Self(None));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (requests, received) = mpsc::unbounded_channel();
        let (outcome_sender, outcomes) = mpsc::unbounded_channel();
        let (withdrawal_sender, withdrawals) = watch::channel(Vec::new());
        let announcements = announcements.to_vec();
        let work = async move {
            let senders = (outcome_sender, withdrawal_sender);
            let mut task = AnnounceTask::new(announcements, limits, observer, senders);
            match drain {
                Some(Some(request)) => task.machine.drain(task.now(), request),
                Some(None) => task.machine.stay_drained(task.now()),
                None => {}
            }
            task.run(received).await;
        };
        let thread = thread::Builder::new().name("announce".into());
        thread.spawn(move || runtime.block_on(work))?;
        Ok(Self(Some(ThreadHandle { requests, withdrawals, outcomes })))
    }

    /// The channels for the withdraw gate; nothing without a thread.
    pub(super) fn handle(
        &self,
    ) -> Option<(mpsc::UnboundedSender<Request>, watch::Receiver<Vec<Withdrawal>>)> {
        self.0.as_ref().map(|handle| (handle.requests.clone(), handle.withdrawals.clone()))
    }

    /// Whether any announcement is configured.
    #[must_use]
    pub const fn announces(&self) -> bool {
        self.0.is_some()
    }

    /// Begins a drain. `answer` receives its progress and its outcome.
    pub fn drain(&self, request: DrainRequest, answer: Option<Responder>) {
        self.send(Request::Drain(request, answer));
    }

    /// Cancels the drain and announces again.
    pub fn cancel(&self, answer: Option<Responder>) {
        self.send(Request::Cancel(answer));
    }

    fn send(&self, request: Request) {
        let refused = match &self.0 {
            // If the thread has ended, dropping the answer tells the client that the daemon ends.
            Some(handle) => return drop(handle.requests.send(request)),
            None => request,
        };
        if let Request::Drain(_, Some(answer)) | Request::Cancel(Some(answer)) = refused {
            let text = "cannot drain: the configuration has no `announce` table. Withdraw this \
                        director's routes on the routers";
            answer.done(Err::<(), _>(Refusal::failed(text)));
        }
    }

    /// Returns the next outcome of a drain. May be cancelled and called again.
    pub async fn next_outcome(&mut self) -> DrainOutcome {
        if let Some(handle) = &mut self.0
            && let Some(outcome) = handle.outcomes.recv().await
        {
            return outcome;
        }
        std::future::pending().await
    }
}

/// Withdraws every announcement once; returns those whose withdrawal is not confirmed, with the error.
pub async fn withdraw_all(announcements: &[Announcement]) -> Vec<(String, SpeakerError)> {
    let mut failed = Vec::new();
    for announcement in announcements {
        let applied = Speaker::new(announcement).apply(AnnouncementState::Withdrawn).await;
        if let Err(error) = applied {
            failed.push((announcement.name.clone(), error));
        }
    }
    failed
}

/// Asks each method whether it can work; returns an error for each that cannot. Changes nothing.
pub async fn check_methods(announcements: &[Announcement]) -> Vec<String> {
    let mut errors = Vec::new();
    for announcement in announcements {
        if let Err(error) = Speaker::new(announcement).check().await {
            errors.push(format!("announcement {:?}: {error}", announcement.name));
        }
    }
    errors
}

struct AnnounceTask {
    announcements: Vec<Announcement>,
    observer: Observer,
    machine: StateMachine,
    begun: Instant,
    /// The target of each speaker, and its report.
    targets: Vec<watch::Sender<Target>>,
    statuses: Vec<watch::Receiver<Option<SpeakerStatus>>>,
    changed: Arc<Notify>,
    /// Withdrawals of each announcement by cause.
    withdrawal_counts: Vec<BTreeMap<String, u64>>,
    view: watch::Sender<Arc<AnnounceView>>,
    outcomes: mpsc::UnboundedSender<DrainOutcome>,
    /// Tables that are about to be swapped in.
    next_tables: Option<Arc<TableSet>>,
    withdrawals: watch::Sender<Vec<Withdrawal>>,
    /// Clients that follow the drain.
    followers: Vec<Responder>,
    /// Interfaces without a program at the last check; the moment of a swap is tolerated once.
    detached: Vec<String>,
}

impl AnnounceTask {
    fn new(
        announcements: Vec<Announcement>,
        limits: DrainLimits,
        observer: Observer,
        (outcomes, withdrawals): (
            mpsc::UnboundedSender<DrainOutcome>,
            watch::Sender<Vec<Withdrawal>>,
        ),
    ) -> Self {
        let supports = announcements.iter().map(|one| one.method.supports_low_preference());
        let supports = supports.collect();
        let changed = Arc::new(Notify::new());
        let (mut targets, mut statuses) = (Vec::new(), Vec::new());
        for announcement in &announcements {
            let (target_sender, target) = watch::channel(Target::default());
            let (status_sender, status) = watch::channel(None);
            let changed = Arc::clone(&changed);
            drop(tokio::spawn(speaker::run(announcement.clone(), target, status_sender, changed)));
            targets.push(target_sender);
            statuses.push(status);
        }
        let (view, view_receiver) = watch::channel(Arc::default());
        observer.status().follow_announcements(view_receiver);
        Self {
            withdrawal_counts: vec![BTreeMap::new(); announcements.len()],
            machine: StateMachine::new(limits, supports),
            announcements,
            observer,
            begun: Instant::now(),
            targets,
            statuses,
            changed,
            view,
            outcomes,
            next_tables: None,
            withdrawals,
            followers: Vec::new(),
            detached: Vec::new(),
        }
    }

    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    async fn run(mut self, mut requests: mpsc::UnboundedReceiver<Request>) {
        let all_reported = async {
            for status in &mut self.statuses {
                drop(status.wait_for(Option::is_some).await);
            }
        };
        // What the previous process announced stays, so it has to be known first.
        drop(timeout(FIRST_REPORTS, all_reported).await);
        let mut snapshots = self.observer.status().subscribe();
        loop {
            self.step();
            let is_urgent = self.is_draining() || !self.detached.is_empty();
            let pause = if is_urgent { DRAIN_CHECK_INTERVAL } else { CHECK_INTERVAL };
            let change = async {
                tokio::select! {
                    _ = snapshots.changed() => {}
                    () = self.changed.notified() => {}
                }
            };
            tokio::select! {
                request = requests.recv() => match request {
                    Some(request) => self.handle_request(request),
                    // The daemon ends.
                    None => return,
                },
                _ = timeout(pause, change) => {}
            }
        }
    }

    fn is_draining(&self) -> bool {
        self.machine.stage().is_some_and(|stage| stage != Stage::Drained)
    }

    fn handle_request(&mut self, request: Request) {
        match request {
            Request::Drain(drain, answer) => {
                let before = self.machine.stage();
                self.machine.drain(self.now(), drain);
                info!(timeout = ?drain.timeout, force = drain.force, "drain begins");
                self.followers.extend(answer);
                if before == Some(Stage::Drained) {
                    self.finish_drain(&DrainOutcome::Drained);
                }
            }
            Request::Cancel(answer) => {
                let was_draining = self.machine.cancel();
                if was_draining {
                    info!("drain cancelled");
                    self.finish_drain(&DrainOutcome::Cancelled);
                }
                if let Some(answer) = answer {
                    answer.done(Ok(was_draining));
                }
            }
            Request::Prepare(tables, seen) => {
                self.next_tables = Some(tables);
                self.step();
                // A gate that has stopped waiting asks again later.
                seen.send(()).ok();
            }
            Request::PrepareDone => self.next_tables = None,
        }
    }

    /// Reports the outcome of a drain to its followers and to the daemon's loop.
    fn finish_drain(&mut self, outcome: &DrainOutcome) {
        for answer in self.followers.drain(..) {
            match outcome {
                DrainOutcome::Drained => answer.done(Ok(())),
                DrainOutcome::Aborted(why) => {
                    let text = format!(
                        "drain aborted {why}. Everything is announced again. `--timeout` waits \
                         longer, `--force` goes on although traffic has not stopped"
                    );
                    answer.done(Err::<(), _>(Refusal::failed(text)));
                }
                DrainOutcome::Cancelled => {
                    answer.done(Err::<(), _>(Refusal::failed("the drain was cancelled")));
                }
            }
        }
        drop(self.outcomes.send(outcome.clone()));
    }

    /// Runs the state machine once and publishes the result.
    fn step(&mut self) {
        if let Err(error) = failpoints::point("announcing") {
            warn!(%error, "failpoint");
        }
        let observations = self.observe();
        let now = self.now();
        let packets = if self.is_draining() { self.vip_packets() } else { None };
        let event = self.machine.step(Inputs { now, announcements: &observations, packets });
        self.send_targets();
        self.publish_withdrawals();
        match event {
            Some(DrainEvent::StageReached(stage, reason)) => {
                info!(stage = stage.name(), reason, "drain stage reached");
                self.publish_view(now);
                if stage == Stage::Drained {
                    self.finish_drain(&DrainOutcome::Drained);
                }
            }
            Some(DrainEvent::Aborted(reason)) => {
                warn!(reason, "drain aborted, everything is announced again");
                self.publish_view(now);
                self.finish_drain(&DrainOutcome::Aborted(reason));
            }
            None => self.publish_view(now),
        }
    }

    fn observe(&mut self) -> Vec<Observation> {
        let mut interfaces = self.observer.interfaces();
        let before = std::mem::take(&mut self.detached);
        for view in interfaces.iter_mut().filter(|view| view.exists) {
            // A program goes on forwarding after its pins were removed.
            view.attached = view.mode.is_some();
            if !view.attached {
                self.detached.push(view.name.clone());
                view.attached = !before.contains(&view.name);
            }
        }
        let snapshot = self.observer.snapshot();
        let tables = snapshot.in_force.as_ref().map(|running| &*running.tables);
        let next_hops = self.observer.status().next_hops();
        let all = self.announcements.iter().zip(self.targets.iter().zip(&self.statuses));
        all.map(|(announcement, (target, status))| {
            let (must_withdraw, must_not_announce) =
                eligibility::assess(announcement, tables, next_hops.as_deref(), &interfaces);
            let next_tables = self.next_tables.as_deref();
            let must_withdraw =
                must_withdraw.or_else(|| eligibility::by_tables(announcement, next_tables?));
            let state = confirmed_state(target, status);
            let error = status.borrow().as_ref().map(|status| status.error.clone());
            Observation {
                must_withdraw,
                must_not_announce,
                state,
                error: error.unwrap_or_default(),
            }
        })
        .collect()
    }

    /// Returns the number of packets to VIPs since the counters were created.
    fn vip_packets(&self) -> Option<u64> {
        match self.observer.counters() {
            Ok(report) => {
                let tables = report.tables.iter();
                Some(tables.flat_map(|table| table.reasons.values()).map(|c| c.packets).sum())
            }
            Err(error) => {
                warn!(%error, "cannot read the packet counters, so the drain cannot proceed");
                None
            }
        }
    }

    /// Sends changed decisions to the speakers, and counts withdrawals.
    fn send_targets(&mut self) {
        let all = self.targets.iter().zip(self.machine.decisions());
        for ((sender, decision), counts) in all.zip(&mut self.withdrawal_counts) {
            sender.send_if_modified(|Target { revision, decision: old }| {
                let state = |d: &Option<Decision>| d.as_ref().map(|decision| decision.state);
                let withdrawn = AnnouncementState::Withdrawn;
                if let Some(Decision { state: new, blocker: Some(why) }) = decision
                    && *new == withdrawn
                    && state(old).is_some_and(|old| old > withdrawn)
                {
                    *counts.entry(why.cause.name().to_owned()).or_default() += 1;
                }
                // A reason in other words is no new target.
                let has_changed = state(old) != state(decision);
                if old != decision {
                    old.clone_from(decision);
                }
                *revision += u64::from(has_changed);
                has_changed
            });
        }
    }

    /// Tells the withdraw gate which withdrawals are confirmed.
    fn publish_withdrawals(&self) {
        let now = Instant::now();
        self.withdrawals.send_if_modified(|withdrawals| {
            let parts = self.targets.iter().zip(&self.statuses).enumerate();
            let new: Vec<Withdrawal> = parts
                .map(|(index, (target, status))| {
                    let desired = target.borrow().decision.as_ref().map(|one| one.state);
                    let is_withdrawn = desired == Some(AnnouncementState::Withdrawn)
                        && confirmed_state(target, status) == desired;
                    let before = withdrawals.get(index).and_then(|one: &Withdrawal| one.confirmed);
                    let error = status.borrow().as_ref().map(|status| status.error.clone());
                    Withdrawal {
                        confirmed: is_withdrawn.then(|| before.unwrap_or(now)),
                        error: error.unwrap_or_default(),
                    }
                })
                .collect();
            let is_new = *withdrawals != new;
            *withdrawals = new;
            is_new
        });
    }

    /// Publishes the view for `status`, metrics and followers of the drain.
    fn publish_view(&mut self, now: Duration) {
        let parts = self.announcements.iter().zip(self.machine.decisions());
        let parts = parts.zip(self.statuses.iter().zip(&self.withdrawal_counts));
        let announcements = parts.map(|((announcement, decision), (status, withdrawals))| {
            let status = status.borrow().clone().unwrap_or_default();
            let reason = decision.as_ref().map_or("not decided yet", |decision| {
                decision.blocker.as_ref().map_or("", |why| why.message.as_str())
            });
            AnnouncementView {
                name: announcement.name.clone(),
                prefixes: announcement.prefixes.iter().map(ToString::to_string).collect(),
                method: announcement.method.name().to_owned(),
                desired: decision.as_ref().map(|decision| decision.state).unwrap_or_default(),
                reason: reason.to_owned(),
                state: status.state,
                error: status.error,
                dropped: status.dropped,
                sessions: status.sessions,
                withdrawals: withdrawals.clone(),
            }
        });
        let view =
            AnnounceView { announcements: announcements.collect(), drain: self.machine.view(now) };
        if let Some(drain) = &view.drain {
            // A slow follower gets the next update.
            self.followers.retain(|answer| answer.try_item(drain) || !answer.is_gone());
        }
        let is_new = self.view.send_if_modified(|old| {
            let is_new = **old != view;
            if is_new {
                *old = Arc::new(view);
            }
            is_new
        });
        if is_new {
            self.observer.status().announced();
        }
    }
}

/// Returns the state that the speaker reports for its current target; nothing if it is unknown.
fn confirmed_state(
    target: &watch::Sender<Target>,
    status: &watch::Receiver<Option<SpeakerStatus>>,
) -> Option<AnnouncementState> {
    let revision = target.borrow().revision;
    status.borrow().as_ref().filter(|status| status.revision == revision)?.state
}

/// Runs a future to its end on a new runtime.
///
/// # Errors
/// When the runtime cannot be created.
pub fn block_on<T>(work: impl Future<Output = T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(work))
}
