//! The director: from tables to a program on the wire. The binary `glb-director` is a thin call of
//! [`cli`]; the rest is a library so that tests and benchmarks use the very same parts.

pub mod announce;
pub mod cli;
pub mod compiled_tables;
pub mod config;
pub mod control;
pub mod counters;
pub mod daemon;
pub mod daemon_status;
pub mod doctor;
pub mod fleet;
pub mod generation;
pub mod glb_import;
pub mod metrics;
pub mod model;
pub mod oracle;
pub mod probe_results;
pub mod prober;
pub mod replay;
pub mod statsd;
pub mod status;
pub mod trace;
pub mod views;

/// Whose pins are whose: this program's name, which marks its pin folder.
pub const OWNER: &str = "glb-director";
