//! `glb-director run`

use std::path::Path;

use anyhow::Context as _;

use crate::{config::Config, daemon};

pub(super) fn execute(file: &Path) -> anyhow::Result<()> {
    let config = Config::load(file)?;
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    glb_host::permission::check()?;
    // As long as this process may ask for them.
    glb_host::xdp_link::remember_programs(&config.interfaces);
    glb_host::privilege::begin()?;
    glb_host::permission::raise_descriptors();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    Ok(runtime.block_on(daemon::run(&config))?)
}
