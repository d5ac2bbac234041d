//! `glb-redirect detach`

use std::path::Path;

use glb_host::{bpffs::PinFolder, generations};

use crate::{config::Config, vip};

pub(super) fn execute(file: &Path, vips: bool) -> anyhow::Result<()> {
    let config = Config::load(file)?;
    match PinFolder::open(&config.pin, crate::OWNER)? {
        None => println!("nothing is pinned at {}: not attached", config.pin.display()),
        Some(pins) => {
            let _lock = pins.lock()?;
            let interfaces = generations::detach_all_but(&pins, &[])?;
            pins.remove_all()?;
            let folder = config.pin.display();
            if interfaces.is_empty() {
                println!("was not attached; {folder} removed");
            } else {
                println!("detached from {}; {folder} removed", interfaces.join(", "));
            }
        }
    }
    if vips {
        super::runtime()?.block_on(vip::remove(&config.vips))?;
    }
    Ok(())
}
