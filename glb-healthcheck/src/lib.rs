//! The health checker of an L4 load balancer.
//!
//! It reads an input table that operators edit, probes the table's backends, and writes an output
//! table: the input's text with each backend's health filled in. A director reads the output.
//!
//! ```text
//! input table ─► check_config ─► engine ─► publish ─► output table ─► director
//!                                 │  ▲
//!                          probes ▼  │ results
//!                                 probe
//! ```
//!
//! # Layers
//!
//! - Model: [`check`] (a check and its settings), [`check_config`] (reads them from a table),
//!   [`config`] (the configuration file).
//! - Decisions, all pure functions of results and time: [`health_state`] (rise, fall, hold-down),
//!   [`connectivity`] (is this machine isolated?), [`min_healthy`], [`schedule`], and [`engine`], which
//!   combines them.
//! - Actions: [`probe`] (one module for each kind of check), [`publish`] (writes the output, notifies
//!   the director), [`daemon`] (the event loop).
//! - Operation: [`control_socket`], [`status`], [`metrics`], [`doctor`], [`cli`].
//!
//! Start reading at [`daemon`], which connects all of them, or at [`probe`] to add a kind of check.
//!
//! # Example
//!
//! A target becomes unhealthy after `fall` consecutive failures:
//!
//! ```
//! use std::time::Duration;
//!
//! use glb_healthcheck::{
//!     Moment,
//!     health_state::{Health, HealthRules, HealthState},
//! };
//!
//! let rules = HealthRules {
//!     rise: 2,
//!     fall: 3,
//!     hold_down: Duration::from_secs(5),
//!     hold_down_max: Duration::from_secs(300),
//!     flap_reset: Duration::from_secs(600),
//! };
//! let mut state = HealthState::new(Moment::ZERO);
//! state.record(&rules, true, Duration::from_secs(1));
//! assert_eq!(state.health(), Health::Healthy);
//! for second in 2..4 {
//!     state.record(&rules, false, Duration::from_secs(second));
//! }
//! assert_eq!(state.health(), Health::Healthy);
//! state.record(&rules, false, Duration::from_secs(4));
//! assert_eq!(state.health(), Health::Unhealthy);
//! ```

pub mod check;
pub mod check_config;
pub mod cli;
pub mod config;
pub mod connectivity;
pub mod control_socket;
pub mod daemon;
pub mod doctor;
pub mod engine;
pub mod health_state;
pub mod metrics;
pub mod min_healthy;
pub mod probe;
pub mod publish;
pub mod schedule;
pub mod status;

/// Time since the daemon's start on the monotonic clock, which changes of the wall clock do not
/// affect.
pub type Moment = std::time::Duration;
