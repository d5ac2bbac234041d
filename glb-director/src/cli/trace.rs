//! `glb-director trace` and `glb-director capture`

use std::process::ExitCode;

use glb_host::{
    bpffs::PinFolder,
    packet_trace::client::{self, CaptureArgs, TraceArgs, TraceError},
};

use super::Watching;
use crate::{config::Config, counters::CountersError, replay::REASONS, trace::PinnedDecoder};

pub(super) fn trace(
    watching: &Watching,
    args: &TraceArgs,
    is_json: bool,
) -> anyhow::Result<ExitCode> {
    let client = watching.connect()?;
    done(client::trace(args, client, &REASONS, &mut decoder(watching)?, is_json))
}

pub(super) fn capture(
    watching: &Watching,
    args: &TraceArgs,
    capture: &CaptureArgs,
) -> anyhow::Result<ExitCode> {
    let client = watching.connect()?;
    let name = "glb-director capture";
    done(client::capture(name, args, capture, client, &REASONS, &mut decoder(watching)?))
}

/// What the daemon says decides about the exit code.
fn done(result: Result<(), TraceError>) -> anyhow::Result<ExitCode> {
    match result {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(TraceError::Client(error)) => Err(error.into()),
        Err(error) => Err(error.into()),
    }
}

fn decoder(watching: &Watching) -> anyhow::Result<PinnedDecoder> {
    let config = Config::load(&watching.config.config)?;
    let Some(pins) = PinFolder::open(&config.bpffs_dir, crate::OWNER)? else {
        return Err(CountersError::Missing { folder: config.bpffs_dir }.into());
    };
    Ok(PinnedDecoder::new(pins))
}
