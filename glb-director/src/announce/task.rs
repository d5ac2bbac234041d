//! The thread that keeps the announcements as they are to be. It neither waits for the daemon's loop
//! nor holds it up: a reload does not delay a withdrawal.

use std::{collections::BTreeMap, future::Future, io, sync::Arc, thread, time::Duration};

use glb_host::{
    control::{Refusal, Responder},
    failpoints,
};
use glb_table::TableSet;
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::{Instant, timeout},
};
use tracing::{info, warn};

use super::{
    AnnounceView, Announcement, AnnouncementView, DrainLimits, Level, Stage, WayError, eligibility,
    speaker::{self, Standing, Way, Wish},
    state_machine::{Choreography, Order, Seen, Sight, Turn, Wanted},
    withdraw_gate::Known,
};
use crate::views::Observer;

/// How often everything is looked at without a reason; more often in a drain.
const LOOK: Duration = Duration::from_secs(1);
const LOOK_IN_A_DRAIN: Duration = Duration::from_millis(250);

/// How long the first look at what is announced may take before it goes on without.
const FIRST_LOOK: Duration = Duration::from_secs(5);

/// What is asked of the thread.
#[derive(Debug)]
pub(super) enum Request {
    /// Begin a drain.
    Drain(Order, Option<Responder>),
    /// End it.
    Cancel(Option<Responder>),
    /// These tables are about to come into force: what they do not serve goes. Answered when they have
    /// been looked at.
    Ahead(Arc<TableSet>, oneshot::Sender<()>),
    /// They are in force, or will not come.
    Over,
}

/// What has become of a drain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Nothing is announced and no packets come.
    Drained,
    /// It was given up, for this reason; everything is announced again.
    GivenUp(String),
    /// Somebody cancelled it.
    Cancelled,
}

/// What the daemon's loop has of the thread; nothing if nothing is to be announced.
#[derive(Debug)]
pub struct Announcer(Option<Hands>);

#[derive(Debug)]
struct Hands {
    requests: mpsc::UnboundedSender<Request>,
    known: watch::Receiver<Vec<Known>>,
    ended: mpsc::UnboundedReceiver<Ended>,
}

impl Announcer {
    /// Starts the thread, if there is anything to announce. The director serves from now on, what
    /// is fit is announced; unless the director was being drained when it was last seen (`drain`;
    /// with nothing in it, it was drained).
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        announcements: &[Announcement],
        limits: DrainLimits,
        observer: Observer,
        drain: Option<Option<Order>>,
    ) -> io::Result<Self> {
        if announcements.is_empty() {
            return Ok(Self(None));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (requests, received) = mpsc::unbounded_channel();
        let (tell, ended) = mpsc::unbounded_channel();
        let (publish, known) = watch::channel(Vec::new());
        let announcements = announcements.to_vec();
        let work = async move {
            let mut runner = Runner::new(announcements, limits, observer, (tell, publish));
            match drain {
                Some(Some(order)) => runner.choreography.drain(runner.now(), order),
                Some(None) => runner.choreography.stay_drained(runner.now()),
                None => {}
            }
            runner.run(received).await;
        };
        let thread = thread::Builder::new().name("announce".into());
        thread.spawn(move || runtime.block_on(work))?;
        Ok(Self(Some(Hands { requests, known, ended })))
    }

    /// Where the thread is asked, and where it says what is withdrawn; nothing without a thread.
    pub(super) fn hands(
        &self,
    ) -> Option<(mpsc::UnboundedSender<Request>, watch::Receiver<Vec<Known>>)> {
        self.0.as_ref().map(|hands| (hands.requests.clone(), hands.known.clone()))
    }

    /// Whether there is anything to drain.
    #[must_use]
    pub const fn announces(&self) -> bool {
        self.0.is_some()
    }

    /// Begins a drain. Who wants to be told follows it to its end.
    pub fn drain(&self, order: Order, answer: Option<Responder>) {
        self.send(Request::Drain(order, answer));
    }

    /// Ends a drain, and what it led to.
    pub fn cancel(&self, answer: Option<Responder>) {
        self.send(Request::Cancel(answer));
    }

    fn send(&self, request: Request) {
        let refused = match &self.0 {
            // Without the thread, what is dropped tells the client that the daemon ends.
            Some(hands) => return drop(hands.requests.send(request)),
            None => request,
        };
        if let Request::Drain(_, Some(answer)) | Request::Cancel(Some(answer)) = refused {
            let text = "this director announces nothing (no `announce` in its configuration): \
                        there is nothing to drain; take its routes off the routers";
            answer.done(Err::<(), _>(Refusal::failed(text)));
        }
    }

    /// The next end of a drain. Can be dropped and called again.
    pub async fn ended(&mut self) -> Ended {
        if let Some(hands) = &mut self.0
            && let Some(ended) = hands.ended.recv().await
        {
            return ended;
        }
        std::future::pending().await
    }
}

