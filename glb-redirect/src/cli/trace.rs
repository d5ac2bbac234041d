//! `glb-redirect trace` and `glb-redirect capture`

use glb_host::packet_trace::client::{self, CaptureArgs, TraceArgs};

use super::Asking;
use crate::{replay::REASONS, trace::FromFrames};

pub(super) fn trace(asking: &Asking, args: &TraceArgs, is_json: bool) -> anyhow::Result<()> {
    Ok(client::trace(args, asking.connect()?, &REASONS, &mut FromFrames, is_json)?)
}

pub(super) fn capture(
    asking: &Asking,
    args: &TraceArgs,
    capture: &CaptureArgs,
) -> anyhow::Result<()> {
    let name = "glb-redirect capture";
    Ok(client::capture(name, args, capture, asking.connect()?, &REASONS, &mut FromFrames)?)
}
