//! `glb-redirect trace` and `glb-redirect capture`

use glb_host::packet_trace::client::{self, CaptureArgs, TraceArgs};

use super::ClientArgs;
use crate::{replay::REASONS, trace::RedirectDecoder};

pub(super) fn trace(client: &ClientArgs, args: &TraceArgs, is_json: bool) -> anyhow::Result<()> {
    Ok(client::trace(args, client.connect()?, &REASONS, &mut RedirectDecoder, is_json)?)
}

pub(super) fn capture(
    client: &ClientArgs,
    args: &TraceArgs,
    capture: &CaptureArgs,
) -> anyhow::Result<()> {
    let name = "glb-redirect capture";
    Ok(client::capture(name, args, capture, client.connect()?, &REASONS, &mut RedirectDecoder)?)
}