/// Withdraws everything once; what could not be withdrawn, with the reason. Where BIRD does not run,
/// nothing is announced by it.
pub async fn withdraw_all(announcements: &[Announcement]) -> Vec<(String, WayError)> {
    let mut failed = Vec::new();
    for announcement in announcements {
        match Way::new(announcement).bring(Level::Withdrawn).await {
            Err(error) if !Way::is_away(&error) => failed.push((announcement.name.clone(), error)),
            _ => {}
        }
    }
    failed
}

struct Runner {
    announcements: Vec<Announcement>,
    observer: Observer,
    choreography: Choreography,
    begun: Instant,
    /// What each way is told, and what it says.
    wishes: Vec<watch::Sender<Wish>>,
    standings: Vec<watch::Receiver<Option<Standing>>>,
    changed: Arc<Notify>,
    withdrawals: Vec<BTreeMap<String, u64>>,
    view: watch::Sender<Arc<AnnounceView>>,
    tell: mpsc::UnboundedSender<Ended>,
    /// Tables that are about to come into force.
    prospect: Option<Arc<TableSet>>,
    known: watch::Sender<Vec<Known>>,
    /// Who follows the drain.
    followers: Vec<Responder>,
    /// Interfaces that were without a program when they were looked at last: a swap's moment is not
    /// taken for more.
    without: Vec<String>,
}

impl Runner {
    fn new(
        announcements: Vec<Announcement>,
        limits: DrainLimits,
        observer: Observer,
        (tell, known): (mpsc::UnboundedSender<Ended>, watch::Sender<Vec<Known>>),
    ) -> Self {
        let knows = announcements.iter().map(|one| one.way.knows_less_wanted()).collect();
        let changed = Arc::new(Notify::new());
        let (mut senders, mut standings) = (Vec::new(), Vec::new());
        for announcement in &announcements {
            let (wish, wishes) = watch::channel(Wish::default());
            let (stand, standing) = watch::channel(None);
            let keep = speaker::keep(announcement.clone(), wishes, stand, Arc::clone(&changed));
            drop(tokio::spawn(keep));
            senders.push(wish);
            standings.push(standing);
        }
        let (view, seen) = watch::channel(Arc::default());
        observer.state().follow_announcements(seen);
        Self {
            withdrawals: vec![BTreeMap::new(); announcements.len()],
            choreography: Choreography::new(limits, knows),
            announcements,
            observer,
            begun: Instant::now(),
            wishes: senders,
            standings,
            changed,
            view,
            tell,
            prospect: None,
            known,
            followers: Vec::new(),
            without: Vec::new(),
        }
    }

    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    async fn run(mut self, mut requests: mpsc::UnboundedReceiver<Request>) {
        let all_seen = async {
            for standing in &mut self.standings {
                drop(standing.wait_for(Option::is_some).await);
            }
        };
        // What a predecessor announced is to stay: it has to be known first.
        drop(timeout(FIRST_LOOK, all_seen).await);
        let mut snapshots = self.observer.state().subscribe();
        loop {
            self.look();
            let draining = self.choreography.stage().is_some_and(|stage| stage != Stage::Drained);
            let pause = if draining || !self.without.is_empty() { LOOK_IN_A_DRAIN } else { LOOK };
            let something = async {
                tokio::select! {
                    _ = snapshots.changed() => {}
                    () = self.changed.notified() => {}
                }
            };
            tokio::select! {
                request = requests.recv() => match request {
                    Some(request) => self.take(request),
                    // The daemon ends.
                    None => return,
                },
                _ = timeout(pause, something) => {}
            }
        }
    }

