//! A data centre in network namespaces, with real daemons and real services. The demo and the
//! end-to-end tests run in it.
//!
//! Several labs can run side by side: a lab has its own prefix of namespace names, run folder and
//! bpffs. Dropping the handle removes the lab, also after a failure and on Ctrl-C. Starting a lab
//! removes the leftovers of a killed lab with the same name.

mod bgp_daemons;
pub mod bird;
mod checked_fleet;
mod cleanup;
pub mod command;
mod counters;
mod daemons;
pub mod demo;
mod exabgp;
mod faulty_server;
mod fleet;
mod frr;
mod git_clone;
pub mod http;
pub mod interrupt;
pub mod kernel;
pub mod link;
mod netns;
pub mod pings;
mod plan;
mod process;
mod report;
pub mod repository;
mod requests;
mod row_diff;
mod services;
mod table;
mod topology;
mod wire;

pub use checked_fleet::{BackendFault, CheckedFleet, Checkpoint, ProbeTiming, ReactionTimes};
pub use cleanup::Lock;
pub use counters::{BackendCounters, Count, DirectorCounters, RedirectCounters, TableCounters};
pub use daemons::{Daemon, Program, director_config, files_below};
pub use faulty_server::{FaultyServer, Health};
pub use fleet::{Fleet, Status, Target};
pub use git_clone::GitClone;
pub use netns::Netns;
pub use plan::{AnnounceMethod, Family, Node, Plan, Routing, client, client_of, vip};
pub use process::Process;
pub use requests::{Request, Requests};
pub use services::WebServer;
pub use table::{State, TableFile};
pub use topology::{INTERFACE, Lab, down};
