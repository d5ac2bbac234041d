//! Generations in a pin folder: each has a folder with its program and maps, each interface a
//! pinned link. A generation is swapped in behind all links, or behind none.

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

/// Folder with a folder for each generation.
const GENERATIONS: &str = "generations";
/// Folder with a link for each interface.
const LINKS: &str = "links";
/// Folder with a folder for the program that shows a generation's decisions.
const TRACE: &str = "trace_programs";
/// A generation's program.
const PROGRAM: &str = "program";

/// Why a generation was not swapped in.
#[derive(Debug, thiserror::Error)]
pub enum SwapError {
    /// An interface said no; the others run what they ran before.
    #[error(transparent)]
    Attach(#[from] AttachError),
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

/// Where the objects of generation `number` are pinned.
#[must_use]
pub fn folder(pins: &PinFolder, number: u64) -> PathBuf {
    pins.join(GENERATIONS).join(number.to_string())
}

/// Where a generation's program is pinned in its folder.
#[must_use]
pub fn program_pin(folder: &Path) -> PathBuf {
    folder.join(PROGRAM)
}

/// Where programs are pinned that stand before a generation's own and show its decisions.
#[must_use]
pub fn trace_programs(pins: &PinFolder) -> PathBuf {
    pins.join(TRACE)
}

/// Where the one is pinned that shows the decisions of generation `number`.
#[must_use]
pub fn trace_folder(pins: &PinFolder, number: u64) -> PathBuf {
    trace_programs(pins).join(number.to_string())
}

/// Where the interfaces' links are pinned.
#[must_use]
pub fn links(pins: &PinFolder) -> PathBuf {
    pins.join(LINKS)
}

/// Where an interface's link is pinned.
#[must_use]
pub fn link_pin(pins: &PinFolder, interface: &str) -> PathBuf {
    links(pins).join(link_name(interface))
}

/// The name of a pin for an interface: a BPF file system allows no dots in names, but `eth0.100` is a
/// common interface; a colon is what no interface name has.
#[must_use]
pub fn link_name(interface: &str) -> String {
    interface.replace('.', ":")
}

/// Puts `program` behind the link of every interface. If one says no, those before it get back
/// what they ran: the previous generation, or nothing. An interface that is gone is passed over if
/// something runs on others: it must not keep them from a new table.
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
    let some = previous.is_some() && interfaces.iter().any(|interface| is_there(&interface));
    let mut done: Vec<(&String, Attached)> = Vec::new();
    for (index, interface) in interfaces.iter().enumerate() {
        if some && !is_there(&interface) {
            tracing::warn!(%interface, "is not there; it is attached to when it comes back");
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
            put_back(&done, previous, pins, mode);
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

fn put_back(
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
            tracing::error!(%interface, %error, "the interface could not be put back as it was");
        }
    }
}

/// Interfaces of this network namespace that do not run what they should: they were away, or were
/// made anew.
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

/// Whether every interface that is there runs this program: a predecessor that was killed during a
/// swap has left some with the old one.
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

/// The generation of this number, if its program is pinned.
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
    for number in numbers(pins).into_iter().rev() {
        let Some(program) = pinned_program(pins, number)? else { continue };
        let id = program_id(&program, &folder(pins, number))?;
        // What shows its decisions runs in its stead, with its maps.
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

/// Numbers of the pinned generations, in order.
#[must_use]
pub fn numbers(pins: &PinFolder) -> Vec<u64> {
    let entries = fs::read_dir(pins.join(GENERATIONS)).into_iter().flatten().flatten();
    let mut numbers: Vec<u64> =
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

/// Removes the pins of all generations but those in `keep`; the number after the greatest.
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

/// Takes the program off every interface that has a pinned link and is not in `keep`; their names.
///
/// # Errors
/// When a link cannot be removed.
pub fn detach_all_but(pins: &PinFolder, keep: &[String]) -> Result<Vec<String>, AttachError> {
    remove_links_but(&links(pins), keep)
}

/// Removes every link that is pinned in `folder` and whose interface is not in `keep`; their names.
///
/// # Errors
/// When a link cannot be removed.
pub fn remove_links_but(folder: &Path, keep: &[String]) -> Result<Vec<String>, AttachError> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .map(|name| name.replace(':', "."))
        .filter(|name| !keep.contains(name))
        .collect();
    names.sort_unstable();
    for name in &names {
        xdp_link::detach(&folder.join(link_name(name)))?;
    }
    Ok(names)
}
