//! What is looked after now and then: that everything is pinned.

use glb_host::generations;
use tracing::{error, warn};

use super::{Backend, CLAMPS};
use crate::generation::COUNTERS_FOLDER;

impl Backend {
    /// Holds what is pinned now.
    pub(super) fn hold(&mut self) {
        let pins = &self.pins;
        let folders = [
            generations::folder(pins, self.number),
            generations::links(pins),
            pins.join(CLAMPS),
            pins.join(COUNTERS_FOLDER),
        ];
        if let Err(error) = self.kept.hold(pins, &folders) {
            warn!(%error, "should somebody remove the pins, what they hold ends");
        }
    }

    /// Pins again what somebody has removed: what runs is held by this process and goes on, but would
    /// end with it.
    pub(super) fn keep_pinned(&mut self) {
        if self.kept.are_intact(&self.pins, &self.lock) {
            return;
        }
        match self.kept.repin(&self.pins, &mut self.lock) {
            Ok(count) => {
                self.pins_problem = None;
                warn!(
                    folder = %self.pins.path().display(), count,
                    "somebody had removed pins of this backend; they have been made again, and nothing \
                     that runs was touched"
                );
                self.hold();
            }
            Err(error) => {
                let error = error.to_string();
                if self.pins_problem.as_ref() != Some(&error) {
                    error!(
                        "somebody has removed pins of this backend, and they cannot be made again: \
                         what runs goes on as long as this process, and no longer:\n{error}"
                    );
                    self.pins_problem = Some(error);
                }
            }
        }
    }
}
