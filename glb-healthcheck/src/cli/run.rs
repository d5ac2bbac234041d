//! `glb-healthcheck run`

use std::{path::Path, process::ExitCode};

use anyhow::Context as _;

use crate::{config::Config, daemon};

pub(super) fn execute(file: &Path) -> anyhow::Result<ExitCode> {
    glb_host::privilege::disable_core_dumps()?;
    let config = Config::load(file)?;
    // Commands of `exec` checks do not inherit the daemon's capabilities.
    glb_host::privilege::clear_ambient_capabilities()?;
    // Each running probe uses a descriptor.
    glb_host::permission::raise_file_limit();
    runtime()?.block_on(daemon::run(config))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")
}
