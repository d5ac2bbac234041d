//! A program that is loaded ahead: the verifier's work is most of what a reload takes, and the next
//! generation mostly differs from this one in the contents of its maps alone.

use std::{sync::mpsc, thread};

use glb_host::{bpf_loader::LoadError, bpffs::PinFolder};
use tracing::{debug, warn};

use crate::{
    compiled_tables::Image,
    generation::{Shape, Shell},
};

/// What is ready, or being made ready.
#[derive(Debug, Default)]
pub(super) struct Spare(Option<Loading>);

#[derive(Debug)]
struct Loading {
    shape: Shape,
    shell: mpsc::Receiver<Result<Shell, LoadError>>,
    thread: thread::JoinHandle<()>,
}

impl Spare {
    /// Has one made ready, in a thread of its own, that will carry images like this one.
    pub(super) fn prepare(&mut self, image: &Image, pins: &PinFolder) {
        let shape = Shape::of(image).with_room();
        if self.0.as_ref().is_some_and(|loading| loading.shape == shape) {
            return;
        }
        let (sender, shell) = mpsc::sync_channel(1);
        let (wanted, pins) = (shape.clone(), pins.clone());
        let spawned = thread::Builder::new().name("spare".into()).spawn(move || {
            // Who wanted it may have found another way.
            drop(sender.send(Shell::load(wanted, Some(&pins))));
        });
        match spawned {
            Ok(thread) => self.0 = Some(Loading { shape, shell, thread }),
            Err(error) => warn!(%error, "no program can be loaded ahead"),
        }
    }

    /// The one that is ready, or will be soon, if it can carry `image`.
    pub(super) fn take(&mut self, image: &Image) -> Option<Shell> {
        let fits = |loading: &Loading| Shape::of(image).fits(&loading.shape);
        let loading = self.0.take_if(|loading| fits(loading))?;
        match loading.shell.recv() {
            Ok(Ok(shell)) => Some(shell),
            Ok(Err(error)) => {
                debug!(%error, "the program that was loaded ahead was not");
                None
            }
            Err(_) => None,
        }
    }

    /// Lets go of it, once it is loaded: it may be about to pin counters.
    pub(super) fn discard(&mut self) {
        if let Some(loading) = self.0.take() {
            // A panic in there is no reason for another one.
            drop(loading.thread.join());
        }
    }
}
