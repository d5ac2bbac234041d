//! Why the daemon does not start, or a table is not taken.

use std::io;

use glb_host::{
    bpffs::PinFolderError, generations::SwapError, load::LoadError, metrics::MetricsError,
    next_hop::OpenError, xdp_link::AttachError,
};

use crate::{
    control::ControlError, counters::CountersError, generation::self_test::SelfTestError,
    image::ImageError,
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
    /// Swapping.
    #[error(transparent)]
    Swap(#[from] SwapError),
    /// Netlink.
    #[error(transparent)]
    NextHops(#[from] OpenError),
    /// Metrics.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The control channel.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Signals.
    #[error("cannot listen for signals: {0}")]
    Signals(io::Error),
}
