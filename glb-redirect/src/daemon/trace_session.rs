//! `trace` and `capture`: the daemon swaps in the program build that reports its decisions, and the
//! plain build again when the session ends.

use glb_common::trace::TraceSettings;
use glb_host::{
    control::{Call, Refusal},
    generations,
    packet_trace::trace::{self, Session, TraceEnd, TraceSource},
};
use tracing::{error, info, warn};

use super::{Backend, Error, build::build};
use crate::{control::Command, replay::REASONS};

impl Backend {
    /// Starts a trace session, or tells the client why it cannot.
    pub(super) async fn start_trace(&mut self, call: Call<Command>, request: trace::Request) {
        if request.filter.table.is_some() {
            let text = "a backend has no tables: leave out `table NAME`";
            return call.answer.done(Err::<(), _>(Refusal::failed(text)));
        }
        if self.trace.as_ref().is_some_and(|(session, _)| session.is_gone()) {
            self.stop_trace(TraceEnd::Disconnected).await;
        }
        let running = self.trace.as_ref().map(|(session, _)| session);
        let Some(session) = Session::open(call, request, running) else { return };
        let settings = match session.request.settings(&REASONS, None) {
            Ok(settings) => settings,
            Err(refusal) => return session.end(Err(refusal)),
        };
        match self.swap_program(Some(&settings)).await {
            Ok(()) => {
                info!(pid = session.pid(), generation = self.number, "trace started");
                session.show(&self.trace_source());
                self.trace = Some((session, settings));
            }
            Err(error) => {
                error!(%error, "cannot load the traced program: the plain one stays in force");
                session.end(Err(Refusal::failed(error)));
            }
        }
    }

    /// Ends the trace session, if there is one, and swaps the plain program back in.
    pub(super) async fn stop_trace(&mut self, reason: TraceEnd) {
        let Some((session, _)) = self.trace.take() else { return };
        match self.swap_program(None).await {
            Ok(()) => info!(generation = self.number, ?reason, "trace ended"),
            // The traced program forwards as well as the plain one, and the next generation replaces
            // it.
            Err(error) => error!(%error, "cannot load the plain program: the traced one stays"),
        }
        session.end(Ok(reason));
    }

    /// The generation that a trace client reads its events from.
    pub(super) fn trace_source(&self) -> TraceSource {
        let folder = generations::folder(&self.pins, self.number);
        TraceSource { generation: self.number, folder }
    }

    /// Replaces the generation in force by one with the same data and the other program build:
    /// traced if there are trace settings, plain otherwise.
    async fn swap_program(&mut self, settings: Option<&TraceSettings>) -> Result<(), Error> {
        self.restore_pins();
        let number = self.number + 1;
        let (config, host, data) = (&self.config, &self.host, &self.data);
        let (next_hops, pins) = (&self.next_hops, &self.pins);
        self.generation = build(config, host, data, next_hops, number, pins, settings).await?;
        self.number = number;
        self.notify_ready();
        if let Err(error) = self.remove_unused() {
            warn!(%error, "cannot remove an old generation");
        }
        self.hold_pins();
        Ok(())
    }
}
