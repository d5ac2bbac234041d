//! `glb-director trace` and `glb-director capture`

use std::process::ExitCode;

use glb_host::{
    bpffs::PinFolder,
    packet_trace::client::{self, CaptureArgs, TraceArgs, TraceError},
};

use super::TargetArgs;
use crate::{config::Config, counters::CountersError, replay::REASONS, trace::PinnedDecoder};

pub(super) fn trace(
    target: &TargetArgs,
    args: &TraceArgs,
    is_json: bool,
) -> anyhow::Result<ExitCode> {
    let client = target.connect()?;
    done(client::trace(args, client, &REASONS, &mut decoder(target)?, is_json))
}

pub(super) fn capture(
    target: &TargetArgs,
    args: &TraceArgs,
    capture: &CaptureArgs,
) -> anyhow::Result<ExitCode> {
    let client = target.connect()?;
    let name = "glb-director capture";
    done(client::capture(name, args, capture, client, &REASONS, &mut decoder(target)?))
}

/// Keeps the client's error as such, because it decides the exit code.
fn done(result: Result<(), TraceError>) -> anyhow::Result<ExitCode> {
    match result {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(TraceError::Client(error)) => Err(error.into()),
        Err(error) => Err(error.into()),
    }
}

fn decoder(target: &TargetArgs) -> anyhow::Result<PinnedDecoder> {
    let config = Config::load(&target.config.config)?;
    let Some(pins) = PinFolder::open(&config.bpffs_dir, crate::OWNER)? else {
        return Err(CountersError::Missing { folder: config.bpffs_dir }.into());
    };
    Ok(PinnedDecoder::new(pins))
}
