//! The health checker: which backends can take new connections.
//!
//! One result's way is a straight line: [`probe`] → [`health_state`] → [`engine`] → [`publish`]. What
//! decides ([`health_state`], [`engine`]) is pure and takes the time as an argument; what acts
//! ([`probe`], [`publish`], [`daemon`]) decides nothing.

pub mod check;
pub mod check_config;
pub mod cli;
pub mod config;
pub mod connectivity;
pub mod control_socket;
pub mod daemon;
pub mod engine;
pub mod health_state;
pub mod metrics;
pub mod min_healthy;
pub mod probe;
pub mod publish;
pub mod schedule;
pub mod status;

/// Time since the checker started, on the monotonic clock: a changed wall clock changes nothing.
pub type Moment = std::time::Duration;
