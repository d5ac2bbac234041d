//! Swapping a generation in behind the links of all interfaces, all or none.

use std::{collections::HashSet, fs, path::PathBuf};

use aya::programs::{ProgramError, Xdp};
use aya_obj::programs::XdpAttachType;
use glb_host::{
    bpffs::{PinFolder, PinFolderError},
    xdp_link::{self, AttachError, Attached},
};

use super::{Generation, LoadError, pins};

/// Why a generation was not swapped in.
#[derive(Debug, thiserror::Error)]
pub enum SwapError {
    /// An interface said no; the others run what they ran before.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The program is not there.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The pin folder said no.
    #[error(transparent)]
    Folder(#[from] PinFolderError),
    /// A generation's pins could not be read.
    #[error("cannot read generation {}: {source}", path.display())]
    Generation {
        /// Its pinned program.
        path: PathBuf,
        /// Why not.
        source: ProgramError,
    },
}

fn link_pin(pins: &PinFolder, interface: &str) -> PathBuf {
    pins.join(pins::LINKS).join(interface)
}

/// Puts `generation` behind the link of every interface. If one says no, those before it get back
/// what they ran: the previous generation, or nothing.
///
/// # Errors
/// The first interface's error.
pub fn swap(
    generation: &mut Generation,
    interfaces: &[String],
    pins: &PinFolder,
) -> Result<(), SwapError> {
    pins.make(&pins.join(pins::LINKS))?;
    let previous = current_program(interfaces, pins)?;
    let program = generation.program()?;
    let mut done: Vec<(&String, Attached)> = Vec::new();
    for interface in interfaces {
        match xdp_link::attach(program, interface, &link_pin(pins, interface)) {
            Ok(attached) => done.push((interface, attached)),
            Err(error) => {
                put_back(&done, previous, pins);
                return Err(error.into());
            }
        }
    }
    Ok(())
}

fn put_back(done: &[(&String, Attached)], mut previous: Option<(u64, Xdp)>, pins: &PinFolder) {
    for (interface, attached) in done {
        let pin = link_pin(pins, interface);
        let result = match (attached, &mut previous) {
            (Attached::Replaced, Some((_, program))) => {
                xdp_link::attach(program, interface, &pin).map(|_| ())
            }
            (Attached::Replaced, None) | (Attached::New, _) => xdp_link::detach(&pin).map(|_| ()),
        };
        if let Err(error) = result {
            tracing::error!(%interface, %error, "the interface could not be put back as it was");
        }
    }
}

/// The generation that runs on the interfaces now, by its pinned program; nothing if none does.
///
/// # Errors
/// When pins cannot be read.
pub fn current_program(
    interfaces: &[String],
    pins: &PinFolder,
) -> Result<Option<(u64, Xdp)>, SwapError> {
    let mut running = HashSet::new();
    for interface in interfaces {
        running.extend(xdp_link::program_behind(&link_pin(pins, interface))?);
    }
    for number in generations(pins).into_iter().rev() {
        let path = pins.join(pins::GENERATIONS).join(number.to_string()).join(pins::PROGRAM);
        if !path.exists() {
            continue;
        }
        let error = |source| SwapError::Generation { path: path.clone(), source };
        let program = Xdp::from_pin(&path, XdpAttachType::Interface).map_err(error)?;
        if running.contains(&program.info().map_err(error)?.id()) {
            return Ok(Some((number, program)));
        }
    }
    Ok(None)
}

/// Numbers of the pinned generations, in order.
fn generations(pins: &PinFolder) -> Vec<u64> {
    let entries = fs::read_dir(pins.join(pins::GENERATIONS)).into_iter().flatten().flatten();
    let mut numbers: Vec<u64> =
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

/// Removes the pins of all generations but those in `keep`; the number after the greatest.
///
/// # Errors
/// When a pin cannot be removed.
pub fn remove_stale(pins: &PinFolder, keep: &[u64]) -> Result<u64, SwapError> {
    let numbers = generations(pins);
    for number in numbers.iter().filter(|number| !keep.contains(number)) {
        pins.remove(&pins.join(pins::GENERATIONS).join(number.to_string()))?;
    }
    Ok(numbers.last().map_or(1, |last| last + 1))
}

/// Removes the whole pin folder if no interface has a pinned link; says whether it did.
///
/// # Errors
/// When a pin cannot be removed.
pub fn remove_if_detached(pins: &PinFolder) -> Result<bool, SwapError> {
    let idle =
        fs::read_dir(pins.join(pins::LINKS)).map_or(true, |mut links| links.next().is_none());
    if idle {
        pins.remove(pins.path())?;
    }
    Ok(idle)
}

/// Takes the director off every interface that has a pinned link; their names.
///
/// # Errors
/// When a link cannot be removed.
pub fn detach_all(pins: &PinFolder) -> Result<Vec<String>, SwapError> {
    let entries = fs::read_dir(pins.join(pins::LINKS)).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    for name in &names {
        xdp_link::detach(&link_pin(pins, name))?;
    }
    Ok(names)
}
