//! A tc program on the egress of an interface that stays there when the daemon ends: behind a
//! pinned tcx link, or as a classic filter of the clsact qdisc where the kernel has no tcx (before
//! Linux 6.6).
//!
//! Both forms have a pin in the same folder, named after the interface: the tcx link, or the
//! program of the classic filter.

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
};

use aya::programs::SchedClassifier;

use crate::{
    clsact_filter, generations, sys, tcx_link,
    xdp_link::{self, AttachError, interface_index},
};

/// How a program is attached to the egress of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Behind a tcx link.
    Tcx,
    /// As a filter of the clsact qdisc.
    Clsact,
}

impl Hook {
    /// The words for messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx link",
            Self::Clsact => "clsact filter",
        }
    }
}

/// Attaches `program`, or replaces what an earlier generation attached, and pins it in `folder`.
///
/// # Errors
/// When the kernel refuses both forms, or the interface or the pin cannot be used.
pub fn attach(
    program: &mut SchedClassifier,
    interface: &str,
    folder: &Path,
) -> Result<Hook, AttachError> {
    let pin = folder.join(generations::link_name(interface));
    if pinned_hook(&pin)? != Some(Hook::Clsact) {
        match attach_by(Hook::Tcx, program, interface, folder) {
            Ok(()) => return Ok(Hook::Tcx),
            Err(AttachError::NoTcx { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    attach_by(Hook::Clsact, program, interface, folder)?;
    Ok(Hook::Clsact)
}

/// As [`attach`], in one form only.
///
/// # Errors
/// When the kernel refuses this form, or the interface or the pin cannot be used.
pub fn attach_by(
    hook: Hook,
    program: &mut SchedClassifier,
    interface: &str,
    folder: &Path,
) -> Result<(), AttachError> {
    let pin = folder.join(generations::link_name(interface));
    match hook {
        Hook::Tcx => tcx_link::attach_egress(program, interface, &pin).map(drop),
        Hook::Clsact => {
            clsact_filter::attach(program, interface, &pin, &qdisc_pin(folder, interface))
        }
    }
}

/// How the program with a pin in `folder` is attached to `interface`; nothing if it is not.
///
/// # Errors
/// When the kernel does not say.
pub fn attached(interface: &str, folder: &Path) -> Result<Option<Hook>, AttachError> {
    let pin = folder.join(generations::link_name(interface));
    let index = interface_index(interface)?;
    let is_there = match pinned_hook(&pin)? {
        None => return Ok(None),
        Some(Hook::Tcx) => sys::open_pin(&pin)
            .and_then(|link| sys::tcx_link_interface(link.as_fd()))
            .map_err(|error| pin_error("read", &pin, error))
            .map(|of| (of == index).then_some(Hook::Tcx))?,
        Some(Hook::Clsact) => clsact_filter::is_attached(interface)?.then_some(Hook::Clsact),
    };
    Ok(is_there)
}

/// Detaches the programs with a pin in `folder` from all interfaces but those in `keep`; returns
/// the names of the interfaces.
///
/// # Errors
/// When a program or its pin cannot be removed.
pub fn detach_all_but(folder: &Path, keep: &[String]) -> Result<Vec<String>, AttachError> {
    let interfaces = generations::pinned_interfaces(folder, keep);
    for interface in &interfaces {
        let pin = folder.join(generations::link_name(interface));
        if pinned_hook(&pin)? == Some(Hook::Clsact) {
            clsact_filter::detach(interface, &pin, &qdisc_pin(folder, interface))?;
        } else {
            xdp_link::detach(&pin)?;
        }
    }
    Ok(interfaces)
}

/// The folder beside the folder of pins in which the program is pinned once more for each interface
/// whose clsact qdisc this project made.
#[must_use]
pub fn qdisc_folder(folder: &Path) -> PathBuf {
    folder.with_file_name("clsact")
}

fn qdisc_pin(folder: &Path, interface: &str) -> PathBuf {
    qdisc_folder(folder).join(generations::link_name(interface))
}

/// The form that a pin stands for; nothing if there is no pin.
fn pinned_hook(pin: &Path) -> Result<Option<Hook>, AttachError> {
    if !pin.exists() {
        return Ok(None);
    }
    let object = sys::open_pin(pin).map_err(|error| pin_error("open", pin, error))?;
    // The kernel names the kind of a BPF object there: "anon_inode:bpf_link", "anon_inode:bpf-prog".
    let kind = fs::read_link(format!("/proc/self/fd/{}", object.as_raw_fd()))
        .map_err(|error| pin_error("read", pin, error))?;
    let is_program = kind.as_os_str().to_string_lossy().ends_with("bpf-prog");
    Ok(Some(if is_program { Hook::Clsact } else { Hook::Tcx }))
}

pub(crate) fn pin_error(action: &'static str, path: &Path, source: io::Error) -> AttachError {
    AttachError::Pin { action, path: path.to_owned(), source: source.into() }
}
