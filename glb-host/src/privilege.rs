//! Dropping privileges: a daemon keeps the capabilities that it works with and drops all others,
//! also as root.
//!
//! Capabilities belong to threads, so they are dropped while there is only one; later threads
//! inherit the rest.

use std::{fs, io};

pub use caps::Capability;
use caps::{CapSet, CapsHashSet, errors::CapsError};

/// The capabilities of a running daemon, reloads included: programs and maps, links and netlink,
/// and arithmetic on packet pointers (CAP_PERFMON).
const NEEDED: [Capability; 3] =
    [Capability::CAP_BPF, Capability::CAP_NET_ADMIN, Capability::CAP_PERFMON];

/// The capabilities that only the start needs: a socket's group, and a port below 1,024.
const START_ONLY: [Capability; 2] = [Capability::CAP_CHOWN, Capability::CAP_NET_BIND_SERVICE];

/// Why privileges could not be dropped.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// The kernel refused.
    #[error("cannot drop privileges ({what}): {source}")]
    Kernel {
        /// The attempted action.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// There are other threads, which would keep their privileges.
    #[error("cannot drop privileges: {0} threads are running already")]
    MultiThreaded(usize),
}

/// Drops, for good, all capabilities except those that the daemon and its start need.
///
/// Without CAP_DAC_OVERRIDE file modes bind root too, so that an unreadable file is found at the
/// start and not at the next reload.
///
/// # Errors
/// When the kernel refuses, or threads have been started.
pub fn drop_capabilities() -> Result<(), PrivilegeError> {
    let permitted = get(CapSet::Permitted)?;
    // Older set-ups grant CAP_SYS_ADMIN in place of the two capabilities that were split from it.
    let stands_in = [Capability::CAP_BPF, Capability::CAP_PERFMON]
        .iter()
        .any(|capability| !permitted.contains(capability))
        .then_some(Capability::CAP_SYS_ADMIN);
    let works_with: Vec<Capability> = NEEDED.into_iter().chain(stands_in).collect();
    drop_capabilities_except(&works_with)
}

/// Drops all capabilities except these and those of the start, and sets `no_new_privs`.
///
/// # Errors
/// The kernel refuses, or the process has several threads.
pub fn drop_capabilities_except(needed: &[Capability]) -> Result<(), PrivilegeError> {
    ensure_single_thread()?;
    let permitted = get(CapSet::Permitted)?;
    let works_with: CapsHashSet = needed.iter().copied().collect();
    if permitted.contains(&Capability::CAP_SETPCAP) {
        for capability in get(CapSet::Bounding)?.difference(&works_with) {
            caps::drop(None, CapSet::Bounding, *capability)
                .map_err(|error| kernel("bounding set", &error))?;
        }
    }
    let kept = works_with.into_iter().chain(START_ONLY).collect();
    keep(&kept)?;
    nix::sys::prctl::set_no_new_privs()
        .map_err(|errno| PrivilegeError::Kernel { what: "no_new_privs", source: errno.into() })
}

/// Drops the capabilities that only the start needed.
///
/// # Errors
/// When the kernel refuses, or threads have been started.
pub fn drop_start_capabilities() -> Result<(), PrivilegeError> {
    ensure_single_thread()?;
    let mut kept = get(CapSet::Permitted)?;
    for capability in START_ONLY {
        kept.remove(&capability);
    }
    keep(&kept)?;
    let mut names: Vec<String> = kept.iter().map(ToString::to_string).collect();
    names.sort_unstable();
    let uid = nix::unistd::geteuid();
    tracing::info!(%uid, capabilities = names.join(","), "privileges dropped");
    Ok(())
}

/// Clears the ambient and inheritable sets, so that child processes do not inherit capabilities.
///
/// # Errors
/// When the kernel refuses, or threads have been started.
pub fn clear_ambient_capabilities() -> Result<(), PrivilegeError> {
    ensure_single_thread()?;
    caps::clear(None, CapSet::Ambient).map_err(|error| kernel("ambient set", &error))?;
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new())
        .map_err(|error| kernel("inheritable set", &error))
}

/// Forbids core dumps of this process, which would contain the tables' keys.
///
/// # Errors
/// When the kernel refuses.
pub fn disable_core_dumps() -> Result<(), PrivilegeError> {
    use nix::sys::resource::{Resource, setrlimit};
    let error =
        |what| move |errno: nix::Error| PrivilegeError::Kernel { what, source: errno.into() };
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(error("core dump limit"))?;
    // The limit does not apply to a pipe in kernel.core_pattern; this does.
    nix::sys::prctl::set_dumpable(false).map_err(error("dumpable flag"))
}

fn keep(kept: &CapsHashSet) -> Result<(), PrivilegeError> {
    let left = get(CapSet::Permitted)?.intersection(kept).copied().collect();
    let set = |set, what, value: &CapsHashSet| {
        caps::set(None, set, value).map_err(|error| kernel(what, &error))
    };
    // The ambient set first: it must be a subset of the others.
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
    // If the kernel does not tell, capabilities are dropped all the same.
    let threads = fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads > 1 { Err(PrivilegeError::MultiThreaded(threads)) } else { Ok(()) }
}
