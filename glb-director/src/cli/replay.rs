//! `glb-director replay`

use std::{collections::BTreeSet, path::Path};

use anyhow::Context as _;
use glb_host::packet_trace::replay::{NextHopOverrides, ReplayArgs};

use super::Output;
use crate::{config::Config, replay::Replay};

pub(super) fn execute(file: &Path, args: &ReplayArgs, output: Output) -> anyhow::Result<()> {
    let config = Config::load(file)?;
    glb_host::permission::check_capabilities()?;
    let tables = glb_table::load(&config.table)
        .map_err(|error| anyhow::anyhow!("{}", error.render(false).trim_end()))?;
    let backends: BTreeSet<_> = tables
        .tables
        .iter()
        .flat_map(|table| &table.backends)
        .map(|backend| backend.address)
        .collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    let fixed =
        NextHopOverrides { source_v4: config.options.outer_source, gateway: config.gateway_mac };
    let ways = args.resolve_next_hops(backends, &config.interfaces, fixed);
    let found = runtime.block_on(ways)?;
    found.print_synthetic_note();
    let mut replay = Replay::load(&tables, &config.options, found)?;
    let lines = args.replay("glb-director replay", matches!(output, Output::Json), &mut replay)?;
    lines.print_summary();
    Ok(())
}
