//! Why the daemon does not start, or refuses a configuration.

use std::io;

use glb_host::{
    bpf_loader::LoadError, bpffs::PinFolderError, generations::SwapError, metrics::MetricsError,
    next_hop::NetlinkError, xdp_link::AttachError,
};

use crate::{
    config::ConfigError, control::ControlError, counters::CountersError,
    host_state::HostStateError, self_test::SelfTestError, vip::VipError,
};

/// An error of the daemon; the message names what failed, and what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(
        "changing `{key}` from {from} to {to} needs a restart of the daemon.\n  \
         Restart it (systemctl restart glb-redirect), or set `{key}` back to {from}."
    )]
    NeedsRestart { key: &'static str, from: String, to: String },
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    #[error(transparent)]
    HostState(#[from] HostStateError),
    #[error(transparent)]
    Vips(#[from] VipError),
    #[error(transparent)]
    Counters(#[from] CountersError),
    #[error(transparent)]
    Pins(#[from] PinFolderError),
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Swap(#[from] SwapError),
    #[error(transparent)]
    SelfTest(#[from] SelfTestError),
    #[error(transparent)]
    NextHops(#[from] NetlinkError),
    #[error("cannot subscribe to address and link changes (netlink route multicast): {0}")]
    HostChanges(io::Error),
    #[error("cannot install a signal handler: {0}")]
    Signals(io::Error),
    #[error("cannot start the thread that monitors connections: {0}")]
    Thread(io::Error),
    #[error(transparent)]
    Control(#[from] ControlError),
}
