//! Why the daemon does not start, or does not make a change.

use std::{io, net::IpAddr};

use glb_host::{
    bpf_loader::LoadError, bpffs::PinFolderError, generations::SwapError, metrics::MetricsError,
    next_hop::NetlinkError, xdp_link::AttachError,
};

use crate::{
    announce::WithdrawalUnconfirmed,
    compiled_tables::CompileError,
    config::ConfigError,
    control::ControlError,
    counters::CountersError,
    generation::{AdoptError, TraceProgramError, self_test::SelfTestError},
};

/// Why the daemon does not start, or does not make a change.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The table cannot be read or is not valid.
    #[error("{}", .0.render(false).trim_end())]
    Table(glb_table::LoadError),
    /// The tables cannot be compiled.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The pinned counters cannot be used.
    #[error(transparent)]
    Counters(#[from] CountersError),
    /// The pin folder cannot be used.
    #[error(transparent)]
    Pins(#[from] PinFolderError),
    /// The program cannot be attached to an interface.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The kernel refused a program or a map.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A generation failed its self-test.
    #[error(transparent)]
    SelfTest(#[from] SelfTestError),
    /// The tracing program cannot be used.
    #[error(transparent)]
    TraceProgram(#[from] TraceProgramError),
    /// The program cannot be swapped on an interface.
    #[error(transparent)]
    Swap(#[from] SwapError),
    /// Next hops cannot be followed.
    #[error(transparent)]
    NextHops(#[from] NetlinkError),
    /// Metrics cannot be served.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The control socket cannot be opened.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The change can break flows, and the configuration refuses that.
    #[error(
        "this change can break flows, and the configuration refuses that (`on_unsafe = \"refuse\"`):\n\
         {risk}\n  Wait until the backends hold none of these flows (at most `flow_age`), tell the \
         director that they do (`glb-director mark-drained BACKEND`), or apply the change anyway: \
         `glb-director reload --force`."
    )]
    Unsafe {
        /// The flows that it can break.
        risk: String,
    },
    /// VIPs that the new tables do not serve may still be announced.
    #[error(transparent)]
    WithdrawalUnconfirmed(#[from] WithdrawalUnconfirmed),
    /// There is no generation to roll back to.
    #[error(
        "cannot roll back: there is no previous generation. The director keeps one from its first \
         change of the table on; it is also gone if the state folder was lost."
    )]
    NoPrevious,
    /// A pinned generation is of another release or configuration.
    #[error("generation {number} was made by another release or under another configuration")]
    OtherRelease {
        /// Its number.
        number: u64,
    },
    /// A pinned generation cannot be adopted.
    #[error(transparent)]
    CannotAdopt(#[from] AdoptError),
    /// A request names an unknown backend.
    #[error(
        "no table has a backend {backend}, and the flow history does not have it either; the backends \
         are {known}"
    )]
    UnknownBackend {
        /// The named address.
        backend: IpAddr,
        /// The addresses of all backends.
        known: String,
    },
    /// A failpoint of a test.
    #[error("{0}")]
    Failpoint(io::Error),
    /// The configuration file is not valid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The configuration file changes a key that cannot change while the daemon runs.
    #[error("changing `{key}` needs a restart of the daemon; the running configuration stays")]
    NeedsRestart {
        /// The key.
        key: &'static str,
    },
    /// The announcer's thread cannot be started.
    #[error("cannot start the announcer's thread: {0}")]
    Announcer(io::Error),
    /// Metrics cannot be sent to statsd.
    #[error(transparent)]
    Statsd(#[from] crate::statsd::StatsdError),
    /// The prober's thread cannot be started.
    #[error("cannot start the prober's thread: {0}")]
    Prober(io::Error),
    /// Signal handlers cannot be installed.
    #[error("cannot install signal handlers: {0}")]
    Signals(io::Error),
}
