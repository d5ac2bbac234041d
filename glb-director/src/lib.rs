//! The director: compiles tables into an XDP program that forwards a VIP's packets to its backends,
//! and runs the daemon around it. The binary `glb-director` only calls [`cli`].
//!
//! From the top down:
//!
//! | layer | modules |
//! |---|---|
//! | commands | [`cli`], [`doctor`], [`replay`], [`trace`], [`glb_import`] |
//! | daemon | [`daemon`] (start here), [`announce`], [`prober`] |
//! | what operators see | [`control`], [`metrics`], [`statsd`], [`fleet`], [`status`], [`views`], [`daemon_status`] |
//! | the program in the kernel | [`generation`], and [`oracle`] to test it |
//! | its contents | [`compiled_tables`], [`counters`] |
//! | shared types | [`model`], [`probe_results`], [`config`] |
//!
//! The packet path itself is `glb-common`; tables are `glb-table`; the parts that all daemons share are
//! `glb-host`. This compiles a table and asks the oracle what becomes of a frame:
//!
//! ```
//! use glb_director::{
//!     compiled_tables::{CompiledTables, ForwardingOptions},
//!     counters::{BackendId, CounterSlots},
//!     oracle::{Verdict, expected_outcome},
//! };
//! use glb_host::next_hop::Snapshot;
//!
//! struct OneSlot;
//!
//! impl CounterSlots for OneSlot {
//!     fn table(&self, _name: &str) -> u32 {
//!         1
//!     }
//!     fn backend(&self, _backend_id: &BackendId) -> u32 {
//!         1
//!     }
//! }
//!
//! let tables =
//!     glb_table::TableSet { tables: Vec::new(), warnings: Vec::new(), healthchecks: None };
//! let options = ForwardingOptions::default();
//! let compiled = CompiledTables::new(&tables, &OneSlot, &Snapshot::default(), &options)?;
//! // A frame that no bind is for goes to the kernel.
//! assert_eq!(expected_outcome(&compiled, &[0; 64]).verdict, Verdict::Pass);
//! # Ok::<(), glb_director::compiled_tables::CompileError>(())
//! ```

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

/// The program's name, which marks its pin folder.
pub const OWNER: &str = "glb-director";
