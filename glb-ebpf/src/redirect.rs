//! The backend's XDP programs: maps, socket look-ups and edits. Every decision is in glb-common.
#![no_std]
#![no_main]

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::xdp_action,
    helpers::{bpf_redirect, bpf_xdp_adjust_head, bpf_xdp_get_buff_len},
    macros::{map, xdp},
    maps::{PerCpuArray, ProgramArray},
    programs::XdpContext,
};
use glb_common::{
    frame::{Frame, FrameMut as _, Nested, Wire, put_at, u32_at, u64_at},
    reason::{Action, RedirectReason as Reason},
    second_chance::{
        Decision, Forward, NO_VIP, TAG, Take, Verdict, decide, fast,
        layout::{REDIRECT_COUNTERS, RedirectCounters, Settings},
        tags,
    },
};

mod frame;
mod prefix_key;
mod trace;
use frame::XdpFrame;

/// Read-only data whose fields are read one by one: the compiler must not know their values, and
/// copying all of it for each packet would cost more than the fields are worth.
#[repr(transparent)]
struct ReadOnly(MaybeUninit<Settings>);

#[unsafe(no_mangle)]
static SETTINGS: ReadOnly = ReadOnly(MaybeUninit::zeroed());

macro_rules! setting {
    ($($field:tt)*) => {{
        let settings = crate::SETTINGS.0.as_ptr();
        // SAFETY: always initialised (zeroes, or what user space put there at load).
        unsafe { core::ptr::read_volatile(&raw const (*settings).$($field)*) }
    }};
}

mod machine;
mod mss_clamp;
mod sockets;
use machine::ThisHost;

/// The program for packets out of the ordinary.
#[map]
static GENERAL: ProgramArray = ProgramArray::with_max_entries(1, 0);

// What outlives generations.

#[map]
static COUNTERS: PerCpuArray<RedirectCounters> =
    PerCpuArray::with_max_entries(REDIRECT_COUNTERS, 0);

/// A frame whose end may lie beyond what can be read here (jumbo frames). All headers are in the
/// first buffer.
struct Received {
    linear: XdpFrame,
    /// Bytes in all buffers.
    whole: usize,
}

impl Frame for Received {
    #[inline(always)]
    fn read<T: Wire>(&self, offset: usize) -> Option<T> {
        self.linear.read(offset)
    }

    #[inline(always)]
    fn window<const N: usize>(&self) -> Option<&[u8; N]> {
        self.linear.window()
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.linear.len()
    }

    #[inline(always)]
    fn holds(&self, bytes: usize) -> bool {
        bytes <= self.whole
    }
}

impl Nested for Received {
    type Rest<'a>
        = XdpFrame
    where
        Self: 'a;

    #[inline(always)]
    fn rest(&self, offset: usize) -> Option<XdpFrame> {
        self.linear.rest(offset)
    }
}

/// Ordinary packets.
#[xdp(frags)]
fn glb_redirect(ctx: XdpContext) -> u32 {
    trace::begin(&ctx);
    let frame = XdpFrame::new(&ctx);
    let bytes = frame.len() as u64;
    let Some(decision) = fast::decide(&frame, &ThisHost { ctx: &ctx }) else {
        // SAFETY: a tail call; it comes back only if the slot is empty, which user space never lets
        // be.
        unsafe { GENERAL.tail_call(&ctx, 0) };
        return count(&ctx, xdp_action::XDP_DROP, Reason::Refused, NO_VIP, bytes);
    };
    finish(&ctx, &decision, 0, bytes)
}

/// All others: with VLAN tags, in several buffers, with options or extension headers, marked by ECN,
/// ICMP, broken ones.
#[xdp(frags)]
fn glb_redirect_general(ctx: XdpContext) -> u32 {
    // SAFETY: the context is this program's own.
    let whole = unsafe { bpf_xdp_get_buff_len(ctx.ctx) };
    let frame = XdpFrame::new(&ctx);
    let tag_bytes = tag_bytes(tags(&frame));
    let Some(linear) = frame.rest(tag_bytes) else {
        return count(&ctx, xdp_action::XDP_PASS, Reason::NotTunnel, NO_VIP, whole);
    };
    let frame = Received { linear, whole: whole as usize - tag_bytes };
    let decision = decide(&frame, &ThisHost { ctx: &ctx });
    finish(&ctx, &decision, tag_bytes, whole)
}

