//! `glb-redirect replay`

use std::path::Path;

use anyhow::Context as _;
use glb_host::packet_trace::{
    print_note,
    replay::{NextHopOverrides, ReplayArgs},
};

use super::Output;
use crate::{config::Config, local_addresses, program_data::ProgramData, replay::Replay};

pub(super) fn execute(file: &Path, args: &ReplayArgs, output: Output) -> anyhow::Result<()> {
    let config = Config::load(file)?;
    glb_host::permission::check_capabilities()?;
    let own = local_addresses::tunnel_ends(&config).context("cannot list this host's addresses")?;
    if own.is_empty() {
        print_note(
            "note: no address of this host can be the tunnel's end, so no packet is for this backend; \
             set `addresses` in the configuration to the addresses of the backend to replay for",
        );
    }
    let data = ProgramData::new(&config, &own);
    let ways =
        args.resolve_next_hops(data.peers.clone(), &config.interfaces, NextHopOverrides::default());
    let found = super::runtime()?.block_on(ways)?;
    found.print_synthetic_note();
    let mut replay = Replay::load(&data, found)?;
    let lines = args.replay("glb-redirect replay", matches!(output, Output::Json), &mut replay)?;
    lines.print_summary();
    Ok(())
}