    fn take(&mut self, request: Request) {
        match request {
            Request::Drain(order, answer) => {
                let was = self.choreography.stage();
                self.choreography.drain(self.now(), order);
                info!(gently = order.gently, force = order.force, timeout = ?order.timeout, "drain");
                self.followers.extend(answer);
                if was == Some(Stage::Drained) {
                    self.end(&Ended::Drained);
                }
            }
            Request::Cancel(answer) => {
                let was = self.choreography.cancel();
                if was {
                    info!("the drain is cancelled");
                    self.end(&Ended::Cancelled);
                }
                if let Some(answer) = answer {
                    answer.done(Ok(was));
                }
            }
            Request::Ahead(tables, seen) => {
                self.prospect = Some(tables);
                self.look();
                // Whoever has no more time for it comes again.
                seen.send(()).ok();
            }
            Request::Over => self.prospect = None,
        }
    }

    /// Tells everybody how the drain ended.
    fn end(&mut self, ended: &Ended) {
        for answer in self.followers.drain(..) {
            match ended {
                Ended::Drained => answer.done(Ok(())),
                Ended::GivenUp(why) => {
                    let text = format!(
                        "not drained: {why}; what was announced is announced again \
                         (`--force` goes on in spite of it, `--timeout` waits longer)"
                    );
                    answer.done(Err::<(), _>(Refusal::failed(text)));
                }
                Ended::Cancelled => {
                    answer.done(Err::<(), _>(Refusal::failed("the drain was cancelled")));
                }
            }
        }
        drop(self.tell.send(ended.clone()));
    }

    fn look(&mut self) {
        if let Err(error) = failpoints::point("announcing") {
            warn!(%error, "a test");
        }
        let seen = self.seen();
        let now = self.now();
        let draining = self.choreography.stage().is_some_and(|stage| stage != Stage::Drained);
        let packets = if draining { self.packets() } else { None };
        let turn = self.choreography.step(Sight { now, announcements: &seen, packets });
        self.carry_out();
        self.publish();
        match turn {
            Some(Turn::Stage(stage, why)) => {
                info!(why, "drain: {}", stage.name().replace('_', " "));
                self.show(now);
                if stage == Stage::Drained {
                    self.end(&Ended::Drained);
                }
            }
            Some(Turn::GivenUp(why)) => {
                warn!("the drain is given up, what was announced is announced again: {why}");
                self.show(now);
                self.end(&Ended::GivenUp(why));
            }
            None => self.show(now),
        }
    }

    fn seen(&mut self) -> Vec<Seen> {
        let mut interfaces = self.observer.interfaces();
        let before = std::mem::take(&mut self.without);
        for view in interfaces.iter_mut().filter(|view| view.exists) {
            // A program whose pins somebody has removed goes on forwarding.
            view.attached = view.mode.is_some();
            if !view.attached {
                self.without.push(view.name.clone());
                view.attached = !before.contains(&view.name);
            }
        }
        let snapshot = self.observer.snapshot();
        let tables = snapshot.in_force.as_ref().map(|running| &*running.tables);
        let ways = self.observer.state().ways();
        let all = self.announcements.iter().zip(self.wishes.iter().zip(&self.standings));
        all.map(|(announcement, (wish, standing))| {
            let ways = ways.as_deref();
            let (must_go, must_wait) = eligibility::judge(announcement, tables, ways, &interfaces);
            let prospect = self.prospect.as_deref();
            let must_go = must_go.or_else(|| eligibility::by_tables(announcement, prospect?));
            let level = level_of(wish, standing);
            Seen { must_go, must_wait, level }
        })
        .collect()
    }

