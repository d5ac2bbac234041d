//! What the director can be asked over its control channel. The protocol itself is
//! [`glb_host::control`].

mod status;

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
    daemon_status::State,
    fleet::Member,
    views::Observer,
};

pub use status::{Problem, Status};

/// How many requests may wait for the daemon's loop.
const WAITING: usize = 16;

/// A request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// How the daemon is; answered with [`Status`], also while a reload runs.
    Status,
    /// What a fleet has to agree about; answered with [`Member`].
    Member,
    /// Packets and bytes since the counters were made; answered with [`Report`].
    Counters,
    /// The tables in force; answered with a list of [`TableView`](crate::views::TableView).
    Tables,
    /// Their backends; a list of [`BackendView`](crate::views::BackendView).
    Backends,
    /// Their binds; a list of [`BindView`](crate::views::BindView).
    Binds,
    /// What is pinned; a list of [`GenerationView`](crate::views::GenerationView).
    Generations,
    /// Bring the table file into force, and say how that went: [`Done`](crate::daemon::Done).
    Reload {
        /// Even if nothing has changed, the change can break flows and the configuration forbids
        /// that, or what it ends to serve cannot be withdrawn first.
        #[serde(default)]
        force: bool,
    },
    /// Bring the previous generation back into force; [`Done`](crate::daemon::Done).
    Rollback {
        /// Even if what it ends to serve cannot be withdrawn first.
        #[serde(default)]
        force: bool,
    },
    /// These backends are known to hold no flows any more; answered with a text.
    Drained {
        /// Who.
        backends: Vec<IpAddr>,
    },
    /// Make routers want this director less, wait until VIP packets have ceased, and withdraw;
    /// answered with [`DrainView`](crate::announce::DrainView) again and again, and at its end.
    Drain {
        /// How long packets may take to cease, at each stage, in seconds; the configuration says it
        /// if it is left out.
        #[serde(default)]
        timeout_seconds: Option<f64>,
        /// Whether it goes on when they have not.
        #[serde(default)]
        force: bool,
    },
    /// End a drain, and what it led to; answered with whether there was one.
    Undrain,
    /// Show decisions until the connection is closed or the time is up; answered with
    /// [`trace::TraceSource`] each time that they are shown in another place, and at last with
    /// [`trace::TraceEnd`].
    Trace {
        /// Which, and how many.
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
            | Self::Drained { .. }
            | Self::Drain { .. }
            | Self::Undrain
            | Self::Trace { .. } => true,
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
    /// Privileges.
    #[error(transparent)]
    Privilege(#[from] PrivilegeError),
    /// The thread.
    #[error("cannot start the thread of the control channel: {0}")]
    Thread(io::Error),
}

/// The control channel in service, and what only the daemon's loop can answer.
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
pub fn open(
    config: &Config,
    state: &Arc<State>,
    pins: &PinFolder,
) -> Result<Channel, ControlError> {
    let observer = Observer::new(state, pins, &config.interfaces);
    let config = &config.control;
    let access = Access::new(config.operators.as_deref()).map_err(ControlError::Operators)?;
    let socket = Socket::open(&config.place)?;
    // The socket's group and the port of the metrics were the last things that needed more.
    privilege::drop_start_capabilities()?;
    let (to_loop, calls) = mpsc::channel(WAITING);
    let handler = move |call: Call<Command>| match call.command {
        Command::Status => call.answer.done(Ok(Status::of(&observer))),
        Command::Member => call.answer.done(Ok(Member::of(&observer))),
        Command::Counters => call.answer.done(observer.counters().map_err(Refusal::failed)),
        Command::Tables => call.answer.done(counted(&observer, Observer::tables)),
        Command::Backends => call.answer.done(counted(&observer, Observer::backends)),
        Command::Binds => call.answer.done(Ok(observer.binds())),
        Command::Generations => call.answer.done(Ok(observer.generations())),
        Command::Reload { .. }
        | Command::Rollback { .. }
        | Command::Drained { .. }
        | Command::Drain { .. }
        | Command::Undrain
        | Command::Trace { .. } => {
            if let Err(mpsc::error::TrySendError::Full(call)) = to_loop.try_send(call) {
                let text = "the daemon has not come to earlier requests yet; ask again in a moment";
                call.answer.done(Err::<(), _>(Refusal::new(RefusalKind::Busy, text)));
            }
        }
    };
    let server = control::serve(socket, access, handler).map_err(ControlError::Thread)?;
    Ok(Channel { calls, _server: server })
}

/// What is shown together with what was counted; before the first start there is nothing counted.
fn counted<T>(
    observer: &Observer,
    look: impl FnOnce(&Observer, &Report) -> T,
) -> Result<T, Refusal> {
    let report = match observer.counters() {
        Ok(report) => report,
        Err(CountersError::Missing { .. }) => Report::default(),
        Err(error) => return Err(Refusal::failed(error)),
    };
    Ok(look(observer, &report))
}
