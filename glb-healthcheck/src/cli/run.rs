//! `glb-healthcheck run`

use std::{path::Path, process::ExitCode};

use anyhow::Context as _;
use glb_host::{
    permission,
    privilege::{self, Capability},
};

use crate::{
    config::Config,
    daemon::{self, Resources},
};

pub(super) fn execute(file: &Path) -> anyhow::Result<ExitCode> {
    glb_host::privilege::disable_core_dumps()?;
    let config = Config::load(file)?;
    // CAP_NET_RAW is for ICMP, CAP_NET_ADMIN for the tunnel of `vip` checks. Both are kept even if no
    // check needs them now, because a reload can add one.
    let mut needed = vec![Capability::CAP_NET_RAW, Capability::CAP_NET_ADMIN];
    if config.exec_user.is_some_and(|user| user.uid != nix::unistd::geteuid().as_raw()) {
        needed.extend([Capability::CAP_SETUID, Capability::CAP_SETGID]);
    }
    privilege::drop_capabilities_except(&needed)?;
    // Each running probe uses a descriptor.
    permission::raise_file_limit();
    let resources = Resources::take(&config)?;
    privilege::drop_start_capabilities()?;
    runtime()?.block_on(daemon::run(config, resources))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")
}
