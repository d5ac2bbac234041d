//! What `status`, the metrics and `fleet status` show of announcements and of a drain.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{AnnouncementState, Stage};

/// One announcement as it is now. Fields are added, never renamed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnnouncementView {
    /// The name from the configuration.
    pub name: String,
    /// The announced prefixes.
    pub prefixes: Vec<String>,
    /// The method: `bird`, `tun` or `exec`.
    pub method: String,
    /// The state that the director wants.
    pub desired: AnnouncementState,
    /// Why the desired state is not `announced`; empty if it is.
    pub reason: String,
    /// The state that the method reports; `unknown` if it cannot be asked.
    #[serde(with = "or_unknown")]
    pub state: Option<AnnouncementState>,
    /// Why the method does not carry out the desired state; empty if it does.
    pub error: String,
    /// Packets to the prefixes that came out of the TUN interface and were dropped.
    #[serde(default)]
    pub dropped: u64,
    /// The BGP sessions that carry the prefixes, as far as the method sees them.
    #[serde(default)]
    pub sessions: Vec<SessionView>,
    /// Withdrawals since the start, by the cause's name.
    #[serde(default)]
    pub withdrawals: BTreeMap<String, u64>,
}

/// A BGP session of the routing daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionView {
    /// The name of BIRD's protocol.
    pub name: String,
    /// Whether the session is established.
    pub established: bool,
    /// The session's state and last error, in BIRD's words.
    pub info: String,
    /// Whether BIRD exports every prefix to this session; nothing if that is unknown.
    pub exports: Option<bool>,
}

impl AnnouncementView {
    /// Whether an established session carries the prefixes; nothing if no session is visible.
    #[must_use]
    pub fn is_exported(&self) -> Option<bool> {
        let carries = |session: &SessionView| session.established && session.exports != Some(false);
        (!self.sessions.is_empty()).then(|| self.sessions.iter().any(carries))
    }

    /// Describes why routers do not receive the announced prefixes; nothing if they do, or if nothing
    /// is announced.
    #[must_use]
    pub fn session_problem(&self) -> Option<String> {
        let is_up = self.state.is_some_and(|state| state > AnnouncementState::Withdrawn);
        if !is_up || self.is_exported() != Some(false) {
            return None;
        }
        let one = |session: &SessionView| match session.established {
            true => format!("{} does not export it", session.name),
            false => format!("{} is down ({})", session.name, session.info),
        };
        let sessions: Vec<String> = self.sessions.iter().map(one).collect();
        Some(format!(
            "announcement {}: no BGP session carries it, so routers do not have the route: {}. See \
             `birdc show protocols all`",
            self.name,
            sessions.join(", ")
        ))
    }

    /// The state's name, or `unknown`.
    #[must_use]
    pub fn state_name(&self) -> &'static str {
        self.state.map_or(UNKNOWN, AnnouncementState::name)
    }
}

/// The name of a state that cannot be determined.
const UNKNOWN: &str = "unknown";

/// Writes a missing state as `unknown`.
mod or_unknown {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use super::{AnnouncementState, UNKNOWN};

    #[expect(clippy::ref_option, reason = "serde passes the field by reference")]
    pub(super) fn serialize<S: Serializer>(
        state: &Option<AnnouncementState>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(state.map_or(UNKNOWN, AnnouncementState::name))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<AnnouncementState>, D::Error> {
        let name = String::deserialize(deserializer)?;
        if name == UNKNOWN {
            return Ok(None);
        }
        let found = AnnouncementState::ALL.into_iter().find(|state| state.name() == name);
        found.map(Some).ok_or_else(|| D::Error::custom(format!("unknown state {name:?}")))
    }
}

/// All announcements, and the drain.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AnnounceView {
    /// The announcements in the order of the configuration.
    pub announcements: Vec<AnnouncementView>,
    /// The drain that is under way or complete.
    pub drain: Option<DrainView>,
}

/// The progress of a drain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DrainView {
    /// The current stage.
    pub stage: Stage,
    /// Seconds since the drain began.
    pub seconds: f64,
    /// Seconds after which the stage is aborted; nothing once the drain is complete.
    pub limit_seconds: Option<f64>,
    /// Packets to VIPs in the last second.
    pub packets_per_second: f64,
    /// Seconds since the packet rate fell to the configured limit.
    pub quiet_seconds: f64,
    /// The progress in words.
    pub message: String,
}

impl AnnounceView {
    /// A summary for one line of status; empty if nothing is configured.
    #[must_use]
    pub fn summary(&self) -> String {
        if self.announcements.is_empty() {
            return String::new();
        }
        let all = self.announcements.len();
        let announced = self.announcements.iter();
        let announced =
            announced.filter(|one| one.state == Some(AnnouncementState::Announced)).count();
        let drain = self.drain.as_ref().map(|drain| match drain.stage {
            Stage::Drained => "; drained".to_owned(),
            stage => format!("; draining (stage {})", stage.name()),
        });
        format!("{announced} of {all} announced{}", drain.unwrap_or_default())
    }
}
