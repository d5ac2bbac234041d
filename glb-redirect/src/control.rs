//! What the backend's daemon can be asked over its control channel. The protocol itself is
//! [`glb_host::control`].

use std::io;

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

/// How many requests may wait for the daemon's loop.
const WAITING: usize = 16;

/// A request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Show decisions until the connection is closed or the time is up; answered with
    /// [`trace::TraceSource`] each time that another generation shows them, and at last with
    /// [`trace::TraceEnd`].
    Trace {
        /// Which, and how many.
        options: trace::Request,
    },
}

impl control::Command for Command {
    fn changes(&self) -> bool {
        match self {
            Self::Trace { .. } => true,
        }
    }
}

/// Why the control channel cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The operators' group.
    #[error("`control.operators`: {0}")]
    Operators(UnknownGroup),
    /// Rights that are not needed any more.
    #[error(transparent)]
    Privileges(#[from] PrivilegeError),
    /// The thread.
    #[error("cannot start the thread of the control channel: {0}")]
    Thread(io::Error),
}

/// The control channel in service.
#[derive(Debug)]
pub struct Channel {
    /// Requests for the daemon's loop.
    pub calls: mpsc::Receiver<Call<Command>>,
    _server: Server,
}

/// Opens the control channel.
///
/// # Errors
/// When another daemon has the socket, or it cannot be made.
pub fn open(config: &ControlConfig) -> Result<Channel, ControlError> {
    let access = Access::new(config.operators.as_deref()).map_err(ControlError::Operators)?;
    let socket = Socket::open(&config.place)?;
    // The socket's group and the port of the metrics were the last things that needed more.
    privilege::drop_start_capabilities()?;
    let (to_loop, calls) = mpsc::channel(WAITING);
    let handler = move |call: Call<Command>| {
        if let Err(mpsc::error::TrySendError::Full(call)) = to_loop.try_send(call) {
            let text = "the daemon has not come to earlier requests yet; ask again in a moment";
            call.answer.done(Err::<(), _>(Refusal::new(RefusalKind::Busy, text)));
        }
    };
    let server = control::serve(socket, access, handler).map_err(ControlError::Thread)?;
    Ok(Channel { calls, _server: server })
}
