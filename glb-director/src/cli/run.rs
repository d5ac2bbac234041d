//! `glb-director run`

use std::path::Path;

use anyhow::Context as _;

use crate::{config::Config, daemon};

pub(super) fn execute(file: &Path) -> anyhow::Result<()> {
    glb_host::privilege::disable_core_dumps()?;
    let config = Config::load(file)?;
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    glb_host::permission::check_capabilities()?;
    // Names of other XDP programs are readable only until capabilities are dropped.
    glb_host::xdp_link::record_program_names(&config.interfaces);
    if config.probe.enabled {
        crate::prober::open_reply_sockets();
    }
    glb_host::privilege::drop_capabilities()?;
    glb_host::permission::raise_file_limit();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    Ok(runtime.block_on(daemon::run(&config))?)
}
