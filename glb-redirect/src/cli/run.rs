//! `glb-redirect run`

use std::path::Path;

use crate::{config::Config, daemon};

pub(super) fn execute(file: &Path) -> anyhow::Result<()> {
    glb_host::privilege::disable_core_dumps()?;
    let config = Config::load(file)?;
    glb_host::permission::check_capabilities()?;
    // Looking programs up needs a capability that the process gives up next.
    glb_host::xdp_link::record_program_names(&config.interfaces);
    glb_host::privilege::drop_capabilities()?;
    Ok(super::runtime()?.block_on(daemon::run(config))?)
}
