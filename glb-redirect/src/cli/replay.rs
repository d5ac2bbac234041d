//! `glb-redirect replay`

use std::path::Path;

use anyhow::Context as _;
use glb_host::packet_trace::{
    print_note,
    replay::{NextHopOverrides, ReplayArgs},
};

use super::Output;
use crate::{config::Config, image::Image, local_addresses, replay::Replay};

pub(super) fn execute(file: &Path, args: &ReplayArgs, output: Output) -> anyhow::Result<()> {
    let config = Config::load(file)?;
    glb_host::permission::check_capabilities()?;
    let own =
        local_addresses::addresses(&config).context("cannot list this machine's addresses")?;
    if own.is_empty() {
        print_note(
            "note: this machine has no address that the tunnel can end at, so nothing is for us; \
             `addresses` in the configuration names the backend's",
        );
    }
    let image = Image::new(&config, &own);
    let ways = args.resolve_next_hops(
        image.peers.clone(),
        &config.interfaces,
        NextHopOverrides::default(),
    );
    let found = super::runtime()?.block_on(ways)?;
    found.print_synthetic_note();
    let mut replay = Replay::load(&image, found)?;
    let lines = args.replay("glb-redirect replay", matches!(output, Output::Json), &mut replay)?;
    lines.print_summary();
    Ok(())
}
