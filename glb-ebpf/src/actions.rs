//! Carries out the backend's decisions: decapsulates frames and sends them to the next hop.

use aya_ebpf::{
    bindings::xdp_action,
    helpers::{bpf_redirect, bpf_xdp_adjust_head},
    programs::XdpContext,
};
use glb_common::{
    packet_access::{Frame as _, FrameMut as _, Nested as _, put_at, u32_at, u64_at},
    reason::{Action, RedirectReason as Reason},
    second_chance::{Decap, Forward, TAG, fast_path},
};

use crate::{count, packet_access::XdpFrame};

/// Carries out and counts the decision about an ordinary packet.
pub(crate) struct CountedActions<'c> {
    pub(crate) ctx: &'c XdpContext,
    /// Length of the frame.
    pub(crate) bytes: u64,
}

impl CountedActions<'_> {
    #[inline(always)]
    pub(crate) fn done(&self, verdict: Option<u32>, reason: Reason, vip: u32) -> u32 {
        match verdict {
            Some(verdict) => count(self.ctx, verdict, reason, vip, self.bytes),
            None => count(self.ctx, xdp_action::XDP_DROP, Reason::Refused, vip, self.bytes),
        }
    }
}

impl fast_path::Actions<XdpFrame> for CountedActions<'_> {
    type Done = u32;

    #[inline(always)]
    fn leave(&self, reason: Reason, vip: u32) -> u32 {
        self.done(Some(leave(reason)), reason, vip)
    }

    #[inline(always)]
    fn take<const HEAD: usize, const TAKEN: usize>(
        &self,
        frame: &XdpFrame,
        taken: XdpFrame,
        decap: Decap,
        reason: Reason,
        vip: u32,
    ) -> u32 {
        let verdict = cut::<HEAD, TAKEN>(self.ctx, frame, taken, &decap);
        self.done(verdict, reason, vip)
    }

    #[inline(always)]
    fn send(&self, frame: &XdpFrame, forward: &Forward, reason: Reason, vip: u32) -> u32 {
        let verdict = if forward.peer.tag == 0 {
            let mut frame = *frame;
            forward.write(&mut frame).then(|| transmit(self.ctx, forward.peer.interface))
        } else {
            send(self.ctx, forward, 0)
        };
        self.done(verdict, reason, vip)
    }
}

/// Cuts the tunnel headers out of a frame without VLAN tags. `taken` is the frame from its new start.
#[inline(always)]
fn cut<const HEAD: usize, const TAKEN: usize>(
    ctx: &XdpContext,
    frame: &XdpFrame,
    mut taken: XdpFrame,
    decap: &Decap,
) -> Option<u32> {
    // The Ethernet header is copied to its new place before the cut, so that no pointer has to be checked
    // again. The places do not overlap.
    let head = frame.window::<HEAD>()?;
    let (macs, more_macs) = (u64_at(head, 0), u32_at(head, 8));
    let first = taken.window_mut::<TAKEN>()?;
    put_at(first, 0, macs);
    put_at(first, 8, more_macs);
    put_at(first, 12, decap.ethertype as u16);
    cut_head(ctx, decap)
}

#[inline(always)]
fn cut_head(ctx: &XdpContext, decap: &Decap) -> Option<u32> {
    // SAFETY: the context is this program's own; no pointer is used after the call.
    let cut = unsafe { bpf_xdp_adjust_head(ctx.ctx, decap.strip as i32) };
    (cut == 0).then_some(xdp_action::XDP_PASS)
}

/// The return code that sends a frame out of `interface`.
#[inline(always)]
fn transmit(ctx: &XdpContext, interface: u32) -> u32 {
    if interface == arrived_on(ctx) {
        return xdp_action::XDP_TX;
    }
    // SAFETY: a plain helper call; the kernel drops the packet if the interface is gone.
    unsafe { bpf_redirect(interface, 0) as u32 }
}

/// Index of the interface that received the frame.
#[inline(always)]
fn arrived_on(ctx: &XdpContext) -> u32 {
    // SAFETY: the context is this program's own.
    unsafe { (*ctx.ctx).ingress_ifindex }
}

#[inline(always)]
pub(crate) fn leave(reason: Reason) -> u32 {
    match reason.action() {
        Action::Pass => xdp_action::XDP_PASS,
        Action::Send | Action::Take | Action::Drop | Action::Answer => xdp_action::XDP_DROP,
    }
}

/// Cuts the tunnel headers out after the Ethernet header and its VLAN tags. The kernel gets the inner packet
/// on the VLAN of the outer one.
#[inline(always)]
pub(crate) fn strip(ctx: &XdpContext, decap: &Decap, tag_bytes: usize) -> Option<u32> {
    let frame = XdpFrame::new(ctx);
    let mut start = frame.rest(decap.strip)?;
    if tag_bytes == 0 {
        return if decap.mark(&mut start) {
            cut::<14, 14>(ctx, &frame, start, decap)
        } else {
            None
        };
    }
    // As in `cut`.
    let head = frame.window::<20>()?;
    let (macs, more_macs) = (u64_at(head, 0), u32_at(head, 8));
    let (one, two) = (u32_at(head, 12), u32_at(head, 16));
    let mut inner = start.rest(tag_bytes)?;
    if !decap.mark(&mut inner) || !inner.write(12, decap.ethertype as u16) {
        return None;
    }
    let first = start.window_mut::<20>()?;
    put_at(first, 0, macs);
    put_at(first, 8, more_macs);
    put_at(first, 12, one);
    if tag_bytes > TAG {
        put_at(first, 16, two);
    }
    cut_head(ctx, decap)
}

/// Readdresses a packet to the next hop and sends it.
#[inline(always)]
pub(crate) fn send(ctx: &XdpContext, forward: &Forward, tag_bytes: usize) -> Option<u32> {
    let back = forward.peer.interface == arrived_on(ctx);
    // A next hop on a VLAN has one tag. Otherwise the packet keeps its tags on the receiving interface
    // and loses them on another one. Tags stand before the EtherType, which therefore need not move.
    let tags_out = match forward.peer.tag {
        0 if back => tag_bytes,
        0 => 0,
        _ => TAG,
    };
    if tags_out != tag_bytes {
        let cut = tag_bytes as i32 - tags_out as i32;
        // SAFETY: the context is this program's own; the frame's pointers are read again below.
        if unsafe { bpf_xdp_adjust_head(ctx.ctx, cut) } != 0 {
            return None;
        }
    }
    let mut frame = XdpFrame::new(ctx);
    if !forward.write_outer(&mut frame.rest(tags_out)?)
        || (forward.peer.tag != 0 && !frame.write(12, forward.peer.tag))
        || !forward.write_macs(&mut frame)
    {
        return None;
    }
    Some(transmit(ctx, forward.peer.interface))
}
