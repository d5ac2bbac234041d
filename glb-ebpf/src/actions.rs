//! What is done about a frame.

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

/// Does what was decided about an ordinary packet, and counts it.
pub(crate) struct Ordinary<'c> {
    pub(crate) ctx: &'c XdpContext,
    /// Length of the frame.
    pub(crate) bytes: u64,
}

impl Ordinary<'_> {
    #[inline(always)]
    pub(crate) fn done(&self, verdict: Option<u32>, reason: Reason, vip: u32) -> u32 {
        match verdict {
            Some(verdict) => count(self.ctx, verdict, reason, vip, self.bytes),
            None => count(self.ctx, xdp_action::XDP_DROP, Reason::Refused, vip, self.bytes),
        }
    }
}

impl fast_path::Actions<XdpFrame> for Ordinary<'_> {
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
            forward.write(&mut frame).then(|| out(self.ctx, forward.peer.interface))
        } else {
            send(self.ctx, forward, 0)
        };
        self.done(verdict, reason, vip)
    }
}

/// Cuts the tunnel out of a frame without tags; `taken` is where it starts then.
#[inline(always)]
fn cut<const HEAD: usize, const TAKEN: usize>(
    ctx: &XdpContext,
    frame: &XdpFrame,
    mut taken: XdpFrame,
    decap: &Decap,
) -> Option<u32> {
    // What stands in front is written where it will be first, before the cut: no pointer has to be
    // made anew then. It is far enough away not to overlap.
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
    // SAFETY: the context is this program's own; no pointer is used any more.
    let cut = unsafe { bpf_xdp_adjust_head(ctx.ctx, decap.strip as i32) };
    (cut == 0).then_some(xdp_action::XDP_PASS)
}

/// The verdict that sends a frame out by `interface`.
#[inline(always)]
fn out(ctx: &XdpContext, interface: u32) -> u32 {
    if interface == arrived_on(ctx) {
        return xdp_action::XDP_TX;
    }
    // SAFETY: a plain helper call; an interface that is gone makes it an aborted packet.
    unsafe { bpf_redirect(interface, 0) as u32 }
}

/// The interface that a frame came in by.
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

/// Cuts the tunnel's headers out, from behind the Ethernet header and its tags: the kernel gets the
/// inner packet on the VLAN that the tunnel came by.
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

/// Readdresses the packet to the next hop and sends it there.
#[inline(always)]
pub(crate) fn send(ctx: &XdpContext, forward: &Forward, tag_bytes: usize) -> Option<u32> {
    let back = forward.peer.interface == arrived_on(ctx);
    // A way of a VLAN has one tag. Otherwise tags belong to where the packet came from. Tags stand
    // before the EtherType, which need not move when they are cut or put there.
    let tags_out = match forward.peer.tag {
        0 if back => tag_bytes,
        0 => 0,
        _ => TAG,
    };
    if tags_out != tag_bytes {
        let cut = tag_bytes as i32 - tags_out as i32;
        // SAFETY: the context is this program's own; pointers are made anew below.
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
    Some(out(ctx, forward.peer.interface))
}
