//! `glb-redirect detach`

use std::path::Path;

use glb_host::{bpffs::PinFolder, generations, tc_egress};

use crate::{config::Config, daemon::CLAMPS, vip};

pub(super) fn execute(file: &Path, vips: bool) -> anyhow::Result<()> {
    let config = Config::load(file)?;
    let folder = config.bpffs_dir.display();
    match PinFolder::open(&config.bpffs_dir, crate::PIN_OWNER)? {
        None => super::print(&format!("not attached: {folder} does not exist"))?,
        Some(pins) => {
            let _lock = pins.lock()?;
            let interfaces = generations::detach_all_but(&pins, &[])?;
            tc_egress::detach_all_but(&pins.join(CLAMPS), &[])?;
            pins.remove_all()?;
            if interfaces.is_empty() {
                super::print(&format!("was not attached; removed {folder}"))?;
            } else {
                let list = interfaces.join(", ");
                super::print(&format!("detached from {list}; removed {folder}"))?;
            }
        }
    }
    if vips {
        super::runtime()?.block_on(vip::remove(&config.vips))?;
    }
    Ok(())
}
