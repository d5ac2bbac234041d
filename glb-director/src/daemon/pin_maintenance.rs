//! What is looked after now and then: that everything is pinned, attached and kept on disk.

use glb_host::{generations, xdp_link};
use tracing::{error, info, warn};

use super::{Error, activate::Making, state::Director, trace_session::Watcher};
use crate::{counters, daemon_status::State};

impl Director<'_> {
    /// Holds what is pinned now, after a change of it.
    pub(super) fn hold(&mut self) {
        let pins = &self.making.pins;
        let generations = [Some(self.number()), self.previous.number()].into_iter().flatten();
        let folders: Vec<_> = generations
            .map(|number| generations::folder(pins, number))
            .chain([generations::links(pins), pins.join(counters::pins::FOLDER)])
            .collect();
        if let Err(error) = self.kept.hold(pins, &folders) {
            warn!(%error, "should somebody remove the pins, what they hold ends");
        }
    }

    /// Sees to it that everything is pinned, and attached where it should be.
    pub(super) fn look_after(&mut self, state: &State) {
        if self.keep_pinned(state) {
            self.keep_attached();
        }
    }

    /// Pins again what somebody has removed: what runs is held by this process and goes on, but would
    /// end with it. Says whether everything is pinned.
    pub(super) fn keep_pinned(&mut self, state: &State) -> bool {
        let pins = &self.making.pins;
        if self.is_held() && self.kept.are_intact(pins, &self.lock) {
            return true;
        }
        match self.repin() {
            Ok(count) => {
                self.pins_problem = None;
                state.pins(None);
                warn!(
                    folder = %self.making.pins.path().display(), count,
                    "somebody had removed pins of this director; they have been made again, and \
                     nothing that runs was touched"
                );
                self.making.spare.prepare(&self.current.generation.image, &self.making.pins);
                // What shows decisions is pinned anew too.
                self.look_away();
                self.look_on();
                true
            }
            Err(error) => {
                let error = error.to_string();
                if self.pins_problem.as_ref() != Some(&error) {
                    error!(
                        "somebody has removed pins of this director, and they cannot be made again: \
                         what runs goes on as long as this process, and no longer:\n{error}"
                    );
                    state.pins(Some(error.clone()));
                    self.pins_problem = Some(error);
                }
                false
            }
        }
    }

    fn repin(&mut self) -> Result<usize, Error> {
        // It may make counters of its own, where it finds none.
        self.making.spare.discard();
        let count = self.kept.repin(&self.making.pins, &mut self.lock)?;
        if !self.is_held() {
            let generation = &self.current.generation;
            self.making.pins.remove(&generations::folder(&self.making.pins, generation.number))?;
            generation.pin_below(&self.making.pins)?;
        }
        self.hold();
        Ok(count)
    }

    /// Whether what is in force is held. It is not if its pins were removed before they were.
    fn is_held(&self) -> bool {
        let folder = generations::folder(&self.making.pins, self.number());
        self.kept.holds(&generations::program_pin(&folder))
    }

    /// What is done now and then, and at the end.
    pub(super) fn keep_up(&mut self) {
        let Making { safety, store, .. } = &mut self.making;
        safety.flush(store);
        store.retry();
    }

    /// Attaches to interfaces that were away and are there (again).
    pub(super) fn keep_attached(&mut self) {
        let Making { config, pins, .. } = &self.making;
        for interface in &config.interfaces {
            if xdp_link::interface_index(interface).is_err() && self.away.insert(interface.clone())
            {
                warn!(%interface, "is gone; it is attached to when it comes back");
            }
        }
        let missing = match generations::unattached(&config.interfaces, pins) {
            Ok(missing) => missing,
            Err(error) => return warn!(%error, "cannot see what is attached"),
        };
        if missing.is_empty() {
            return;
        }
        for interface in missing {
            // Whoever watches sees this interface's packets too.
            let program = match self.watcher.as_mut().and_then(Watcher::lens) {
                Some(lens) => lens.program(),
                None => self.current.generation.program(),
            };
            let attached = program.map_err(Error::from).and_then(|program| {
                let pin = generations::link_pin(pins, &interface);
                Ok(xdp_link::attach(program, &interface, &pin, config.mode)?)
            });
            match attached {
                Ok(_) => {
                    self.away.remove(&interface);
                    info!(%interface, generation = self.current.generation.number, "attached");
                }
                Err(error) => {
                    if self.away.insert(format!("{interface}: {error}")) {
                        error!(%interface, "cannot be attached to:\n{error}");
                    }
                }
            }
        }
        self.hold();
    }
}
