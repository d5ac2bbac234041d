//! Who is served at once: bounded in all and for each address. Whoever comes gets a place, if need be
//! that of the one who has been silent longest, but not before everybody has had time to ask. So
//! clients that ask nothing, or do not read, keep nobody out.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    task::{AbortHandle, yield_now},
    time::{Instant, timeout_at},
};

/// How many are served at once.
const AT_ONCE: usize = 32;

/// How many of one address.
const OF_ONE: usize = 24;

/// Nobody loses a place sooner after coming.
const TIME_TO_ASK: Duration = Duration::from_millis(100);

/// Nobody loses a place sooner after asking.
const TIME_TO_READ: Duration = Duration::from_millis(500);

/// Those who are served.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    guests: Mutex<Vec<Guest>>,
    left: Notify,
}

#[derive(Debug)]
struct Guest {
    number: u64,
    address: IpAddr,
    /// Until then the place is safe.
    safe: Instant,
    /// None before the task runs.
    task: Option<AbortHandle>,
}

/// A place in the crowd; dropped, it is free again.
#[derive(Debug)]
pub(super) struct Place {
    crowd: Arc<Crowd>,
    number: u64,
}

/// What becomes of one who comes.
#[derive(Debug, PartialEq, Eq)]
enum Choice {
    /// There is room.
    Welcome,
    /// If the guest of this number goes, at the earliest then.
    After(u64, Instant),
}

impl Crowd {
    /// A place for one who comes from this address, as soon as there is one.
    pub(super) async fn place(self: &Arc<Self>, number: u64, address: IpAddr) -> Place {
        loop {
            let left = self.left.notified();
            let now = Instant::now();
            let choice = {
                let mut guests = self.guests();
                let choice = choose(&guests, address);
                match &choice {
                    Choice::Welcome => {
                        let safe = now + TIME_TO_ASK;
                        guests.push(Guest { number, address, safe, task: None });
                        return Place { crowd: Arc::clone(self), number };
                    }
                    Choice::After(number, safe) if *safe <= now => {
                        let guest = guests.iter().find(|guest| guest.number == *number);
                        if let Some(task) = guest.and_then(|guest| guest.task.as_ref()) {
                            task.abort();
                        }
                    }
                    Choice::After(..) => {}
                }
                choice
            };
            if let Choice::After(_, safe) = choice {
                if safe <= now {
                    // The task ends, and gives its place back, when it would go on.
                    yield_now().await;
                } else {
                    // Whether somebody has left or the time is up is seen above.
                    drop(timeout_at(safe, left).await);
                }
            }
        }
    }

    fn guests(&self) -> MutexGuard<'_, Vec<Guest>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, number: u64, change: impl FnOnce(&mut Guest)) {
        if let Some(guest) = self.guests().iter_mut().find(|guest| guest.number == number) {
            change(guest);
        }
    }
}

/// Who has to go for one of this address: of too many of that address, else of all, the one whose place
/// has been safe no more for longest.
fn choose(guests: &[Guest], address: IpAddr) -> Choice {
    let is_same = |guest: &&Guest| guest.address == address;
    let first = |guests: &mut dyn Iterator<Item = &Guest>| {
        guests.min_by_key(|guest| guest.safe).map(|guest| Choice::After(guest.number, guest.safe))
    };
    let chosen = if guests.iter().filter(is_same).count() >= OF_ONE {
        first(&mut guests.iter().filter(is_same))
    } else if guests.len() >= AT_ONCE {
        first(&mut guests.iter())
    } else {
        None
    };
    chosen.unwrap_or(Choice::Welcome)
}

impl Place {
    /// Who serves the one on it.
    pub(super) fn served_by(crowd: &Crowd, number: u64, task: AbortHandle) {
        crowd.change(number, |guest| guest.task = Some(task));
    }

    /// The one on it has asked.
    pub(super) fn asked(&self) {
        self.crowd.change(self.number, |guest| guest.safe = Instant::now() + TIME_TO_READ);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.crowd.guests().retain(|guest| guest.number != self.number);
        self.crowd.left.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(number: u64, address: u8, safe: Instant) -> Guest {
        Guest { number, address: IpAddr::from([192, 0, 2, address]), safe, task: None }
    }

    #[test]
    fn the_longest_silent_one_goes_and_of_too_many_one_of_them() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let few: Vec<Guest> = (0..OF_ONE as u64 - 1).map(|n| guest(n, 1, at(n))).collect();
        let one = IpAddr::from([192, 0, 2, 1]);
        let other = IpAddr::from([192, 0, 2, 200]);
        assert_eq!(choose(&few, one), Choice::Welcome);
        let mut many = few;
        many.push(guest(100, 1, at(100)));
        // The one who asked last is the last to go.
        many[0].safe = at(1000);
        assert_eq!(choose(&many, one), Choice::After(1, at(1)));
        assert_eq!(choose(&many, other), Choice::Welcome);
        many.extend((0..8).map(|n| guest(200 + n, 100 + n as u8, now)));
        assert_eq!(many.len(), AT_ONCE);
        assert_eq!(choose(&many, other), Choice::After(200, now));
        assert_eq!(choose(&many, one), Choice::After(1, at(1)));
    }
}
