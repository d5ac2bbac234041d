//! Periodic maintenance: keeps everything pinned, attached and written to disk.

use glb_host::{generations, xdp_link};
use tracing::{error, info, warn};

use super::{Error, activate::Activator, active_trace::ActiveTrace, state::Director};
use crate::{counters, daemon_status::DaemonStatus};

impl Director {
    /// Opens descriptors of everything that is pinned now, to be able to pin it again.
    pub(super) fn hold_pins(&mut self) {
        let pins = &self.activator.pins;
        let generations = [Some(self.number()), self.previous.number()].into_iter().flatten();
        let folders: Vec<_> = generations
            .map(|number| generations::folder(pins, number))
            .chain([generations::links(pins), pins.join(counters::pins::FOLDER)])
            .collect();
        if let Err(error) = self.kept.hold(pins, &folders) {
            warn!(%error, "cannot open the pins; if they are removed, they cannot be made again");
        }
    }

    /// Pins and attaches again whatever was removed or detached.
    pub(super) fn maintain_pins(&mut self, status: &DaemonStatus) {
        if self.keep_pinned(status) {
            self.keep_attached();
        }
    }

    /// Pins removed pins again: their objects live on in this process, but would end with it. Returns
    /// whether everything is pinned.
    pub(super) fn keep_pinned(&mut self, status: &DaemonStatus) -> bool {
        let pins = &self.activator.pins;
        if self.is_held() && self.kept.are_intact(pins, &self.lock) {
            return true;
        }
        match self.repin() {
            Ok(count) => {
                self.pins_problem = None;
                status.set_pins_problem(None);
                warn!(
                    folder = %self.activator.pins.path().display(), count,
                    "another program had removed pins of this director; they were made again, and \
                     forwarding was not touched"
                );
                self.activator
                    .preloader
                    .prepare(&self.current.generation.image, &self.activator.pins);
                // The tracing program must be pinned again too.
                self.pause_trace();
                self.resume_trace();
                true
            }
            Err(error) => {
                let error = error.to_string();
                if self.pins_problem.as_ref() != Some(&error) {
                    error!(
                        "another program has removed pins of this director, and they cannot be made \
                         again: forwarding ends with this process. Mend the cause; the daemon tries \
                         again:\n{error}"
                    );
                    status.set_pins_problem(Some(error.clone()));
                    self.pins_problem = Some(error);
                }
                false
            }
        }
    }

    fn repin(&mut self) -> Result<usize, Error> {
        // A preloaded program may use counters other than the removed ones.
        self.activator.preloader.discard();
        let count = self.kept.repin(&self.activator.pins, &mut self.lock)?;
        if !self.is_held() {
            let generation = &self.current.generation;
            self.activator
                .pins
                .remove(&generations::folder(&self.activator.pins, generation.number))?;
            generation.pin_below(&self.activator.pins)?;
        }
        self.hold_pins();
        Ok(count)
    }

    /// Tells whether descriptors of the active generation are open; they are not if its pins were removed
    /// first.
    fn is_held(&self) -> bool {
        let folder = generations::folder(&self.activator.pins, self.number());
        self.kept.holds(&generations::program_pin(&folder))
    }

    /// Writes to the state folder whatever is not written yet. Called periodically and at the end.
    pub(super) fn flush_state(&mut self) {
        let Activator { flow_safety, state_dir, .. } = &mut self.activator;
        flow_safety.flush(state_dir);
        state_dir.retry();
    }

    /// Attaches to configured interfaces that have appeared or were detached.
    pub(super) fn keep_attached(&mut self) {
        let Activator { config, pins, .. } = &self.activator;
        for interface in &config.interfaces {
            if xdp_link::interface_index(interface).is_err()
                && self.logged_interfaces.insert(interface.clone())
            {
                warn!(%interface, "the interface is gone; the program is attached when it comes back");
            }
        }
        let missing = match generations::unattached(&config.interfaces, pins) {
            Ok(missing) => missing,
            Err(error) => return warn!(%error, "cannot read which interfaces are attached"),
        };
        if missing.is_empty() {
            return;
        }
        for interface in missing {
            // While a client traces, it sees this interface's packets too.
            let program = match self.trace.as_mut().and_then(ActiveTrace::program) {
                Some(tracing) => tracing.program(),
                None => self.current.generation.program(),
            };
            let attached = program.map_err(Error::from).and_then(|program| {
                let pin = generations::link_pin(pins, &interface);
                Ok(xdp_link::attach(program, &interface, &pin, config.mode)?)
            });
            match attached {
                Ok(_) => {
                    self.logged_interfaces.remove(&interface);
                    info!(%interface, generation = self.current.number(), "attached to the interface");
                }
                Err(error) => {
                    if self.logged_interfaces.insert(format!("{interface}: {error}")) {
                        error!(%interface, "cannot attach to the interface:\n{error}");
                    }
                }
            }
        }
        self.hold_pins();
    }
}
