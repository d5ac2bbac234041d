//! Loads the next program ahead of time. Verifying a program takes most of a reload's time, and the
//! next generation mostly needs the same program with other contents of its maps.

use std::{sync::mpsc, thread};

use glb_host::{bpf_loader::LoadError, bpffs::PinFolder};
use tracing::{debug, warn};

use crate::{
    compiled_tables::CompiledTables,
    generation::{LoadedProgram, ProgramSpec},
};

/// Keeps at most one program that is loaded or being loaded.
#[derive(Debug, Default)]
pub(super) struct Preloader(Option<Loading>);

#[derive(Debug)]
struct Loading {
    spec: ProgramSpec,
    program: mpsc::Receiver<Result<LoadedProgram, LoadError>>,
    thread: thread::JoinHandle<()>,
}

impl Preloader {
    /// Loads a program, in a thread of its own, that tables of the size of `compiled` will fit.
    pub(super) fn prepare(&mut self, compiled: &CompiledTables, pins: &PinFolder) {
        let spec = ProgramSpec::of(compiled).with_spare_capacity();
        if self.0.as_ref().is_some_and(|loading| loading.spec == spec) {
            return;
        }
        let (sender, program) = mpsc::sync_channel(1);
        let (loaded, pins) = (spec.clone(), pins.clone());
        let spawned = thread::Builder::new().name("preload".into()).spawn(move || {
            // The receiver has gone if another program was loaded meanwhile.
            drop(sender.send(LoadedProgram::load(loaded, Some(&pins))));
        });
        match spawned {
            Ok(thread) => self.0 = Some(Loading { spec, program, thread }),
            Err(error) => warn!(%error, "cannot preload a program; the next reload takes longer"),
        }
    }

    /// Takes the preloaded program, if `compiled` fits it. Waits if it is still being loaded.
    pub(super) fn take(&mut self, compiled: &CompiledTables) -> Option<LoadedProgram> {
        let fits = |loading: &Loading| ProgramSpec::of(compiled).fits(&loading.spec);
        let loading = self.0.take_if(|loading| fits(loading))?;
        match loading.program.recv() {
            Ok(Ok(program)) => Some(program),
            Ok(Err(error)) => {
                debug!(%error, "the program was not preloaded");
                None
            }
            Err(_) => None,
        }
    }

    /// Drops the program, after its loading has ended: loading may pin counters.
    pub(super) fn discard(&mut self) {
        if let Some(loading) = self.0.take() {
            // A panic of that thread must not become one of this thread.
            drop(loading.thread.join());
        }
    }
}
