//! The control channel of a daemon: requests and answers in JSON over a unix socket.
//!
//! One connection carries one request, a line of JSON of at most [`MAX_REQUEST`] bytes:
//!
//! ```json
//! {"version":1,"request":"status"}
//! ```
//!
//! The daemon answers with lines: any number of `item`s (for requests that follow something), then
//! one `done` or one `error`, and closes the connection:
//!
//! ```json
//! {"version":1,"item":{}}
//! {"version":1,"done":{}}
//! {"version":1,"error":{"kind":"not_permitted","message":"…"}}
//! ```
//!
//! The server runs in its own thread, so that it neither waits for the daemon's loop nor delays it.
//! Each client has a deadline for its request and for reading the answer. The socket's mode and
//! group decide who may connect; `SO_PEERCRED` tells who may request changes.

mod access;
mod client;
mod config;
mod server;
mod socket;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::{
    access::{Access, Peer, UnknownGroup},
    client::{Client, ClientError, Responses},
    config::{ControlConfig, RawControlConfig},
    server::{Call, Command, Responder, Server, serve},
    socket::{Socket, SocketError, SocketSettings},
};

/// The protocol's version. It grows when an old client would misread an answer, not when requests
/// or fields are added.
pub const VERSION: u32 = 1;

/// The longest accepted request, in bytes.
pub const MAX_REQUEST: usize = 64 * 1024;

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The machine-readable reason.
    pub kind: RefusalKind,
    /// The message for people.
    pub message: String,
}

/// The kind of a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalKind {
    /// The request is not JSON, or the daemon does not know it.
    Malformed,
    /// The request has another protocol version.
    Version,
    /// The peer may not request this.
    NotPermitted,
    /// Too many clients are connected, or another client uses the same function.
    Busy,
    /// The daemon ended before it answered.
    Ended,
    /// The daemon tried and failed.
    Failed,
    /// The change could break traffic, and the request does not force it.
    Unsafe,
    /// The daemon's own time limit ran out.
    TimedOut,
    /// A kind that only a newer daemon knows.
    #[serde(other)]
    Other,
}

impl Refusal {
    /// Creates a refusal of this kind.
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// Creates a refusal of kind [`RefusalKind::Failed`].
    pub fn failed(message: impl std::fmt::Display) -> Self {
        Self::new(RefusalKind::Failed, message.to_string())
    }
}

/// One line of an answer.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    version: u32,
    #[serde(flatten)]
    message: Message,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Message {
    Item(Value),
    Done(Value),
    Error(Refusal),
}

impl Message {
    fn line(self) -> Vec<u8> {
        let line = Line { version: VERSION, message: self };
        // Serializing JSON values cannot fail.
        let mut bytes = serde_json::to_vec(&line).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }
}
