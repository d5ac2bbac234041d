//! Decisions that the running program reports, decoded for `trace` and `capture`.

use glb_common::reason::RedirectReason as Reason;
use glb_host::{
    bpf_loader::LoadError,
    packet_trace::{
        Decision, Egress, Headers,
        client::Decoder,
        trace::{TraceRecord, TraceSource},
    },
    xdp_link,
};

use crate::replay::{hops_left, verdict_name};

/// Decodes a backend's decisions. It keeps no state: the frame before and after tells everything.
#[derive(Debug, Default)]
pub struct RedirectDecoder;

impl Decoder for RedirectDecoder {
    fn switch_source(&mut self, _showing: &TraceSource) -> Result<(), LoadError> {
        Ok(())
    }

    fn decode(&self, shown: &TraceRecord) -> Decision {
        let event = &shown.event;
        let reason = Reason::from_number(event.reason as u8);
        let mut decision = Decision {
            time: shown.time,
            interface: Some(xdp_link::interface_name(event.interface)),
            length: event.received,
            verdict: verdict_name(event.verdict, reason),
            reason: Some(reason.name()),
            ..Decision::default()
        };
        decision.describe(Headers::of(&shown.before));
        if let (Some(after), "sent") = (&shown.after, decision.verdict)
            && let Some(tunnel) = Headers::of(after).tunnel
        {
            decision.hops = hops_left(tunnel);
            decision.egress = Some(Egress::of(None, after, false));
        }
        decision
    }
}
