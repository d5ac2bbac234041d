//! Somebody watches: the build that shows its decisions stands before the generation in force.

use glb_common::trace::TraceSettings;
use glb_host::{
    control::{Call, Refusal},
    generations,
    packet_trace::trace::{Session, TraceEnd, TraceSource},
};
use tracing::{error, info};

use super::{Error, state::Director};
use crate::{
    compiled_tables::CounterSlots as _,
    config::Config,
    control::Command,
    generation::{Lens, remove_lens},
    replay::REASONS,
};

/// Who watches, what he wants to see, and the program that shows it.
pub(super) struct Watcher {
    pub(super) session: Session,
    settings: TraceSettings,
    /// Nothing while another generation is being brought into force.
    lens: Option<Lens>,
}

impl Watcher {
    /// The program that stands before the generation in force now.
    pub(super) fn lens(&mut self) -> Option<&mut Lens> {
        self.lens.as_mut()
    }
}

impl Director<'_> {
    /// Has the program show its decisions, or tells who asked why not.
    pub(super) fn begin_to_show(&mut self, call: Call<Command>) {
        let Command::Trace { options } = call.command.clone() else { return };
        if self.watcher.as_ref().is_some_and(|watcher| watcher.session.is_gone()) {
            self.end_showing(TraceEnd::Disconnected);
        }
        let running = self.watcher.as_ref().map(|watcher| &watcher.session);
        let Some(session) = Session::open(call, options, running) else { return };
        let settings = match self.settings(&session) {
            Ok(settings) => settings,
            Err(refusal) => return session.end(Err(refusal)),
        };
        self.watcher = Some(Watcher { session, settings, lens: None });
        self.look_on();
    }

    fn settings(&self, session: &Session) -> Result<TraceSettings, Refusal> {
        let slot = match &session.request.filter.table {
            None => None,
            Some(name) => {
                let mut names = self.current.tables.tables.iter().map(|table| table.name.as_str());
                if !names.clone().any(|known| known == name) {
                    let known = names.by_ref().collect::<Vec<_>>().join(", ");
                    let text = format!("there is no table {name:?}; there are: {known}");
                    return Err(Refusal::failed(text));
                }
                Some(self.making.identities.table(name))
            }
        };
        session.request.settings(&REASONS, slot)
    }

    /// Puts the program that shows its decisions before the generation in force, if somebody watches
    /// and it is not there yet. If that cannot be done, he is told.
    pub(super) fn look_on(&mut self) {
        let Some(watcher) = &mut self.watcher else { return };
        if watcher.lens.is_some() {
            return;
        }
        let shown = Lens::load(&self.current.generation, &self.making.pins, &watcher.settings)
            .map_err(Error::from)
            .and_then(|mut lens| {
                let Config { interfaces, mode, .. } = self.making.config;
                generations::swap(lens.program()?, interfaces, &self.making.pins, *mode)?;
                Ok(lens)
            });
        match shown {
            Ok(lens) => {
                let generation = self.current.generation.number;
                info!(pid = watcher.session.pid(), generation, "decisions are shown");
                let folder = lens.folder().to_owned();
                watcher.session.show(&TraceSource { generation, folder });
                watcher.lens = Some(lens);
            }
            Err(error) => {
                error!("decisions cannot be shown, the plain program stays:\n{error}");
                remove_lens(&self.making.pins);
                if let Some(watcher) = self.watcher.take() {
                    watcher.session.end(Err(Refusal::failed(error)));
                }
            }
        }
    }

    /// Brings the plain program back for as long as something else is done.
    pub(super) fn look_away(&mut self) {
        let lens = self.watcher.as_mut().and_then(|watcher| watcher.lens.take());
        if lens.is_some() {
            self.plain_again();
        }
    }

    /// Puts the generation in force behind the interfaces, where a lens may stand before it.
    pub(super) fn plain_again(&mut self) {
        match self.making.attach(&mut self.current.generation) {
            Ok(()) => remove_lens(&self.making.pins),
            // It forwards as well as the plain one, and the next generation replaces it.
            Err(error) => error!("the program that shows its decisions stays:\n{error}"),
        }
    }

    /// Nobody watches any more.
    pub(super) fn end_showing(&mut self, why: TraceEnd) {
        self.look_away();
        if let Some(watcher) = self.watcher.take() {
            info!(generation = self.number(), ?why, "decisions are no longer shown");
            watcher.session.end(Ok(why));
        }
    }
}
