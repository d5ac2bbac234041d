//! Moves counters that another release pinned in another shape into maps of this release's shape.

use glb_common::abi::{BACKEND_SLOTS, Counter, ReasonCounters, TABLE_SLOTS};
use glb_host::{
    bpf_loader::LoadError,
    bpffs::PinFolder,
    counter_map::{self, CounterLayout},
};

use super::{counter_slots::CounterSlotMap, layout::pins};

/// Replaces counter maps of another shape by new ones with the same counts, as far as they fit.
/// `in_use` are the kernel's numbers of the maps that the attached program uses. Returns a message for
/// each map that was replaced.
///
/// # Errors
/// When the kernel refuses a map operation.
pub fn migrate(pins: &PinFolder, in_use: &[u32]) -> Result<Vec<String>, LoadError> {
    let shapes = [
        (
            pins::TABLES,
            CounterLayout { value: size_of::<ReasonCounters>() as u32, entries: TABLE_SLOTS },
        ),
        (
            pins::BACKENDS,
            CounterLayout { value: size_of::<Counter>() as u32, entries: BACKEND_SLOTS },
        ),
    ];
    let mut messages = Vec::new();
    for (name, shape) in shapes {
        let path = pins.join(name);
        counter_map::recover(&path, in_use).map_err(|error| LoadError::map("find", name, error))?;
        if let Some(found) = counter_map::migrate(&path, shape)? {
            messages.push(format!(
                "the counters in {name} were pinned by another release ({found}); their counts were \
                 copied as far as they fit"
            ));
        }
    }
    let identities = pins.join(pins::IDENTITIES);
    if identities.exists() && CounterSlotMap::open(pins).is_err() {
        // Without the slots, the counts cannot be attributed.
        for name in [pins::TABLES, pins::BACKENDS, pins::IDENTITIES] {
            let path = pins.join(name);
            counter_map::commit(&path)
                .and_then(|()| match std::fs::remove_file(&path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                    _ => Ok(()),
                })
                .map_err(|error| LoadError::map("remove", name, error))?;
        }
        messages.push(
            "the slots of the counters were pinned by another release in an unknown form: all \
             counters begin at 0"
                .to_owned(),
        );
    }
    Ok(messages)
}

/// Removes the maps that [`migrate`] replaced. Call it when no attached program uses them any more.
///
/// # Errors
/// When a pin cannot be removed.
pub fn finish_migration(pins: &PinFolder) -> std::io::Result<()> {
    [pins::TABLES, pins::BACKENDS].iter().try_for_each(|name| counter_map::commit(&pins.join(name)))
}
