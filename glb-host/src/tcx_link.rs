//! Attaching a tc program to an interface's egress by a pinned tcx link, beside other tc programs.

use std::{fs, io, os::fd::AsFd as _, path::Path};

use aya::programs::{
    LinkOrder, ProgramError, SchedClassifier, TcAttachType,
    links::{FdLink, LinkError, PinnedLink},
    tc::{SchedClassifierLink, TcAttachOptions},
};

use crate::{
    sys,
    xdp_link::{AttachError, Attached, interface_index},
};

/// Puts `program` on the egress of `interface`.
///
/// It replaces the program behind the link pinned at `pin` if that link belongs to the interface;
/// otherwise it creates and pins a new link.
///
/// # Errors
/// When the kernel refuses; [`AttachError::NoTcx`] before Linux 6.6.
pub(crate) fn attach_egress(
    program: &mut SchedClassifier,
    interface: &str,
    pin: &Path,
) -> Result<Attached, AttachError> {
    let index = interface_index(interface)?;
    let other = |source| AttachError::Other { interface: interface.to_owned(), source };
    let pin_error = |action, source: Box<dyn std::error::Error + Send + Sync>| AttachError::Pin {
        action,
        path: pin.to_owned(),
        source,
    };
    if pin.exists() {
        let link = sys::open_pin(pin).map_err(|error| pin_error("open", error.into()))?;
        let of = sys::tcx_link_interface(link.as_fd())
            .map_err(|error| pin_error("read", error.into()))?;
        if of == index {
            let link = PinnedLink::from_pin(pin)
                .map_err(|error: LinkError| pin_error("adopt", error.into()))?;
            let link = SchedClassifierLink::try_from(FdLink::from(link))
                .map_err(|error| pin_error("adopt", error.into()))?;
            let id = program.attach_to_link(link).map_err(other)?;
            // The pin keeps the link alive after it is closed here.
            drop(program.take_link(id).map_err(other)?);
            return Ok(Attached::Replaced);
        }
        // The link's interface is gone, or was recreated.
        fs::remove_file(pin).map_err(|error| pin_error("remove", error.into()))?;
    }
    let order = TcAttachOptions::TcxOrder(LinkOrder::default());
    let id = program
        .attach_with_options(interface, TcAttachType::Egress, order)
        .map_err(|error| classify(error, interface))?;
    let link = program.take_link(id).map_err(other)?;
    let link = FdLink::try_from(link)
        .map_err(|_not_a_link| AttachError::NoTcx { interface: interface.to_owned() })?;
    drop(link.pin(pin).map_err(|error| pin_error("make", error.into()))?);
    Ok(Attached::New)
}

fn classify(error: ProgramError, interface: &str) -> AttachError {
    let interface = interface.to_owned();
    match &error {
        ProgramError::SyscallError(call) => match call.io_error.raw_os_error() {
            Some(libc::EINVAL) => AttachError::NoTcx { interface },
            Some(errno @ (libc::EPERM | libc::EACCES)) => {
                AttachError::NotPermitted { interface, source: io::Error::from_raw_os_error(errno) }
            }
            _ => AttachError::Other { interface, source: error },
        },
        _ => AttachError::Other { interface, source: error },
    }
}
