//! `glb-healthcheck run`

use std::{path::Path, process::ExitCode};

use anyhow::Context as _;

use crate::{config::Config, daemon};

pub(super) fn execute(file: &Path) -> anyhow::Result<ExitCode> {
    let config = Config::load(file)?;
    // Commands of checks are the operator's, and have no need of what this process may do.
    glb_host::privilege::clear_ambient_capabilities()?;
    // Each probe under way takes a descriptor.
    glb_host::permission::raise_file_limit();
    runtime()?.block_on(daemon::run(&config))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")
}
