//! Why the daemon does not start, or a table is not taken.

use std::{io, net::IpAddr};

use glb_host::{
    bpf_loader::LoadError, bpffs::PinFolderError, generations::SwapError, metrics::MetricsError,
    next_hop::NetlinkError, xdp_link::AttachError,
};

use crate::{
    announce::WithdrawalUnconfirmed,
    compiled_tables::ImageError,
    control::ControlError,
    counters::CountersError,
    generation::{LensError, NotAdopted, self_test::SelfTestError},
};

/// Why the daemon does not start, or a table is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The table file is not in order.
    #[error("{}", .0.render(false).trim_end())]
    Table(glb_table::LoadError),
    /// The table cannot be carried.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Counters.
    #[error(transparent)]
    Counters(#[from] CountersError),
    /// Pin folder.
    #[error(transparent)]
    Pins(#[from] PinFolderError),
    /// Interfaces.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// Loading.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Self-test.
    #[error(transparent)]
    SelfTest(#[from] SelfTestError),
    /// The program that shows its decisions.
    #[error(transparent)]
    Lens(#[from] LensError),
    /// Swapping.
    #[error(transparent)]
    Swap(#[from] SwapError),
    /// Netlink.
    #[error(transparent)]
    NextHops(#[from] NetlinkError),
    /// Metrics.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The control channel.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A change that can break flows, and must not.
    #[error(
        "this change can break flows, and `on_unsafe = \"refuse\"`:\n{risk}\n  \
         Wait until the backends hold none of them any more (`glb-director drained BACKEND` says so, \
         `flow_age` bounds it), or make the change all the same: `glb-director reload --force`."
    )]
    Unsafe {
        /// What can be lost.
        risk: String,
    },
    /// What would not be served any more is not known to be withdrawn.
    #[error(transparent)]
    WithdrawalUnconfirmed(#[from] WithdrawalUnconfirmed),
    /// There is no way back.
    #[error(
        "there is no previous generation: it is kept from one change to the next, and this director \
         has not changed its table since it was started for the first time (or `state` was lost)"
    )]
    NoPrevious,
    /// A pinned generation is not this release's.
    #[error("generation {number} was made by another release or under another configuration")]
    OtherRelease {
        /// Its number.
        number: u64,
    },
    /// A pinned generation is not what it should be.
    #[error("a pinned generation cannot be taken over as it is: {0}")]
    NotAdopted(#[from] NotAdopted),
    /// A backend that nobody knows.
    #[error("no table has a backend {backend}, and none is remembered; the backends are {known}")]
    NoBackend {
        /// Who was named.
        backend: IpAddr,
        /// Who there is.
        known: String,
    },
    /// A test wanted it.
    #[error("{0}")]
    Fault(io::Error),
    /// The thread of the announcements.
    #[error("cannot start the thread of the announcements: {0}")]
    Announcer(io::Error),
    /// Statsd.
    #[error(transparent)]
    Statsd(#[from] crate::statsd::StatsdError),
    /// Signals.
    #[error("cannot listen for signals: {0}")]
    Signals(io::Error),
}
