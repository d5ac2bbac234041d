//! What both daemons need of the machine they run on: the BPF objects, and (to come with them)
//! attaching by pinned link, next hops by netlink, and signals.

/// The director's BPF object, an ELF file.
pub static DIRECTOR_OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/glb-director-bpf"));

/// The backend's BPF object, an ELF file.
pub static REDIRECT_OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/glb-redirect-bpf"));
