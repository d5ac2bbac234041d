//! The host side that all daemons share: loading and attaching BPF programs, the kernel's network
//! state, and the surroundings of a daemon (configuration, control socket, metrics, privileges).
//!
//! Forwarding decisions are made in `glb-common` and `glb-ebpf`, tables in `glb-table`. What only one
//! daemon needs is in that daemon's crate.
//!
//! # Layers
//!
//! From the bottom up; a module uses only modules of its own layer and below.
//!
//! | layer | modules |
//! |---|---|
//! | kernel interfaces | `sys` (BPF system calls), [`ethtool`], [`link_events`], [`raw_socket`], [`lock_file`], [`systemd`] |
//! | pinned state | [`bpffs`] (the pin folder), [`pin_guard`], [`map_relocation`], [`mmap_array`], [`counter_map`] |
//! | programs on interfaces | [`bpf_loader`], [`xdp_link`], [`tc_egress`], [`generations`] |
//! | network state | [`next_hop`]: routes, links and neighbours, followed by netlink |
//! | a daemon's surroundings | [`config_file`], [`duration`], [`table_source`], [`watched_file`], [`control`], [`metrics`], [`permission`], [`privilege`], [`doctor`], [`kernel_features`], [`exit_code`], [`sanitize`], [`cli_main`] |
//! | inspection | [`packet_trace`] (replay, trace, capture), [`capture_file`] |
//! | tests only | [`failpoints`] |
//!
//! # Where to start
//!
//! To see how a program reaches an interface, read [`generations::swap`], then [`xdp_link::attach`].
//! To see where destination MAC addresses come from, read [`next_hop`]. To add a request to a daemon,
//! read [`control`].
//!
//! # Example
//!
//! Resolve a next hop and follow its changes:
//!
//! ```no_run
//! # async fn follow() -> Result<(), Box<dyn std::error::Error>> {
//! use std::net::IpAddr;
//!
//! use glb_host::next_hop::NextHops;
//!
//! let backend: IpAddr = "10.0.2.21".parse()?;
//! let next_hops = NextHops::start([backend]).await?;
//! let mut snapshots = next_hops.subscribe();
//! loop {
//!     match &snapshots.borrow_and_update()[&backend] {
//!         Ok(hop) => println!("send to {:02x?} on interface {}", hop.mac, hop.interface),
//!         Err(reason) => println!("unresolved: {reason}"),
//!     }
//!     snapshots.changed().await?;
//! }
//! # }
//! ```

pub mod bpf_loader;
pub mod bpffs;
pub mod capture_file;
pub mod cli_main;
mod clsact_filter;
pub mod config_file;
pub mod control;
pub mod counter_map;
pub mod doctor;
pub mod duration;
pub mod ethtool;
pub mod exit_code;
pub mod failpoints;
pub mod generations;
pub mod kernel_features;
pub mod link_events;
pub mod lock_file;
pub mod map_relocation;
pub mod metrics;
pub mod mmap_array;
pub mod next_hop;
pub mod packet_trace;
pub mod perfect_hash;
pub mod permission;
pub mod pin_guard;
pub mod privilege;
pub mod raw_socket;
pub mod sanitize;
mod sys;
pub mod systemd;
pub mod table_source;
pub mod tc_egress;
mod tcx_link;
pub mod watched_file;
pub mod xdp_link;

/// The director's BPF object, an ELF file.
pub static DIRECTOR_OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/glb-director-bpf"));

/// The benchmark's BPF object, an ELF file.
pub static BENCH_OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/glb-bench-bpf"));

/// The backend's BPF object, an ELF file.
pub static REDIRECT_OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/glb-redirect-bpf"));

/// The trace build of [`DIRECTOR_OBJECT`], which publishes its decisions ([`glb_common::trace`]).
pub static DIRECTOR_TRACE_OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/glb-director-bpf-trace"));

/// The trace build of [`REDIRECT_OBJECT`].
pub static REDIRECT_TRACE_OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/glb-redirect-bpf-trace"));

/// Pins a BPF object by its descriptor; the path must be on a BPF file system.
///
/// # Errors
/// When the kernel refuses.
pub fn pin(object: &impl std::os::fd::AsFd, path: &std::path::Path) -> std::io::Result<()> {
    sys::pin(object.as_fd(), path)
}

/// Describes a process by its id as text; an empty id means an unknown process.
pub(crate) fn describe_process(id: &str) -> String {
    if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_digit()) {
        return "another process".into();
    }
    match std::fs::read_to_string(format!("/proc/{id}/comm")) {
        Ok(name) => format!("process {id} ({})", name.trim()),
        Err(_) => format!("process {id}"),
    }
}

/// Joins an error with those of its causes that its message does not contain.
#[must_use]
pub fn error_chain(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}
