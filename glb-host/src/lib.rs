//! What both daemons need of the machine they run on: the BPF objects, a folder to pin in,
//! generations behind pinned links, arrays in memory, next hops by netlink, and metrics over HTTP.

pub mod bpf_loader;
pub mod bpffs;
pub mod capture_file;
pub mod cli_main;
pub mod config_file;
pub mod control;
pub mod counter_map;
pub mod doctor;
pub mod duration;
pub mod ethtool;
pub mod exit_code;
pub mod failpoints;
pub mod generations;
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
mod sys;
pub mod systemd;
pub mod table_source;
pub mod tcx_link;
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

/// [`DIRECTOR_OBJECT`], built so that it shows its decisions ([`glb_common::trace`]).
pub static DIRECTOR_TRACE_OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/glb-director-bpf-trace"));

/// [`REDIRECT_OBJECT`], built so that it shows its decisions.
pub static REDIRECT_TRACE_OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/glb-redirect-bpf-trace"));

/// Pins a BPF object by its descriptor; the path must lie on a BPF file system.
///
/// # Errors
/// When the kernel says no.
pub fn pin(object: &impl std::os::fd::AsFd, path: &std::path::Path) -> std::io::Result<()> {
    sys::pin(object.as_fd(), path)
}

/// A process in words, by its id as text; empty if that is not known.
pub(crate) fn describe_process(id: &str) -> String {
    if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_digit()) {
        return "another process".into();
    }
    match std::fs::read_to_string(format!("/proc/{id}/comm")) {
        Ok(name) => format!("process {id} ({})", name.trim()),
        Err(_) => format!("process {id}"),
    }
}

/// An error with those of its causes that it does not name itself.
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
