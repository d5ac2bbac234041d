//! The control channel of a daemon: requests and answers in JSON over a unix socket.
//!
//! One connection carries one request, a line of JSON of at most [`MAX_REQUEST`] bytes:
//!
//! ```json
//! {"version":1,"request":"status"}
//! ```
//!
//! The daemon answers with lines: any number of `item`s (of requests that follow something), then
//! one `done` or one `error`, and closes the connection:
//!
//! ```json
//! {"version":1,"item":{}}
//! {"version":1,"done":{}}
//! {"version":1,"error":{"kind":"not_permitted","message":"…"}}
//! ```
//!
//! The server has a thread of its own: it neither waits for the daemon's loop nor holds it up, and
//! each client has a time in which to ask and to read. Who may connect is the socket's mode and
//! group; who may ask for a change is known by the kernel's word on the peer (`SO_PEERCRED`).

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

/// Longest request, in bytes.
pub const MAX_REQUEST: usize = 64 * 1024;

/// Why a request was not granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// For programs.
    pub kind: RefusalKind,
    /// For people.
    pub message: String,
}

/// What kind of refusal it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalKind {
    /// The request is not one that this daemon knows, or is no JSON.
    Malformed,
    /// The request is of another version of the protocol.
    Version,
    /// The peer may not ask for this.
    NotPermitted,
    /// Too many ask at once.
    Busy,
    /// The daemon ended before it answered.
    Ended,
    /// What was asked for was tried and did not work.
    Failed,
    /// The change could break traffic, and the request did not insist on it.
    Unsafe,
    /// The daemon waited as long as it may, in vain.
    TimedOut,
    /// A kind that a newer daemon knows.
    #[serde(other)]
    Other,
}

impl Refusal {
    /// A refusal of this kind.
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// What was asked for was tried and did not work.
    pub fn failed(message: impl std::fmt::Display) -> Self {
        Self::new(RefusalKind::Failed, message.to_string())
    }
}

/// A line of an answer.
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
        // Of values that are JSON already it cannot fail.
        let mut bytes = serde_json::to_vec(&line).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }
}
