//! Tracing of decisions: while a client traces, the tracing program stands in for the active
//! generation's ordinary one.

use glb_common::trace::TraceSettings;
use glb_host::{
    control::{Call, Refusal},
    generations,
    packet_trace::trace::{Session, TraceEnd, TraceSource},
};
use tracing::{error, info};

use super::{Error, active_trace::ActiveTrace, state::Director};
use crate::{
    config::Config,
    control::Command,
    counters::CounterSlots as _,
    generation::{TraceProgram, remove_trace_program},
    replay::REASONS,
};

impl Director {
    /// Starts tracing for a client, or tells the client why that is not possible.
    pub(super) fn start_trace(&mut self, call: Call<Command>) {
        let Command::Trace { options } = call.command.clone() else { return };
        if self.trace.as_ref().is_some_and(|trace| trace.session.is_gone()) {
            self.stop_trace(TraceEnd::Disconnected);
        }
        let running = self.trace.as_ref().map(|trace| &trace.session);
        let Some(session) = Session::open(call, options, running) else { return };
        let settings = match self.trace_settings(&session) {
            Ok(settings) => settings,
            Err(refusal) => return session.end(Err(refusal)),
        };
        self.trace = Some(ActiveTrace { session, settings, program: None });
        self.resume_trace();
    }

    /// What the program must report for this client.
    fn trace_settings(&self, session: &Session) -> Result<TraceSettings, Refusal> {
        let slot = match &session.request.filter.table {
            None => None,
            Some(name) => {
                let names = self.current.tables.tables.iter().map(|table| table.name.as_str());
                let names: Vec<&str> = names.collect();
                if !names.contains(&name.as_str()) {
                    let known = names.join(", ");
                    let text =
                        format!("cannot trace table {name:?}: the active tables are {known}");
                    return Err(Refusal::failed(text));
                }
                Some(self.activator.counter_slots.table(name))
            }
        };
        session.request.settings(&REASONS, slot)
    }

    /// Attaches the tracing program for the active generation, if a client traces. If that fails, the
    /// client is told.
    pub(super) fn resume_trace(&mut self) {
        let Some(trace) = &mut self.trace else { return };
        if trace.program.is_some() {
            return;
        }
        let pins = &self.activator.pins;
        let attached = TraceProgram::load(&self.current.generation, pins, &trace.settings)
            .map_err(Error::from)
            .and_then(|mut program| {
                let Config { interfaces, mode, .. } = &self.activator.config;
                generations::swap(program.program()?, interfaces, pins, *mode)?;
                Ok(program)
            });
        match attached {
            Ok(program) => {
                let generation = self.current.number();
                info!(pid = trace.session.pid(), generation, "trace started");
                let folder = program.folder().to_owned();
                trace.session.show(&TraceSource { generation, folder });
                trace.program = Some(program);
            }
            Err(error) => {
                error!("cannot attach the tracing program; the ordinary one stays:\n{error}");
                remove_trace_program(pins);
                if let Some(trace) = self.trace.take() {
                    trace.session.end(Err(Refusal::failed(error)));
                }
            }
        }
    }

    /// Attaches the ordinary program again, until [`Self::resume_trace`].
    pub(super) fn pause_trace(&mut self) {
        let program = self.trace.as_mut().and_then(|trace| trace.program.take());
        if program.is_some() {
            self.attach_ordinary_program();
        }
    }

    /// Attaches the active generation's ordinary program in the place of a tracing one.
    pub(super) fn attach_ordinary_program(&mut self) {
        match self.activator.attach(&mut self.current.generation) {
            Ok(()) => remove_trace_program(&self.activator.pins),
            // The tracing program forwards as well, and the next generation replaces it.
            Err(error) => error!("cannot detach the tracing program; it goes on:\n{error}"),
        }
    }

    /// Ends tracing.
    pub(super) fn stop_trace(&mut self, why: TraceEnd) {
        self.pause_trace();
        if let Some(trace) = self.trace.take() {
            info!(generation = self.number(), ?why, "trace ended");
            trace.session.end(Ok(why));
        }
    }
}
