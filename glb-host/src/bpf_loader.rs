//! Loading BPF programs, and turning the kernel's refusals into errors that an operator can act on.

use std::{
    io,
    path::{Path, PathBuf},
};

use aya::{
    EbpfError, EbpfLoader,
    maps::{MapData, MapError, MapType},
    programs::ProgramError,
};

use nix::sys::signal::{SigSet, SigmaskHow};

use crate::bpffs::PinFolderError;

/// Runs `work` with all signals blocked on this thread.
///
/// A pending signal makes the verifier give up with EAGAIN; aya then loads the program again with a
/// full log, which takes ten seconds instead of half a second.
pub fn with_signals_blocked<T>(work: impl FnOnce() -> T) -> T {
    /// Restores the signal mask, also after a panic.
    struct Masked(SigSet);
    impl Drop for Masked {
        fn drop(&mut self) {
            // Restoring a mask that the kernel returned cannot fail.
            self.0.thread_set_mask().ok();
        }
    }
    let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK);
    let _masked = mask.map(Masked);
    work()
}

/// Returns a loader that does not parse the kernel's BTF.
///
/// aya parses the kernel's BTF (23 MB) for each loader, and no object here needs it. glibc keeps as
/// much memory as its largest freed buffer, so the threshold is fixed.
#[must_use]
pub fn new_loader<'a>() -> EbpfLoader<'a> {
    /// glibc's default threshold.
    const LARGE: libc::c_int = 128 << 10;
    // SAFETY: sets from which size on memory is the kernel's again once it is free.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE) };
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    loader
}

/// Why a generation could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The process lacks a capability.
    #[error(
        "not permitted to load BPF programs: {source}.\n  \
         Run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON."
    )]
    NotPermitted {
        /// The kernel's answer.
        source: io::Error,
    },
    /// The verifier rejected the program.
    #[error(
        "the kernel rejects the program: {source}\n{log}\n  \
         Linux 5.18 or newer is needed, and this is {release}. If it is newer, please report this \
         message as a bug."
    )]
    Refused {
        /// The kernel's answer.
        source: io::Error,
        /// The last lines of the verifier's log.
        log: String,
        /// The running kernel's release.
        release: String,
    },
    /// A pinned map has another layout than this program expects.
    #[error(
        "{} was pinned by another version: {found}, but this one needs {needed}.\n  \
         `detach` removes it together with the counters it holds.",
        path.display()
    )]
    Layout {
        /// The map's pin.
        path: PathBuf,
        /// The pinned map's layout.
        found: String,
        /// The expected layout.
        needed: String,
    },
    /// Filling or pinning a map failed.
    #[error("cannot {action} map {map}: {source}")]
    Map {
        /// The attempted action.
        action: &'static str,
        /// The map's name.
        map: String,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The pin folder cannot be used.
    #[error(transparent)]
    Folder(#[from] PinFolderError),
    /// Any other error of the library.
    #[error("cannot load the program: {}", chain(.0))]
    Other(Box<EbpfError>),
}

/// Joins an error with its causes; aya's own messages leave out the kernel's answer.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}

impl LoadError {
    /// Returns the error for a failed action on a map.
    pub fn map(
        action: &'static str,
        map: &str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Map { action, map: map.to_owned(), source: source.into() }
    }

    /// Returns the error for a map that the object lacks.
    #[must_use]
    pub fn missing(name: &str) -> Self {
        Self::map("find", name, io::Error::from(io::ErrorKind::NotFound))
    }
}

impl From<EbpfError> for LoadError {
    /// Separates the errors that an operator can act on from the others.
    fn from(error: EbpfError) -> Self {
        let not_permitted = |source: &io::Error| {
            matches!(source.raw_os_error(), Some(libc::EPERM | libc::EACCES))
                .then(|| Self::NotPermitted { source: copy(source) })
        };
        let found = match &error {
            EbpfError::MapError(
                MapError::CreateError { io_error, .. }
                | MapError::SyscallError(aya::sys::SyscallError { io_error, .. }),
            ) => not_permitted(io_error),
            EbpfError::ProgramError(ProgramError::LoadError { io_error, verifier_log }) => {
                let log = verifier_log.to_string();
                // Without CAP_PERFMON the verifier explains itself in the log; without CAP_BPF the
                // log is empty.
                let silent = log.trim().is_empty();
                if silent { not_permitted(io_error) } else { None }.or_else(|| {
                    let lines: Vec<&str> = log.lines().collect();
                    Some(Self::Refused {
                        source: copy(io_error),
                        log: lines[lines.len().saturating_sub(12)..].join("\n"),
                        release: release(),
                    })
                })
            }
            _ => None,
        };
        found.unwrap_or_else(|| Self::Other(Box::new(error)))
    }
}

fn copy(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}

fn release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "an unknown kernel".to_owned(), |text| format!("Linux {}", text.trim()))
}

/// Checks that a pinned per-CPU array has the layout that this version needs.
///
/// aya uses any map that is pinned under the right name.
///
/// # Errors
/// [`LoadError::Layout`], or when the pin cannot be read.
pub fn check_counter_layout(path: &Path, value: usize, entries: u32) -> Result<(), LoadError> {
    if !path.exists() {
        return Ok(());
    }
    let name = path.to_string_lossy();
    let data = MapData::from_pin(path).map_err(|error| LoadError::map("open", &name, error))?;
    let info = data.info().map_err(|error| LoadError::map("read", &name, error))?;
    let kind = info.map_type().map_err(|error| LoadError::map("read", &name, error))?;
    let found = (kind, info.key_size(), info.value_size(), info.max_entries());
    let needed = (MapType::PerCpuArray, 4, value as u32, entries);
    if found == needed {
        return Ok(());
    }
    let say = |(kind, key, value, entries): (_, u32, u32, u32)| {
        format!("{kind:?} of {entries} × {value} bytes, keys of {key}")
    };
    Err(LoadError::Layout { path: path.to_owned(), found: say(found), needed: say(needed) })
}
