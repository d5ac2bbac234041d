//! The build of the program that shows its decisions, put before a generation: it works with that
//! generation's own maps, and neither takes its place nor counts as one.

use std::path::{Path, PathBuf};

use aya::{Ebpf, programs::Xdp};
use glb_common::{abi::IntoBytes as _, trace::TraceSettings};
use glb_host::{
    bpf_loader::{LoadError, new_loader},
    bpffs::{PinFolder, PinFolderError},
    generations,
    map_relocation::{self, DirectArray},
    packet_trace::trace,
};

use super::{
    Generation, Shape, Shell,
    load::{DIRECT, PROGRAM, load_programs, program_mut},
    self_test::{self, SelfTestError},
};
use crate::counters;

/// A loaded program that shows the decisions about a generation's tables.
#[derive(Debug)]
pub struct Lens {
    ebpf: Ebpf,
    /// Where it is pinned.
    folder: PathBuf,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum LensError {
    /// The kernel says no.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// It does not do what it should.
    #[error(transparent)]
    SelfTest(#[from] SelfTestError),
    /// Pins.
    #[error(transparent)]
    Pins(#[from] PinFolderError),
}

impl Lens {
    /// Loads and tries the program for `generation`, whose maps are pinned below `pins`, and pins it
    /// beside them.
    ///
    /// # Errors
    /// When the kernel says no, or the program does not do what it should.
    pub fn load(
        generation: &Generation,
        pins: &PinFolder,
        settings: &TraceSettings,
    ) -> Result<Self, LensError> {
        // On a copy with maps and counters of its own.
        let shape = Shape::of(&generation.image).showing();
        let bounds = shape.bounds();
        let mut copy = Shell::load(shape, None)?.fill(generation.image.clone(), 0)?;
        self_test::run(&mut copy)?;
        drop(copy);

        let own = generations::folder(pins, generation.number);
        let mut loader = new_loader();
        let constants = generation.image.config;
        loader
            .override_global("CONFIG", constants.as_bytes(), true)
            .override_global("BOUNDS", bounds.as_bytes(), true)
            .map_max_entries(trace::EVENTS, trace::EVENTS_BYTES)
            .map_pin_path("TABLE_COUNTERS", pins.join(counters::pins::TABLES))
            .map_pin_path("BACKEND_COUNTERS", pins.join(counters::pins::BACKENDS));
        for name in Shape::maps() {
            loader.map_pin_path(name, own.join(name.to_lowercase()));
        }
        let open = |(name, number, _): (&'static str, u8, usize)| {
            DirectArray::open(name, number, &own.join(name.to_lowercase()))
        };
        let arrays = DIRECT.into_iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let object = map_relocation::relocate(glb_host::DIRECTOR_TRACE_OBJECT, &arrays)?;
        let ebpf = loader.load(&object).map_err(LoadError::from)?;
        let folder = generations::trace_folder(pins, generation.number);
        let mut lens = Self { ebpf, folder };
        load_programs(&mut lens.ebpf)?;
        trace::configure(&mut lens.ebpf, settings)?;
        pins.remove(&generations::trace_programs(pins))?;
        pins.make(&lens.folder)?;
        lens.pin().inspect_err(|_| remove(pins))?;
        Ok(lens)
    }

    /// Pins the program, so that a successor knows it, and what it shows, for those who watch. And its
    /// program array: the kernel empties one that no process holds and that is not pinned, and then
    /// the general program is no longer found when the daemon dies.
    fn pin(&self) -> Result<(), LoadError> {
        for name in trace::PINNED.into_iter().chain(["PARTS"]) {
            let map = self.ebpf.map(name).ok_or_else(|| LoadError::missing(name))?;
            map.pin(self.folder.join(name.to_lowercase()))
                .map_err(|error| LoadError::map("pin", name, error))?;
        }
        let program = self.ebpf.program(PROGRAM).ok_or_else(|| LoadError::missing(PROGRAM))?;
        let fd = program.fd().map_err(|error| LoadError::map("open", PROGRAM, error))?;
        glb_host::pin(fd, &generations::program_pin(&self.folder))
            .map_err(|error| LoadError::map("pin", PROGRAM, error))
    }

    /// The loaded program.
    ///
    /// # Errors
    /// Only if the object has none.
    pub fn program(&mut self) -> Result<&mut Xdp, LoadError> {
        program_mut(&mut self.ebpf, PROGRAM)
    }

    /// Where those who watch find what it shows.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// Removes the pins of whatever lens there is; it is to be behind no interface any more.
pub fn remove(pins: &PinFolder) {
    if let Err(error) = pins.remove(&generations::trace_programs(pins)) {
        tracing::warn!(%error, "what showed decisions is left behind");
    }
}
