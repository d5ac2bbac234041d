//! `glb-director detach`

use std::path::Path;

use glb_host::{bpffs::PinFolder, generations};

use crate::{config::Config, daemon};

pub(super) fn execute(file: &Path) -> anyhow::Result<()> {
    let config = Config::load(file)?;
    let Some(pins) = PinFolder::open(&config.pin, crate::OWNER)? else {
        daemon::detached(&config);
        println!("nothing is pinned at {}: not attached", config.pin.display());
        return Ok(());
    };
    let _lock = pins.lock()?;
    let interfaces = generations::detach_all_but(&pins, &[])?;
    pins.remove_all()?;
    daemon::detached(&config);
    if interfaces.is_empty() {
        println!("was not attached; {} removed", config.pin.display());
    } else {
        println!("detached from {}; {} removed", interfaces.join(", "), config.pin.display());
    }
    Ok(())
}
