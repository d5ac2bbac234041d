//! Why the kernel does not take a program, in words that an operator can act on, and the checks
//! and fillings that loading needs.

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

/// Does `work` with signals put off on this thread until it is done. A signal that waits makes the
/// verifier give up with EAGAIN; aya then loads again with a full log, which takes ten seconds and
/// more where a load takes half of one.
pub fn with_signals_blocked<T>(work: impl FnOnce() -> T) -> T {
    /// Lets signals through again, also when the work panics.
    struct Masked(SigSet);
    impl Drop for Masked {
        fn drop(&mut self) {
            // Of a mask that the kernel itself gave it can only say yes.
            self.0.thread_set_mask().ok();
        }
    }
    let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK);
    let _masked = mask.map(Masked);
    work()
}

/// A loader without the kernel's types. aya reads them for each one, 23 MB, and no object here is to be
/// fitted to them. The allocator learns from buffers of that size to keep as much, so it is told not to.
#[must_use]
pub fn new_loader<'a>() -> EbpfLoader<'a> {
    /// What it starts with.
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
    /// Not allowed to load.
    #[error(
        "not permitted to load BPF programs: {source}.\n  \
         Run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON."
    )]
    NotPermitted {
        /// The kernel's answer.
        source: io::Error,
    },
    /// The verifier refused the program.
    #[error(
        "the kernel refuses the program: {source}\n{log}\n  \
         Linux 5.18 or newer is needed, and this is {release}. If it is newer, this is a fault of \
         the program: please report it with this message."
    )]
    Refused {
        /// The kernel's answer.
        source: io::Error,
        /// The end of the verifier's log.
        log: String,
        /// Of the running kernel.
        release: String,
    },
    /// A map that outlives generations does not have the shape that this program expects.
    #[error(
        "{} was pinned by another version: {found}, but this one needs {needed}.\n  \
         `detach` removes it together with the counters it holds.",
        path.display()
    )]
    Layout {
        /// The pin.
        path: PathBuf,
        /// What is there.
        found: String,
        /// What is needed.
        needed: String,
    },
    /// Filling or pinning failed.
    #[error("cannot {action} map {map}: {source}")]
    Map {
        /// What was tried.
        action: &'static str,
        /// On which map.
        map: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The pin folder said no.
    #[error(transparent)]
    Folder(#[from] PinFolderError),
    /// Anything else.
    #[error("cannot load the program: {}", chain(.0))]
    Other(Box<EbpfError>),
}

/// An error with its causes: the library's own texts leave out the kernel's answer.
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
    /// A map that could not be worked with.
    pub fn map(
        action: &'static str,
        map: &str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Map { action, map: map.to_owned(), source: source.into() }
    }

    /// Something that the object should hold and does not.
    #[must_use]
    pub fn missing(name: &str) -> Self {
        Self::map("find", name, io::Error::from(io::ErrorKind::NotFound))
    }
}

impl From<EbpfError> for LoadError {
    /// Tells apart what an operator can do something about.
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
                // Without CAP_PERFMON the verifier says why in its log; without CAP_BPF it is
                // silent.
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

/// Checks that a per-CPU array that outlives generations, if it is pinned already, has the shape
/// that this version needs: aya takes whatever is pinned under the right name.
///
/// # Errors
/// [`LoadError::Layout`], or when the pin cannot be read.
pub fn check_counter_layout(path: &Path, value: usize, entries: u32) -> Result<(), LoadError> {
    if !path.exists() {
        return Ok(());
    }
    let name = path.to_string_lossy();
    let data = MapData::from_pin(path).map_err(|error| LoadError::map("open", &name, error))?;
    let info = data.info().map_err(|error| LoadError::map("look at", &name, error))?;
    let kind = info.map_type().map_err(|error| LoadError::map("look at", &name, error))?;
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