/// Does what was decided, and counts it.
#[inline(always)]
fn finish(ctx: &XdpContext, decision: &Decision, tag_bytes: usize, bytes: u64) -> u32 {
    let Decision { reason, vip, .. } = *decision;
    let done = match decision.verdict {
        Verdict::Leave => Some(leave(reason)),
        Verdict::Take => strip(ctx, &decision.take, tag_bytes),
        Verdict::Send => send(ctx, &decision.forward, tag_bytes),
    };
    match done {
        Some(verdict) => count(ctx, verdict, reason, vip, bytes),
        None => count(ctx, xdp_action::XDP_DROP, Reason::Refused, vip, bytes),
    }
}

/// `TAG` × `tags`, of which the verifier knows no more than that: it would otherwise go through all
/// that follows once for each number of tags.
#[inline(always)]
fn tag_bytes(tags: usize) -> usize {
    /// Not constant, for the verifier, since it can be written to.
    static mut TAG_BYTES: [usize; 4] = [0, TAG, 2 * TAG, 2 * TAG];
    // SAFETY: an index of 3 at most; nobody writes.
    unsafe { (&raw const TAG_BYTES[tags & 3]).read_volatile() & (3 * TAG) }
}

/// Counts a packet that comes to this end, and shows it to whoever watches.
#[inline(always)]
fn count(ctx: &XdpContext, verdict: u32, reason: Reason, vip: u32, bytes: u64) -> u32 {
    if let Some(counters) = COUNTERS.get_ptr_mut(vip) {
        // SAFETY: the pointer is to this CPU's own counters, which live as long as the map.
        let counter = unsafe { &mut (*counters).by_reason[reason as usize] };
        counter.packets += 1;
        counter.bytes += bytes;
    }
    trace::end(ctx, verdict, reason as u8, vip);
    verdict
}

#[inline(always)]
fn leave(reason: Reason) -> u32 {
    match reason.action() {
        Action::Pass => xdp_action::XDP_PASS,
        Action::Send | Action::Take | Action::Drop | Action::Answer => xdp_action::XDP_DROP,
    }
}

/// Cuts the tunnel's headers out, from behind the Ethernet header and its tags: the kernel gets the
/// inner packet on the VLAN that the tunnel came by.
#[inline(always)]
fn strip(ctx: &XdpContext, take: &Take, tag_bytes: usize) -> Option<u32> {
    // What stands in front is written where it will be first, before the cut: no pointer has to be
    // made anew then. It is far enough away not to overlap.
    let frame = XdpFrame::new(ctx);
    let head = frame.window::<20>()?;
    let (macs, more_macs) = (u64_at(head, 0), u32_at(head, 8));
    let mut start = frame.rest(take.strip)?;
    if tag_bytes == 0 {
        if !take.mark(&mut start) {
            return None;
        }
        let first = start.window_mut::<14>()?;
        put_at(first, 0, macs);
        put_at(first, 8, more_macs);
        put_at(first, 12, take.ethertype as u16);
    } else {
        let (one, two) = (u32_at(head, 12), u32_at(head, 16));
        let mut inner = start.rest(tag_bytes)?;
        if !take.mark(&mut inner) || !inner.write(12, take.ethertype as u16) {
            return None;
        }
        let first = start.window_mut::<20>()?;
        put_at(first, 0, macs);
        put_at(first, 8, more_macs);
        put_at(first, 12, one);
        if tag_bytes > TAG {
            put_at(first, 16, two);
        }
    }
    // SAFETY: the context is this program's own; no pointer is used any more.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, take.strip as i32) } != 0 {
        return None;
    }
    Some(xdp_action::XDP_PASS)
}

/// Readdresses the packet to the next hop and sends it there.
#[inline(always)]
fn send(ctx: &XdpContext, forward: &Forward, tag_bytes: usize) -> Option<u32> {
    // SAFETY: the context is this program's own.
    let arrived_on = unsafe { (*ctx.ctx).ingress_ifindex };
    let back = forward.peer.interface == arrived_on;
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
    if back {
        return Some(xdp_action::XDP_TX);
    }
    // SAFETY: a plain helper call; an interface that is gone makes it an aborted packet.
    Some(unsafe { bpf_redirect(forward.peer.interface, 0) as u32 })
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
