//! Pins that are removed from outside are restored.

use glb_host::{generations, tc_egress};
use tracing::{error, warn};

use super::{Backend, CLAMPS};
use crate::generation::COUNTERS_FOLDER;

impl Backend {
    /// Opens a descriptor of everything that is pinned now.
    pub(super) fn hold_pins(&mut self) {
        let pins = &self.pins;
        let folders = [
            generations::folder(pins, self.number),
            generations::links(pins),
            pins.join(CLAMPS),
            tc_egress::qdisc_folder(&pins.join(CLAMPS)),
            pins.join(COUNTERS_FOLDER),
        ];
        if let Err(error) = self.kept.hold(pins, &folders) {
            warn!(%error, "cannot open pins: if they are removed, what they hold ends");
        }
    }

    /// Restores removed pins. This process holds what runs, which would otherwise end with it.
    pub(super) fn restore_pins(&mut self) {
        if self.kept.are_intact(&self.pins, &self.lock) {
            return;
        }
        match self.kept.repin(&self.pins, &mut self.lock) {
            Ok(count) => {
                self.state.set_pins_problem(None);
                warn!(
                    folder = %self.pins.path().display(), count,
                    "restored pins that another program had removed; packet processing was not \
                     interrupted"
                );
                self.hold_pins();
            }
            Err(error) => {
                let error = error.to_string();
                if self.state.snapshot().pins_problem.as_ref() != Some(&error) {
                    error!(
                        "cannot restore pins that another program has removed: packet processing \
                         ends with this process:\n{error}"
                    );
                    self.state.set_pins_problem(Some(error));
                }
            }
        }
    }
}
