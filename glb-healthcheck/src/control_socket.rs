//! Asking the running checker: over its control channel ([`glb_host::control`]), and for metrics and
//! status over HTTP. The daemon's loop alone knows the state, so every question goes to it.

use std::{io, sync::mpsc::SyncSender};

use glb_host::control::{
    self, Access, Call, ControlConfig, Refusal, RefusalKind, Server, Socket, SocketError,
    UnknownGroup,
};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::{Sender, error::TrySendError};

use crate::status::Snapshot;

/// How many questions may wait for the daemon's loop.
pub const WAITING: usize = 16;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// All that is known; answered with [`Snapshot`].
    Status,
}

impl control::Command for Command {
    fn changes(&self) -> bool {
        match self {
            Self::Status => false,
        }
    }
}

/// A question to the daemon's loop.
#[derive(Debug)]
pub enum Question {
    /// Of the control channel.
    Call(Call<Command>),
    /// Of a thread that waits for all that is known.
    Snapshot(SyncSender<Snapshot>),
}

/// Why the control channel cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The operators' group.
    #[error("`control.operators`: {0}")]
    Operators(UnknownGroup),
    /// The thread.
    #[error("cannot start the thread of the control channel: {0}")]
    Thread(io::Error),
}

/// Opens the control channel; it is in service until the server is dropped.
///
/// # Errors
/// When another daemon has the socket, or it cannot be made.
pub fn open(config: &ControlConfig, questions: Sender<Question>) -> Result<Server, ChannelError> {
    let access = Access::new(config.operators.as_deref()).map_err(ChannelError::Operators)?;
    let socket = Socket::open(&config.place)?;
    let handler = move |call: Call<Command>| {
        if let Err(TrySendError::Full(Question::Call(call))) =
            questions.try_send(Question::Call(call))
        {
            let text = "the daemon has not come to earlier requests yet; ask again in a moment";
            call.answer.done(Err::<(), _>(Refusal::new(RefusalKind::Busy, text)));
        }
    };
    control::serve(socket, access, handler).map_err(ChannelError::Thread)
}
