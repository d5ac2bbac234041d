//! The tracing build of the program, which reports each decision. It is attached in the place of a
//! generation's ordinary program, uses that generation's maps, and is not a generation itself.

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
    Generation, LoadedProgram, ProgramSpec,
    load::{DIRECT_ARRAYS, PROGRAM, load_programs, program_mut},
    self_test::{self, SelfTestError},
};
use crate::counters;

/// A loaded tracing program for one generation.
#[derive(Debug)]
pub struct TraceProgram {
    ebpf: Ebpf,
    /// Where it is pinned.
    folder: PathBuf,
}

/// Why the tracing program cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TraceProgramError {
    /// The kernel refused the program or a map.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The program failed the self-test.
    #[error(transparent)]
    SelfTest(#[from] SelfTestError),
    /// A pin could not be made or removed.
    #[error(transparent)]
    Pins(#[from] PinFolderError),
}

impl TraceProgram {
    /// Loads, tests and pins the tracing program for `generation`, whose maps are pinned below `pins`.
    ///
    /// # Errors
    /// When the kernel refuses it, or it fails the self-test.
    pub fn load(
        generation: &Generation,
        pins: &PinFolder,
        settings: &TraceSettings,
    ) -> Result<Self, TraceProgramError> {
        // The self-test runs on a copy with maps and counters of its own.
        let spec = ProgramSpec::of(&generation.image).with_trace();
        let bounds = spec.array_bounds();
        let mut copy = LoadedProgram::load(spec, None)?.fill(generation.image.clone(), 0)?;
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
        for name in ProgramSpec::table_maps() {
            loader.map_pin_path(name, own.join(name.to_lowercase()));
        }
        let open = |(name, number, _): (&'static str, u8, usize)| {
            DirectArray::open(name, number, &own.join(name.to_lowercase()))
        };
        let arrays = DIRECT_ARRAYS.into_iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let object = map_relocation::relocate(glb_host::DIRECTOR_TRACE_OBJECT, &arrays)?;
        let ebpf = loader.load(&object).map_err(LoadError::from)?;
        let folder = generations::trace_folder(pins, generation.number);
        let mut program = Self { ebpf, folder };
        load_programs(&mut program.ebpf)?;
        trace::configure(&mut program.ebpf, settings)?;
        pins.remove(&generations::trace_programs(pins))?;
        pins.make(&program.folder)?;
        program.pin().inspect_err(|_| remove_trace_program(pins))?;
        Ok(program)
    }

    /// Pins the program, the maps that trace clients read, and the program array. The kernel empties a
    /// program array that is neither open nor pinned, and the general program would then no longer be
    /// found after the daemon's death.
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

    /// The loaded XDP program.
    ///
    /// # Errors
    /// When the object has no such program.
    pub fn program(&mut self) -> Result<&mut Xdp, LoadError> {
        program_mut(&mut self.ebpf, PROGRAM)
    }

    /// The folder that trace clients read from.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// Removes the pins of any tracing program. It must not be attached any more.
pub fn remove_trace_program(pins: &PinFolder) {
    if let Err(error) = pins.remove(&generations::trace_programs(pins)) {
        tracing::warn!(%error, "cannot remove the pins of the tracing program");
    }
}
