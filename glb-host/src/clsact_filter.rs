//! A classic tc filter on the egress of an interface, for kernels without tcx.
//!
//! The filter keeps its program when the daemon ends. The clsact qdisc that carries it is shared:
//! it is removed only if this project made it and no filter of anybody else is left on it.

use std::{fs, io, os::fd::AsFd as _, path::Path};

use aya::programs::{
    ProgramError, SchedClassifier, TcAttachType,
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
};

use crate::{
    sys,
    tc_egress::pin_error,
    xdp_link::{AttachError, interface_index},
};

/// The name of this project's filters. The kernel keeps it with the filter.
const NAME: &str = "glb_mss_clamp";
/// The place among other filters: before those for which the kernel chose a place.
const PRIORITY: u16 = 50;
/// The number among filters of the same priority: "GL".
const HANDLE: TcHandle = TcHandle::new(0, 0x474c);

/// Attaches `program` to the egress of `interface`, or puts it into the filter that is there, and
/// pins it at `pin`; at `qdisc_pin` too if this call made the qdisc.
pub(crate) fn attach(
    program: &mut SchedClassifier,
    interface: &str,
    pin: &Path,
    qdisc_pin: &Path,
) -> Result<(), AttachError> {
    add_qdisc(program, interface, qdisc_pin)?;
    // A program that is attached with the flag "new" is refused if the filter exists.
    let filter = if is_attached(interface)? {
        let filter =
            SchedClassifierLink::attached(interface, TcAttachType::Egress, PRIORITY, HANDLE, None)
                .map_err(|source| AttachError::Ask { interface: interface.to_owned(), source })?;
        program.attach_to_link(filter)
    } else {
        let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
        let options = TcAttachOptions::Netlink(options);
        program.attach_with_options(interface, TcAttachType::Egress, options)
    };
    let other = |source| AttachError::Other { interface: interface.to_owned(), source };
    let filter = filter.and_then(|id| program.take_link(id)).map_err(other)?;
    // Dropped, it would be detached.
    std::mem::forget(filter);
    pin_program(program, interface, pin)
}

/// Whether a filter of this project is on the egress of `interface`.
pub(crate) fn is_attached(interface: &str) -> Result<bool, AttachError> {
    let names = sys::tc_filters(interface_index(interface)?, sys::TC_EGRESS)
        .map_err(|source| AttachError::Ask { interface: interface.to_owned(), source })?;
    Ok(names.iter().any(|name| name == NAME))
}

/// Removes the filter of this project, the qdisc if it is this project's and unused, and the pins.
pub(crate) fn detach(interface: &str, pin: &Path, qdisc_pin: &Path) -> Result<(), AttachError> {
    let ask = |source| AttachError::Ask { interface: interface.to_owned(), source };
    // With the interface, its filters are gone too.
    if let Ok(index) = interface_index(interface) {
        if is_attached(interface)? {
            tc::qdisc_detach_program(interface, TcAttachType::Egress, NAME).map_err(|error| {
                AttachError::Other { interface: interface.to_owned(), source: error.into() }
            })?;
        }
        let mut is_used = false;
        for parent in [sys::TC_EGRESS, sys::TC_INGRESS] {
            is_used |= !sys::tc_filters(index, parent).map_err(ask)?.is_empty();
        }
        if qdisc_pin.exists() && !is_used {
            sys::delete_clsact(index).map_err(ask)?;
        }
    }
    remove_pin(qdisc_pin)?;
    remove_pin(pin)
}

/// Makes the clsact qdisc if there is none, and pins the program at `qdisc_pin` before that: a
/// qdisc without its pin would never be removed.
fn add_qdisc(
    program: &SchedClassifier,
    interface: &str,
    qdisc_pin: &Path,
) -> Result<(), AttachError> {
    let was_made_here = qdisc_pin.exists();
    if !was_made_here {
        if let Some(folder) = qdisc_pin.parent() {
            fs::create_dir_all(folder).map_err(|error| pin_error("make", folder, error))?;
        }
        pin_program(program, interface, qdisc_pin)?;
    }
    match tc::qdisc_add_clsact(interface) {
        Ok(()) => Ok(()),
        Err(error) if os_error(&error) == Some(libc::EEXIST) => {
            if was_made_here {
                Ok(())
            } else {
                remove_pin(qdisc_pin)
            }
        }
        Err(error) => {
            if !was_made_here {
                remove_pin(qdisc_pin)?;
            }
            Err(AttachError::Other { interface: interface.to_owned(), source: error.into() })
        }
    }
}

fn os_error(error: &TcError) -> Option<i32> {
    let mut error: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(this) = error {
        let code = this.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        if code.is_some() {
            return code;
        }
        error = this.source();
    }
    None
}

fn pin_program(program: &SchedClassifier, interface: &str, pin: &Path) -> Result<(), AttachError> {
    remove_pin(pin)?;
    let fd = program.fd().map_err(|error: ProgramError| AttachError::Other {
        interface: interface.to_owned(),
        source: error,
    })?;
    sys::pin(fd.as_fd(), pin).map_err(|error| pin_error("make", pin, error))
}

fn remove_pin(pin: &Path) -> Result<(), AttachError> {
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(pin_error("remove", pin, error))
        }
        _ => Ok(()),
    }
}
