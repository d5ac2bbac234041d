//! The client side of the control channel.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};

use super::{Line, Message, Refusal, RefusalKind, VERSION};

/// How long a daemon may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest accepted response line, in bytes.
const MAX_LINE: u64 = 256 << 20;

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No process listens on the socket.
    #[error(
        "no daemon answers at {}: {source}.\n  \
         Start it, or name its socket (`control.socket` in its configuration).",
        path.display()
    )]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The socket's permissions forbid the connection.
    #[error(
        "not permitted to connect to {}: {source}.\n  \
         Run this as the daemon's user, as root, or as a member of the socket's group \
         (`control.group`).",
        path.display()
    )]
    NotPermitted {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The daemon does not answer in time.
    #[error("the daemon at {} does not answer: {source}", path.display())]
    NoResponse {
        /// The socket.
        path: PathBuf,
        /// The failed system call.
        source: io::Error,
    },
    /// The daemon ended before it answered.
    #[error("the daemon at {} ended before it answered", path.display())]
    Ended {
        /// The socket.
        path: PathBuf,
    },
    /// The daemon's answer is not valid.
    #[error("the daemon at {} sent an invalid answer: {what}", path.display())]
    InvalidResponse {
        /// The socket.
        path: PathBuf,
        /// The fault of the answer.
        what: String,
    },
    /// The daemon refused the request.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl ClientError {
    /// Returns whether no daemon is running, as opposed to one that refuses.
    #[must_use]
    pub fn is_not_running(&self) -> bool {
        match self {
            Self::NotRunning { .. } | Self::Ended { .. } => true,
            Self::Refused(refusal) => refusal.kind == RefusalKind::Ended,
            _ => false,
        }
    }
}

/// A connection to a daemon.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    path: PathBuf,
}

impl Client {
    /// Connects to the daemon whose socket is at `path`.
    ///
    /// # Errors
    /// When no daemon listens there, or the socket may not be used.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let connect = || -> io::Result<UnixStream> {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            // A daemon that hangs does not accept; this bounds the wait.
            socket.set_write_timeout(Some(CONNECT_TIMEOUT))?;
            socket.connect(&SockAddr::unix(path)?)?;
            Ok(UnixStream::from(socket))
        };
        let path = path.to_owned();
        match connect() {
            Ok(stream) => Ok(Self { stream: BufReader::new(stream), path }),
            Err(source) => Err(match source.kind() {
                io::ErrorKind::PermissionDenied => ClientError::NotPermitted { path, source },
                io::ErrorKind::WouldBlock => ClientError::NoResponse { path, source },
                _ => ClientError::NotRunning { path, source },
            }),
        }
    }

    /// Sends a request with one answer and waits at most `patience` for it.
    ///
    /// # Errors
    /// When the daemon refuses or does not answer.
    pub fn ask<T: DeserializeOwned>(
        self,
        command: &impl Serialize,
        patience: Duration,
    ) -> Result<T, ClientError> {
        let path = self.path.clone();
        let mut answers = self.follow(command, Some(patience))?;
        loop {
            match answers.next_message()? {
                Message::Item(_) => {}
                Message::Error(refusal) => return Err(refusal.into()),
                Message::Done(value) => {
                    let odd = |error: serde_json::Error| error.to_string();
                    return serde_json::from_value(value)
                        .map_err(|error| ClientError::InvalidResponse { path, what: odd(error) });
                }
            }
        }
    }

    /// Sends a request with many answers. `None` waits for each without a limit.
    ///
    /// # Errors
    /// When the request cannot be sent.
    pub fn follow(
        mut self,
        command: &impl Serialize,
        patience: Option<Duration>,
    ) -> Result<Responses, ClientError> {
        let mut request = match serde_json::to_value(command) {
            Ok(Value::Object(request)) => request,
            other => {
                let what = format!("the request is not a JSON object: {other:?}");
                return Err(ClientError::InvalidResponse { path: self.path, what });
            }
        };
        request.insert("version".into(), VERSION.into());
        let mut line = Value::Object(request).to_string();
        line.push('\n');
        let stream = self.stream.get_mut();
        let sent =
            stream.set_read_timeout(patience).and_then(|()| stream.write_all(line.as_bytes()));
        match sent {
            // The daemon may have sent its reason before it closed the connection.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Responses(self)),
            Err(source) => Err(ClientError::NoResponse { path: self.path, source }),
            Ok(()) => Ok(Responses(self)),
        }
    }
}

/// The stream of answers to one request.
#[derive(Debug)]
pub struct Responses(Client);

impl Responses {
    /// Returns the next item, or `None` after the last.
    ///
    /// # Errors
    /// When the daemon refuses or does not answer.
    #[expect(clippy::should_implement_trait, reason = "of an error there is no next one")]
    pub fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ClientError> {
        match self.next_message()? {
            Message::Item(value) => serde_json::from_value(value).map(Some).map_err(|error| {
                ClientError::InvalidResponse { path: self.0.path.clone(), what: error.to_string() }
            }),
            Message::Done(_) => Ok(None),
            Message::Error(refusal) => Err(refusal.into()),
        }
    }

    fn next_message(&mut self) -> Result<Message, ClientError> {
        let Client { stream, path } = &mut self.0;
        let mut line = Vec::new();
        match stream.take(MAX_LINE).read_until(b'\n', &mut line) {
            Ok(0) => return Err(ClientError::Ended { path: path.clone() }),
            Ok(_) => {}
            Err(source) if source.kind() == io::ErrorKind::ConnectionReset => {
                return Err(ClientError::Ended { path: path.clone() });
            }
            Err(source) => return Err(ClientError::NoResponse { path: path.clone(), source }),
        }
        let line: Line = serde_json::from_slice(&line).map_err(|error| {
            ClientError::InvalidResponse { path: path.clone(), what: error.to_string() }
        })?;
        if line.version != VERSION {
            let what = format!(
                "it uses version {} of the control protocol, and this command version {VERSION}; \
                 use the command of the daemon's release",
                line.version
            );
            return Err(ClientError::InvalidResponse { path: path.clone(), what });
        }
        Ok(line.message)
    }
}
