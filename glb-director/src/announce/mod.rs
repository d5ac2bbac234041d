//! Telling routers of the VIPs, and the order in which that is done.
//!
//! [`config`] reads what is announced and how into an [`announcement`]. [`state_machine`] decides, as a
//! pure function, what each announcement should be now; [`task`] feeds it from the running director
//! and has [`speaker`] carry its decisions out: by [`bird`]'s control socket, a [`tun`] interface, or a
//! [`exec`]. [`withdraw_gate`] has withdrawn what the next generation will not serve.

pub mod announcement;
pub mod bird;
pub mod config;
mod eligibility;
pub mod exec;
pub mod policy_rules;
mod speaker;
pub mod state_machine;
mod task;
pub mod tun;
mod withdraw_gate;

use serde::{Deserialize, Serialize};

pub use self::{
    announcement::{Announcement, DrainLimits, WithdrawLimits},
    speaker::WayError,
    task::{Announcer, Ended, block_on, withdraw_all},
    withdraw_gate::{Ahead, NotWithdrawn},
};

/// How much routers are to want this director for the prefixes of an announcement.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Not at all: nothing is announced.
    #[default]
    Withdrawn,
    /// Only if no other director announces them.
    LessWanted,
    /// As one of those that announce them.
    Announced,
}

impl Level {
    /// Every level, from the least wanted on.
    pub const ALL: [Self; 3] = [Self::Withdrawn, Self::LessWanted, Self::Announced];

    /// The stable name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Withdrawn => "withdrawn",
            Self::LessWanted => "less_wanted",
            Self::Announced => "announced",
        }
    }
}

/// An announcement as it is now, for people and programs. Fields are added, never renamed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnnouncementView {
    /// Its name.
    pub name: String,
    /// Its prefixes.
    pub prefixes: Vec<String>,
    /// `bird`, `tun` or `hook`.
    pub way: String,
    /// What it is to be.
    pub wanted: Level,
    /// Why it is not to be announced; empty if it is to be.
    pub why: String,
    /// What it is, as far as the way can tell.
    pub level: Option<Level>,
    /// Why the way does not do what is wanted; empty if it does.
    pub error: String,
    /// Packets that came to the TUN interface and were dropped.
    #[serde(default)]
    pub dropped: u64,
    /// How often it was withdrawn, by the reason's stable name.
    #[serde(default)]
    pub withdrawals: std::collections::BTreeMap<String, u64>,
}

/// All announcements, and the drain.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AnnounceView {
    /// In the order of the configuration.
    pub announcements: Vec<AnnouncementView>,
    /// The drain, if one was asked for.
    pub drain: Option<DrainView>,
}

/// How far a drain is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DrainView {
    /// What it is at.
    pub stage: Stage,
    /// Since when the director is being drained, in seconds.
    pub seconds: f64,
    /// After how many seconds the stage is given up; nothing once it is drained.
    pub limit_seconds: Option<f64>,
    /// Packets to VIPs in the last second.
    pub packets_per_second: f64,
    /// For how many seconds they have been as few as is wanted.
    pub quiet_seconds: f64,
    /// In words.
    pub message: String,
}

/// The stages of a drain, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Less wanted; waiting until packets have ceased.
    LessWanted,
    /// Withdrawn; waiting until packets have ceased.
    Withdrawn,
    /// Nothing is announced and no packets come.
    Drained,
}

impl Stage {
    /// The stable name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::LessWanted => "less_wanted",
            Self::Withdrawn => "withdrawn",
            Self::Drained => "drained",
        }
    }
}

impl AnnounceView {
    /// In a few words, for a line of status; empty if nothing is to be announced.
    #[must_use]
    pub fn in_words(&self) -> String {
        if self.announcements.is_empty() {
            return String::new();
        }
        let all = self.announcements.len();
        let announced = self.announcements.iter();
        let announced = announced.filter(|one| one.level == Some(Level::Announced)).count();
        let drain = self.drain.as_ref().map(|drain| match drain.stage {
            Stage::Drained => "; drained".to_owned(),
            stage => format!("; being drained ({})", stage.name()),
        });
        format!("{announced} of {all} announced{}", drain.unwrap_or_default())
    }
}
