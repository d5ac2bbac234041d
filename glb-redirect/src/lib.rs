//! The backend of the load balancer. It accepts tunnelled packets that belong to connections of this
//! host, and forwards all others to the next backend in their hop list (the second chance).
//!
//! The packet path is an XDP program (`glb-ebpf/src/redirect.rs`), whose decisions are made in
//! [`glb_common::second_chance`]. This crate loads the program, keeps its data current, and reports.
//!
//! From the outside in:
//!
//! - [`cli`]: the command line, one file for each command.
//! - `daemon`: the event loop of `glb-redirect run`. It reads [`config`], watches the host
//!   (`host_state`), the peers' next hops and the directors' table, and activates a new generation
//!   whenever one of them changes. `daemon_state` holds what the daemon knows about itself; [`status`]
//!   and `metrics` read it.
//! - [`program_data`]: the constants and map contents that a configuration leads to.
//! - [`generation`]: the program in the kernel: load, fill, pin. [`self_test`] tries it before it is
//!   attached.
//! - [`counters`], [`connections`], [`trace`], [`replay`], [`doctor`]: what an operator can ask.
//!
//! Start reading at [`program_data::ProgramData`], then `daemon::activate`.
//!
//! ```
//! use std::{collections::BTreeSet, net::IpAddr, path::Path};
//!
//! use glb_redirect::{config::Config, program_data::ProgramData};
//!
//! let text = r#"
//!     interfaces = ["eth0"]
//!     vips = ["203.0.113.10"]
//!     directors = ["10.0.2.10"]
//!     backends = ["10.0.2.21", "10.0.2.22"]
//! "#;
//! let config = Config::parse(text, Path::new("redirect.toml"))?;
//!
//! // On the host 10.0.2.21, the other backend is the only peer.
//! let own: BTreeSet<IpAddr> = [IpAddr::from([10, 0, 2, 21])].into();
//! let data = ProgramData::new(&config, &own);
//! assert_eq!(data.peers, [IpAddr::from([10, 0, 2, 22])].into());
//! # Ok::<(), glb_redirect::config::ConfigError>(())
//! ```

mod address_table;
pub mod cli;
pub mod config;
pub mod connections;
pub mod control;
pub mod counters;
mod daemon;
pub mod daemon_state;
pub mod doctor;
pub mod generation;
mod host_state;
mod local_addresses;
mod metrics;
pub mod program_data;
pub mod replay;
pub mod self_test;
pub mod status;
pub mod trace;
mod vip;
mod vlan;

/// The name that marks this program's pin folder, so that other daemons leave it alone.
pub const PIN_OWNER: &str = "glb-redirect";
