//! Announcing VIP prefixes to routers, and withdrawing them in the right order.
//!
//! | module | what it does |
//! |---|---|
//! | [`config`] | parses and checks the `announce`, `drain` and `withdraw` tables of the configuration |
//! | [`announcement`] | the checked configuration of one announcement, and how it fits tables and machine |
//! | `eligibility` | decides whether this director may announce, from tables, interfaces and next hops |
//! | [`state_machine`] | decides the desired state of each announcement and the drain's stage (a pure function) |
//! | `task` | the thread that feeds the state machine and publishes what it decides |
//! | `speaker` | one task per announcement that carries a decision out by its method |
//! | [`bird`], [`tun`], [`exec`] | the three methods: BIRD's control socket, routes into a TUN interface, a command |
//! | `withdraw_gate` | withdraws what the next generation will not serve before it is swapped in |
//! | [`policy_rules`] | keeps this machine's kernel from answering for VIPs |
//!
//! To add a method, write its module, add a variant to [`announcement::MethodConfig`] and to
//! `speaker::Speaker`, and parse its keys in [`config`].

pub mod announcement;
pub mod bird;
pub mod config;
mod eligibility;
pub mod exec;
mod messages;
pub mod policy_rules;
mod speaker;
pub mod state_machine;
mod task;
pub mod tun;
mod view;
mod withdraw_gate;

use serde::{Deserialize, Serialize};

pub use self::{
    announcement::{Announcement, DrainLimits, WithdrawLimits},
    messages::DrainOutcome,
    speaker::SpeakerError,
    task::{Announcer, block_on, check_methods, withdraw_all},
    view::{AnnounceView, AnnouncementView, DrainView, SessionView},
    withdraw_gate::{WithdrawGate, WithdrawalUnconfirmed},
};

/// Whether routers hear of an announcement's prefixes, and with which preference.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum AnnouncementState {
    /// The prefixes are not announced.
    #[default]
    Withdrawn,
    /// The prefixes are announced with a lower preference than other directors' routes.
    LowPreference,
    /// The prefixes are announced with the normal preference.
    Announced,
}

impl AnnouncementState {
    /// All states, in ascending order of preference.
    pub const ALL: [Self; 3] = [Self::Withdrawn, Self::LowPreference, Self::Announced];

    /// The name used in the CLI, in metrics and in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Withdrawn => "withdrawn",
            Self::LowPreference => "low_preference",
            Self::Announced => "announced",
        }
    }
}

/// The stages of a drain, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Routes have low preference; the drain waits until traffic stops.
    LowPreference,
    /// Routes are withdrawn; the drain waits until traffic stops.
    Withdrawn,
    /// Nothing is announced, and no packets arrive.
    Drained,
}

impl Stage {
    /// The name used in the CLI, in metrics and in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::LowPreference => "low_preference",
            Self::Withdrawn => "withdrawn",
            Self::Drained => "drained",
        }
    }
}

/// Makes text from another program safe to show: at most 200 characters, none of them control
/// characters.
pub(crate) fn printable(text: &str) -> String {
    const LONGEST: usize = 200;
    let clean = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut shown: String = text.chars().take(LONGEST).map(clean).collect();
    if text.chars().nth(LONGEST).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_text_is_bounded_and_has_no_control_characters() {
        assert_eq!(printable("plain, ä"), "plain, ä");
        assert_eq!(printable("a\x1b[31mb\r\n"), "a\u{fffd}[31mb\u{fffd}\u{fffd}");
        assert_eq!(printable(&"x".repeat(1 << 20)).chars().count(), 201);
    }
}
