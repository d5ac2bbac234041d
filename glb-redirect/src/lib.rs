//! The backend's daemon: takes tunnelled packets that belong to this machine's connections, and
//! sends the others to the next backend in their list. The packet path is an XDP program; this
//! crate loads it, keeps what it knows fresh, and counts.

mod address_table;
pub mod cli;
pub mod config;
pub mod connections;
pub mod control;
pub mod counters;
mod daemon;
pub mod doctor;
pub mod generation;
mod host_state;
pub mod image;
mod local_addresses;
mod metrics;
pub mod replay;
pub mod self_test;
pub mod trace;
mod vip;
mod vlan;

/// Whose pins are whose: this program's name, which marks its pin folder.
pub const OWNER: &str = "glb-redirect";
