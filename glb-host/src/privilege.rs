//! A daemon keeps the few capabilities that it works with and gives up all others, root's too.
//!
//! Capabilities belong to threads: this has to be done while there is only one, and the threads that
//! come later inherit what it left.

use std::{fs, io};

use caps::{CapSet, Capability, CapsHashSet, errors::CapsError};

/// What a daemon works with, reloads included: programs and maps, links and netlink, and arithmetic
/// with packet pointers, which the verifier allows only with the last one.
const NEEDED: [Capability; 3] =
    [Capability::CAP_BPF, Capability::CAP_NET_ADMIN, Capability::CAP_PERFMON];

/// What only the start can need: a socket's group, and a port below 1,024.
const FOR_THE_START: [Capability; 2] = [Capability::CAP_CHOWN, Capability::CAP_NET_BIND_SERVICE];

/// Why privileges could not be given up.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// The kernel said no.
    #[error("cannot give up privileges ({what}): {source}")]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// Its answer.
        source: io::Error,
    },
    /// There are other threads, which would keep theirs.
    #[error("cannot give up privileges: {0} threads have been started already")]
    MultiThreaded(usize),
}

/// Gives up, for good, everything but what the daemon works with and what its start can need.
///
/// Even a root user is then bound by the modes of files (CAP_DAC_OVERRIDE is gone), from the first
/// file on: what cannot be read is found at the start and not at the next reload.
///
/// # Errors
/// When the kernel refuses, or threads have been started.
pub fn drop_capabilities() -> Result<(), PrivilegeError> {
    ensure_single_thread()?;
    let permitted = get(CapSet::Permitted)?;
    // Older arrangements give CAP_SYS_ADMIN in place of the two that were split from it.
    let stands_in = [Capability::CAP_BPF, Capability::CAP_PERFMON]
        .iter()
        .any(|capability| !permitted.contains(capability))
        .then_some(Capability::CAP_SYS_ADMIN);
    let works_with: CapsHashSet = NEEDED.into_iter().chain(stands_in).collect();
    if permitted.contains(&Capability::CAP_SETPCAP) {
        for capability in get(CapSet::Bounding)?.difference(&works_with) {
            caps::drop(None, CapSet::Bounding, *capability)
                .map_err(|error| kernel("bounding set", &error))?;
        }
    }
    let kept = works_with.into_iter().chain(FOR_THE_START).collect();
    keep(&kept)?;
    nix::sys::prctl::set_no_new_privs()
        .map_err(|errno| PrivilegeError::Kernel { what: "no_new_privs", source: errno.into() })
}

/// Gives up what only the start needed.
///
/// # Errors
/// When the kernel refuses, or threads have been started.
pub fn drop_start_capabilities() -> Result<(), PrivilegeError> {
    ensure_single_thread()?;
    let mut kept = get(CapSet::Permitted)?;
    for capability in FOR_THE_START {
        kept.remove(&capability);
    }
    keep(&kept)?;
    let mut names: Vec<String> = kept.iter().map(ToString::to_string).collect();
    names.sort_unstable();
    let uid = nix::unistd::geteuid();
    tracing::info!(%uid, capabilities = names.join(","), "privileges given up, these are kept");
    Ok(())
}

/// Programs that this process starts do not inherit what a service manager gave to it (its ambient
/// capabilities).
///
/// # Errors
/// When the kernel refuses, or threads have been started.
pub fn clear_ambient_capabilities() -> Result<(), PrivilegeError> {
    ensure_single_thread()?;
    caps::clear(None, CapSet::Ambient).map_err(|error| kernel("ambient set", &error))?;
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new())
        .map_err(|error| kernel("inheritable set", &error))
}

fn keep(kept: &CapsHashSet) -> Result<(), PrivilegeError> {
    let left = get(CapSet::Permitted)?.intersection(kept).copied().collect();
    let set = |set, what, value: &CapsHashSet| {
        caps::set(None, set, value).map_err(|error| kernel(what, &error))
    };
    // Ambient ones first: they must be both of the others.
    caps::clear(None, CapSet::Ambient).map_err(|error| kernel("ambient set", &error))?;
    set(CapSet::Effective, "effective set", &left)?;
    set(CapSet::Inheritable, "inheritable set", &CapsHashSet::new())?;
    set(CapSet::Permitted, "permitted set", &left)
}

fn get(set: CapSet) -> Result<CapsHashSet, PrivilegeError> {
    caps::read(None, set).map_err(|error| kernel("reading", &error))
}

fn kernel(what: &'static str, error: &CapsError) -> PrivilegeError {
    PrivilegeError::Kernel { what, source: io::Error::other(error.to_string()) }
}

fn ensure_single_thread() -> Result<(), PrivilegeError> {
    // Where the kernel does not say, the capabilities themselves are still given up.
    let threads = fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads > 1 { Err(PrivilegeError::MultiThreaded(threads)) } else { Ok(()) }
}
