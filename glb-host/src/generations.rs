//! Generations in a pin folder.
//!
//! Each generation has a folder with its program and maps; each interface has a pinned link. A swap
//! puts a generation behind all links, or behind none.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use aya::programs::{ProgramError, Xdp};
use aya_obj::programs::XdpAttachType;

use crate::{
    bpffs::{PinFolder, PinFolderError},
    xdp_link::{self, AttachError, Attached, Mode},
};

/// The folder with a folder for each generation.
const GENERATIONS: &str = "generations";
/// The folder with a link for each interface.
const LINKS: &str = "links";
/// The folder with a folder for each trace program.
const TRACE: &str = "trace";
/// The pin of a generation's program.
const PROGRAM: &str = "program";

/// Why a generation was not swapped in.
#[derive(Debug, thiserror::Error)]
pub enum SwapError {
    /// One interface failed; the others run what they ran before.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The pin folder cannot be used.
    #[error(transparent)]
    Folder(#[from] PinFolderError),
    /// A generation's pins could not be read.
    #[error("cannot read generation {}: {source}", path.display())]
    Generation {
        /// The pinned program.
        path: PathBuf,
        /// The cause.
        source: ProgramError,
    },
}

/// Returns the folder of generation `number`.
#[must_use]
pub fn folder(pins: &PinFolder, number: u64) -> PathBuf {
    pins.join(GENERATIONS).join(number.to_string())
}

/// Returns the pin of a generation's program in its folder.
#[must_use]
pub fn program_pin(folder: &Path) -> PathBuf {
    folder.join(PROGRAM)
}

/// Returns the folder with the trace programs.
#[must_use]
pub fn trace_programs(pins: &PinFolder) -> PathBuf {
    pins.join(TRACE)
}

/// Returns the folder of the trace program of generation `number`.
#[must_use]
pub fn trace_folder(pins: &PinFolder, number: u64) -> PathBuf {
    trace_programs(pins).join(number.to_string())
}

/// Returns the folder with the interfaces' links.
#[must_use]
pub fn links(pins: &PinFolder) -> PathBuf {
    pins.join(LINKS)
}

/// Returns the pin of an interface's link.
#[must_use]
pub fn link_pin(pins: &PinFolder, interface: &str) -> PathBuf {
    links(pins).join(link_name(interface))
}

/// Returns the pin name for an interface.
///
/// A BPF file system allows no dots in names (`eth0.100`); a colon cannot occur in an interface's
/// name.
#[must_use]
pub fn link_name(interface: &str) -> String {
    interface.replace('.', ":")
}

/// Puts `program` behind the link of every interface.
///
/// If one fails, the interfaces before it get back the previous generation, or nothing. A missing
/// interface is skipped if others run a program.
///
/// # Errors
/// The first interface's error.
pub fn swap(
    program: &mut Xdp,
    interfaces: &[String],
    pins: &PinFolder,
    mode: Mode,
) -> Result<(), SwapError> {
    pins.make(&links(pins))?;
    let previous = current_program(interfaces, pins)?;
    let is_there = |interface: &&String| xdp_link::interface_index(interface).is_ok();
    let is_partial = previous.is_some() && interfaces.iter().any(|interface| is_there(&interface));
    let mut done: Vec<(&String, Attached)> = Vec::new();
    for (index, interface) in interfaces.iter().enumerate() {
        if is_partial && !is_there(&interface) {
            tracing::warn!(%interface, "interface is missing; the program will be attached when it appears");
            continue;
        }
        let pin = link_pin(pins, interface);
        let attached = fault("swap", index, &pin)
            .and_then(|()| xdp_link::attach(program, interface, &pin, mode))
            .and_then(|attached| {
                done.push((interface, attached));
                fault("swapped", index, &pin)
            });
        if let Err(error) = attached {
            restore(&done, previous, pins, mode);
            return Err(error.into());
        }
    }
    Ok(())
}

fn fault(place: &str, index: usize, pin: &Path) -> Result<(), AttachError> {
    crate::failpoints::point(&format!("{place} {index}")).map_err(|source| AttachError::Pin {
        action: "update",
        path: pin.to_owned(),
        source: source.into(),
    })
}

fn restore(
    done: &[(&String, Attached)],
    mut previous: Option<(u64, Xdp)>,
    pins: &PinFolder,
    mode: Mode,
) {
    for (interface, attached) in done {
        let pin = link_pin(pins, interface);
        let result = match (attached, &mut previous) {
            (Attached::Replaced, Some((_, program))) => {
                xdp_link::attach(program, interface, &pin, mode).map(|_| ())
            }
            (Attached::Replaced, None) | (Attached::New, _) => xdp_link::detach(&pin).map(|_| ()),
        };
        if let Err(error) = result {
            tracing::error!(%interface, %error, "cannot restore the interface's previous program");
        }
    }
}

/// Returns the existing interfaces that do not run their program: they were missing, or were
/// recreated.
///
/// # Errors
/// When a pin cannot be read.
pub fn unattached(interfaces: &[String], pins: &PinFolder) -> Result<Vec<String>, AttachError> {
    let mut found = Vec::new();
    for interface in interfaces {
        if xdp_link::interface_index(interface).is_ok()
            && !xdp_link::holds(&link_pin(pins, interface), interface)?
        {
            found.push(interface.clone());
        }
    }
    Ok(found)
}

/// Returns whether every existing interface runs this program.
///
/// A predecessor that was killed during a swap leaves some with the old one.
///
/// # Errors
/// When a pin cannot be read.
pub fn runs_everywhere(
    program: u32,
    interfaces: &[String],
    pins: &PinFolder,
) -> Result<bool, AttachError> {
    for interface in interfaces {
        let behind = xdp_link::program_behind(&link_pin(pins, interface))?;
        if xdp_link::interface_index(interface).is_ok() && behind != Some(program) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Returns the program of a generation, if it is pinned.
///
/// # Errors
/// When the pin cannot be read.
pub fn pinned_program(pins: &PinFolder, number: u64) -> Result<Option<Xdp>, SwapError> {
    pinned_below(&folder(pins, number))
}

fn pinned_below(folder: &Path) -> Result<Option<Xdp>, SwapError> {
    let path = program_pin(folder);
    if !path.exists() {
        return Ok(None);
    }
    let program = Xdp::from_pin(&path, XdpAttachType::Interface);
    program.map(Some).map_err(|source| SwapError::Generation { path, source })
}

/// Returns the generation that the interfaces run now, with its pinned program.
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
    for number in numbers(pins).into_iter().rev() {
        let Some(program) = pinned_program(pins, number)? else { continue };
        let id = program_id(&program, &folder(pins, number))?;
        // A trace program runs in the generation's place, with its maps.
        let lens = trace_folder(pins, number);
        let shown = pinned_below(&lens)?.map(|program| program_id(&program, &lens)).transpose()?;
        if running.contains(&id) || shown.is_some_and(|id| running.contains(&id)) {
            return Ok(Some((number, program)));
        }
    }
    Ok(None)
}

fn program_id(program: &Xdp, folder: &Path) -> Result<u32, SwapError> {
    let error = |source| SwapError::Generation { path: program_pin(folder), source };
    Ok(program.info().map_err(error)?.id())
}

/// Returns the numbers of the pinned generations in ascending order.
#[must_use]
pub fn numbers(pins: &PinFolder) -> Vec<u64> {
    let entries = fs::read_dir(pins.join(GENERATIONS)).into_iter().flatten().flatten();
    let mut numbers: Vec<u64> =
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

/// Removes the pins of all generations that are not in `keep`; returns the next free number.
///
/// # Errors
/// When a pin cannot be removed.
pub fn remove_stale(pins: &PinFolder, keep: &[u64]) -> Result<u64, PinFolderError> {
    let numbers = numbers(pins);
    for number in numbers.iter().filter(|number| !keep.contains(number)) {
        pins.remove(&folder(pins, *number))?;
    }
    Ok(numbers.last().map_or(1, |last| last + 1))
}

/// Removes the whole pin folder if no interface has a link in it.
///
/// # Errors
/// When a pin cannot be removed.
pub fn remove_if_detached(pins: &PinFolder) -> Result<(), PinFolderError> {
    let mut links = fs::read_dir(links(pins)).into_iter().flatten();
    if links.next().is_none() { pins.remove_all() } else { Ok(()) }
}

/// Detaches the program from every interface that is not in `keep`; returns their names.
///
/// # Errors
/// When a link cannot be removed.
pub fn detach_all_but(pins: &PinFolder, keep: &[String]) -> Result<Vec<String>, AttachError> {
    remove_links_but(&links(pins), keep)
}

/// Removes every link that is pinned in `folder` and whose interface is not in `keep`; returns the
/// names.
///
/// # Errors
/// When a link cannot be removed.
fn remove_links_but(folder: &Path, keep: &[String]) -> Result<Vec<String>, AttachError> {
    let names = pinned_interfaces(folder, keep);
    for name in &names {
        xdp_link::detach(&folder.join(link_name(name)))?;
    }
    Ok(names)
}

/// The interfaces, in order, that have a pin in `folder` and are not in `keep`.
pub(crate) fn pinned_interfaces(folder: &Path, keep: &[String]) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .map(|name| name.replace(':', "."))
        .filter(|name| !keep.contains(name))
        .collect();
    names.sort_unstable();
    names
}
