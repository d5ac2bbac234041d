//! The control socket's requests ([`glb_host::control`]), and queries for the HTTP server. The
//! daemon's event loop owns the state, so every request becomes a [`Query`] to it.

use std::{io, sync::mpsc::SyncSender};

use glb_host::control::{
    self, Access, Call, ControlConfig, Refusal, RefusalKind, Server, Socket, SocketError,
    UnknownGroup,
};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::{Sender, error::TrySendError};

use crate::status::Snapshot;

/// How many queries may wait for the event loop.
pub const QUEUE_LENGTH: usize = 16;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Asks for the state of all checks; the reply is a [`Snapshot`].
    Status,
    /// Reads the input table and the certificates again; the reply is a [`ReloadReport`].
    Reload,
}

/// The result of a successful [`Command::Reload`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadReport {
    /// Targets of the input that is now loaded.
    pub targets: usize,
    /// How many of them are new. The input comes into force when each has a first result.
    pub new: usize,
}

impl control::Command for Command {
    fn changes(&self) -> bool {
        match self {
            Self::Status => false,
            Self::Reload => true,
        }
    }
}

/// A query to the daemon's event loop.
#[derive(Debug)]
pub enum Query {
    /// A request of the control socket.
    Call(Call<Command>),
    /// A thread that waits for a snapshot.
    Snapshot(SyncSender<Snapshot>),
}

/// Why the control socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ControlSocketError {
    /// The socket cannot be created.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The operators' group does not exist.
    #[error("`control.operators`: {0}")]
    Operators(UnknownGroup),
    /// The thread cannot be started.
    #[error("cannot start the control socket's thread: {0}")]
    Thread(io::Error),
}

/// A control socket that is not served yet.
#[derive(Debug)]
pub struct BoundSocket {
    socket: Socket,
    access: Access,
}

/// Creates the control socket.
///
/// # Errors
/// Another daemon uses the socket, or it cannot be created.
pub fn bind(config: &ControlConfig) -> Result<BoundSocket, ControlSocketError> {
    let access = Access::new(config.operators.as_deref()).map_err(ControlSocketError::Operators)?;
    Ok(BoundSocket { socket: Socket::open(&config.place)?, access })
}

impl BoundSocket {
    /// Serves the socket in a thread until the returned server is dropped.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn serve(self, queries: Sender<Query>) -> Result<Server, ControlSocketError> {
        let handler = move |call: Call<Command>| {
            if let Err(TrySendError::Full(Query::Call(call))) = queries.try_send(Query::Call(call))
            {
                let text = "the daemon is busy with earlier requests: try again in a second";
                call.answer.done(Err::<(), _>(Refusal::new(RefusalKind::Busy, text)));
            }
        };
        control::serve(self.socket, self.access, handler).map_err(ControlSocketError::Thread)
    }
}
