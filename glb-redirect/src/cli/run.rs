//! `glb-redirect run`

use std::path::Path;

use crate::{config::Config, daemon};

pub(super) fn execute(file: &Path) -> anyhow::Result<()> {
    let config = Config::load(file)?;
    glb_host::permission::check()?;
    // As long as this process may ask for them.
    glb_host::xdp_link::remember_programs(&config.interfaces);
    glb_host::privilege::begin()?;
    Ok(super::runtime()?.block_on(daemon::run(config))?)
}
