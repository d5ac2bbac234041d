//! `glb-redirect run`

use std::path::Path;

use crate::{config::Config, daemon};

pub(super) fn execute(file: &Path) -> anyhow::Result<()> {
    let config = Config::load(file)?;
    glb_host::permission::check()?;
    Ok(super::runtime()?.block_on(daemon::run(config))?)
}
