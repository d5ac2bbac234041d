//! The health checker: which backends can take new connections.
//!
//! One result's way is a straight line: [`probe`] → [`judge`] → [`engine`] → [`publish`]. What
//! decides ([`judge`], [`engine`]) is pure and takes the time as an argument; what acts
//! ([`probe`], [`publish`], [`daemon`]) decides nothing.

pub mod channel;
pub mod check;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod engine;
pub mod floor;
pub mod judge;
pub mod metrics;
pub mod probe;
pub mod publish;
pub mod schedule;
pub mod status;
pub mod wanted;

/// Time since the checker started, on the monotonic clock: a changed wall clock changes nothing.
pub type Moment = std::time::Duration;
