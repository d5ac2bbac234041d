//! The requests that a director answers over its control socket. [`glb_host::control`] is the protocol.
//!
//! Requests that only read are answered by the socket's own thread from an [`Observer`]; all others go
//! to the daemon's loop through [`ControlChannel::calls`].

use std::{io, net::IpAddr, sync::Arc};

use glb_host::{
    bpffs::PinFolder,
    control::{
        self, Access, Call, Refusal, RefusalKind, Server, Socket, SocketError, UnknownGroup,
    },
    packet_trace::trace,
    privilege::{self, PrivilegeError},
};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::{
    config::Config,
    counters::{CountersError, Report},
    daemon_status::DaemonStatus,
    fleet::Member,
    status::Status,
    views::Observer,
};

/// The number of requests that may wait for the daemon's loop.
const QUEUE: usize = 16;

/// A request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// The daemon's [`Status`]. It is answered also while a reload runs.
    Status,
    /// The [`Member`] view: everything that the directors of a fleet must agree on.
    Member,
    /// All packet counters, as a [`Report`].
    Counters,
    /// The active tables: a list of [`TableView`](crate::views::TableView).
    Tables,
    /// The backends of the active tables: a list of [`BackendView`](crate::views::BackendView).
    Backends,
    /// The binds of the active tables: a list of [`BindView`](crate::views::BindView).
    Binds,
    /// The pinned generations: a list of [`GenerationView`](crate::views::GenerationView).
    Generations,
    /// Reads configuration and tables anew and activates them; answered with a
    /// [`ReloadOutcome`](crate::model::ReloadOutcome).
    Reload {
        /// Reload even if the file is unchanged, the change can break flows, or removed VIPs are still
        /// announced.
        #[serde(default)]
        force: bool,
    },
    /// Activates the previous generation again; answered with a
    /// [`ReloadOutcome`](crate::model::ReloadOutcome).
    Rollback {
        /// Roll back even if removed VIPs are still announced.
        #[serde(default)]
        force: bool,
    },
    /// Declares that backends hold no flows any more; answered with a text.
    MarkDrained {
        /// The backends' addresses.
        backends: Vec<IpAddr>,
    },
    /// Lowers this director's route preference, waits until its traffic stops, then withdraws. Answered
    /// with a [`DrainView`](crate::announce::DrainView) at each step.
    Drain {
        /// How long each stage waits for traffic to stop, in seconds; by default the configured time.
        #[serde(default)]
        timeout_seconds: Option<f64>,
        /// Go on even if traffic has not stopped in that time.
        #[serde(default)]
        force: bool,
    },
    /// Cancels a drain, or announces again after one; answered with whether there was a drain.
    Undrain,
    /// Traces decisions until the connection is closed or the time is over. Answered with
    /// [`trace::TraceSource`] whenever the place to read them changes, and with [`trace::TraceEnd`] at the end.
    Trace {
        /// Which decisions, and how many.
        options: trace::Request,
    },
}

impl control::Command for Command {
    fn changes(&self) -> bool {
        match self {
            Self::Status
            | Self::Member
            | Self::Counters
            | Self::Tables
            | Self::Backends
            | Self::Binds
            | Self::Generations => false,
            Self::Reload { .. }
            | Self::Rollback { .. }
            | Self::MarkDrained { .. }
            | Self::Drain { .. }
            | Self::Undrain
            | Self::Trace { .. } => true,
        }
    }
}

/// Why the control socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The socket cannot be made.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The group of the operators is unknown.
    #[error("the configuration's `control.operators`: {0}")]
    Operators(UnknownGroup),
    /// Privileges cannot be dropped.
    #[error(transparent)]
    Privilege(#[from] PrivilegeError),
    /// The thread cannot be started.
    #[error("cannot start the thread of the control socket: {0}")]
    Thread(io::Error),
}

/// The served control socket, with the requests for the daemon's loop.
#[derive(Debug)]
pub struct ControlChannel {
    /// Requests that only the daemon's loop can answer.
    pub calls: mpsc::Receiver<Call<Command>>,
    _server: Server,
}

/// Opens and serves the control socket.
///
/// # Errors
/// When another daemon has the socket, or it cannot be made.
pub fn open(
    config: &Config,
    status: &Arc<DaemonStatus>,
    pins: &PinFolder,
) -> Result<ControlChannel, ControlError> {
    let observer = Observer::new(status, pins, &config.interfaces);
    let config = &config.control;
    let access = Access::new(config.operators.as_deref()).map_err(ControlError::Operators)?;
    let socket = Socket::open(&config.place)?;
    // The socket's group and the port of the metrics were the last things that needed privileges.
    privilege::drop_start_capabilities()?;
    let (to_loop, calls) = mpsc::channel(QUEUE);
    let handler = move |call: Call<Command>| match call.command {
        Command::Status => call.answer.done(Ok(Status::of(&observer))),
        Command::Member => call.answer.done(Ok(Member::of(&observer))),
        Command::Counters => call.answer.done(observer.counters().map_err(Refusal::failed)),
        Command::Tables => call.answer.done(with_counters(&observer, Observer::tables)),
        Command::Backends => call.answer.done(with_counters(&observer, Observer::backends)),
        Command::Binds => call.answer.done(Ok(observer.binds())),
        Command::Generations => call.answer.done(Ok(observer.generations())),
        Command::Reload { .. }
        | Command::Rollback { .. }
        | Command::MarkDrained { .. }
        | Command::Drain { .. }
        | Command::Undrain
        | Command::Trace { .. } => {
            if let Err(mpsc::error::TrySendError::Full(call)) = to_loop.try_send(call) {
                let text = "the daemon is busy with earlier requests; try again in a moment";
                call.answer.done(Err::<(), _>(Refusal::new(RefusalKind::Busy, text)));
            }
        }
    };
    let server = control::serve(socket, access, handler).map_err(ControlError::Thread)?;
    Ok(ControlChannel { calls, _server: server })
}

/// Calls `view` with the counters, which are empty before the first start.
fn with_counters<T>(
    observer: &Observer,
    view: impl FnOnce(&Observer, &Report) -> T,
) -> Result<T, Refusal> {
    let report = match observer.counters() {
        Ok(report) => report,
        Err(CountersError::Missing { .. }) => Report::default(),
        Err(error) => return Err(Refusal::failed(error)),
    };
    Ok(view(observer, &report))
}