    /// Packets to VIPs, whatever became of them.
    fn packets(&self) -> Option<u64> {
        match self.observer.counters() {
            Ok(report) => {
                let tables = report.tables.iter();
                Some(tables.flat_map(|table| table.reasons.values()).map(|c| c.packets).sum())
            }
            Err(error) => {
                warn!(%error, "packets to VIPs cannot be counted: a drain cannot go on");
                None
            }
        }
    }

    fn carry_out(&mut self) {
        let all = self.wishes.iter().zip(self.choreography.wanted()).zip(&mut self.withdrawals);
        for ((sender, wanted), withdrawals) in all {
            sender.send_if_modified(|Wish { number, wanted: old }| {
                let is_new = old != wanted;
                let level = |w: &Option<Wanted>| w.as_ref().map(|wanted| wanted.level);
                if let Some(Wanted { level: Level::Withdrawn, why: Some(why) }) = wanted
                    && level(old).is_some_and(|old| old > Level::Withdrawn)
                {
                    *withdrawals.entry(why.cause.name().to_owned()).or_default() += 1;
                }
                // A reason in other words is not another wish.
                let is_other = level(old) != level(wanted);
                if is_new {
                    old.clone_from(wanted);
                }
                *number += u64::from(is_other);
                is_other
            });
        }
    }

    /// Tells whoever waits for it what is withdrawn.
    fn publish(&self) {
        let now = Instant::now();
        self.known.send_if_modified(|known| {
            let parts = self.wishes.iter().zip(&self.standings).enumerate();
            let new: Vec<Known> = parts
                .map(|(index, (wish, standing))| {
                    let wanted = wish.borrow().wanted.as_ref().map(|wanted| wanted.level);
                    let is_gone = wanted == Some(Level::Withdrawn)
                        && level_of(wish, standing) == Some(Level::Withdrawn);
                    let before = known.get(index).and_then(|known: &Known| known.withdrawn);
                    let error = standing.borrow().as_ref().map(|standing| standing.error.clone());
                    Known {
                        withdrawn: is_gone.then(|| before.unwrap_or(now)),
                        error: error.unwrap_or_default(),
                    }
                })
                .collect();
            let is_new = *known != new;
            *known = new;
            is_new
        });
    }

    fn show(&mut self, now: Duration) {
        let parts = self.announcements.iter().zip(self.choreography.wanted());
        let parts = parts.zip(self.standings.iter().zip(&self.withdrawals));
        let announcements = parts.map(|((announcement, wanted), (standing, withdrawals))| {
            let standing = standing.borrow().clone().unwrap_or_default();
            let why = wanted.as_ref().map_or("not looked at yet", |wanted| {
                wanted.why.as_ref().map_or("", |why| why.words.as_str())
            });
            AnnouncementView {
                name: announcement.name.clone(),
                prefixes: announcement.prefixes.iter().map(ToString::to_string).collect(),
                way: announcement.way.name().to_owned(),
                wanted: wanted.as_ref().map_or(Level::Withdrawn, |wanted| wanted.level),
                why: why.to_owned(),
                level: standing.level,
                error: standing.error,
                dropped: standing.dropped,
                withdrawals: withdrawals.clone(),
            }
        });
        let view = AnnounceView {
            announcements: announcements.collect(),
            drain: self.choreography.view(now),
        };
        if let Some(drain) = &view.drain {
            // Who does not read is told again in a moment.
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
            self.observer.state().announced();
        }
    }
}

/// What it is now, if that is known since it was wished last.
fn level_of(
    wish: &watch::Sender<Wish>,
    standing: &watch::Receiver<Option<Standing>>,
) -> Option<Level> {
    let number = wish.borrow().number;
    standing.borrow().as_ref().filter(|standing| standing.wish == number)?.level
}

/// Waits for `work` on a runtime of its own, where there is none.
///
/// # Errors
/// When no runtime can be made.
pub fn block_on<T>(work: impl Future<Output = T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(work))
}
