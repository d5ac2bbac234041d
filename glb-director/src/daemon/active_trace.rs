//! The trace that a client has begun.

use glb_common::trace::TraceSettings;
use glb_host::packet_trace::trace::Session;

use crate::generation::TraceProgram;

/// A client that traces, and the program that reports to it.
pub(super) struct ActiveTrace {
    pub(super) session: Session,
    pub(super) settings: TraceSettings,
    /// `None` while tracing is paused.
    pub(super) program: Option<TraceProgram>,
}

impl ActiveTrace {
    /// The attached tracing program, unless tracing is paused.
    pub(super) fn program(&mut self) -> Option<&mut TraceProgram> {
        self.program.as_mut()
    }
}
