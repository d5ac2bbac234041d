//! The requests that the daemon answers over its control socket. The protocol itself is
//! [`glb_host::control`].

use std::{io, sync::Arc};

use glb_host::{
    control::{
        self, Access, Call, ControlConfig, Refusal, RefusalKind, Server, Socket, SocketError,
        UnknownGroup,
    },
    packet_trace::trace,
    privilege::{self, PrivilegeError},
};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::{daemon_state::DaemonState, status::Status};

/// How many requests may wait for the daemon's event loop.
const QUEUE_LENGTH: usize = 16;

/// A request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// How the daemon is; answered with [`Status`].
    Status,
    /// Read the configuration and the table; answered with [`ReloadOutcome`].
    Reload,
    /// Report decisions until the connection is closed or the time is up; answered with
    /// [`trace::TraceSource`] each time that another generation reports them, and at last with
    /// [`trace::TraceEnd`].
    Trace {
        /// Which decisions, and how many.
        options: trace::Request,
    },
}

impl control::Command for Command {
    fn changes(&self) -> bool {
        match self {
            Self::Status => false,
            Self::Reload | Self::Trace { .. } => true,
        }
    }
}

/// What a reload did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReloadOutcome {
    /// The generation in force.
    pub generation: u64,
    /// Whether it is a new one: without a change in the files, the running one stays.
    pub changed: bool,
    /// How long the reload took.
    pub milliseconds: f64,
}

/// Why the control socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The socket cannot be made.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The operators' group does not exist.
    #[error("`control.operators`: {0}")]
    Operators(UnknownGroup),
    /// Capabilities that are no longer needed cannot be dropped.
    #[error(transparent)]
    Privileges(#[from] PrivilegeError),
    /// The server's thread cannot be started.
    #[error("cannot start the thread of the control socket: {0}")]
    Thread(io::Error),
}

/// Serves the control socket on a thread of its own, which answers `status` from `state`. Other
/// requests go to the daemon's event loop by the returned channel. Dropping the server closes the
/// socket.
///
/// # Errors
/// When another daemon serves the socket, or it cannot be made.
pub fn open(
    config: &ControlConfig,
    state: &Arc<DaemonState>,
) -> Result<(Server, mpsc::Receiver<Call<Command>>), ControlError> {
    let access = Access::new(config.operators.as_deref()).map_err(ControlError::Operators)?;
    let socket = Socket::open(&config.place)?;
    // The socket's group and the metrics port were the last things that needed more capabilities.
    privilege::drop_start_capabilities()?;
    let (to_loop, calls) = mpsc::channel(QUEUE_LENGTH);
    let state = Arc::clone(state);
    let handler = move |call: Call<Command>| {
        if call.command == Command::Status {
            return call.answer.done(Ok(Status::of(&state)));
        }
        if let Err(mpsc::error::TrySendError::Full(call)) = to_loop.try_send(call) {
            let text = format!(
                "the daemon is busy: {QUEUE_LENGTH} requests wait already. Try again in a moment."
            );
            call.answer.done(Err::<(), _>(Refusal::new(RefusalKind::Busy, text)));
        }
    };
    let server = control::serve(socket, access, handler).map_err(ControlError::Thread)?;
    Ok((server, calls))
}
