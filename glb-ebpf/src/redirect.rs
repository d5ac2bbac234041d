//! The backend's XDP programs. `glb_redirect` handles ordinary packets and tail-calls
//! `glb_redirect_general` for the others. Every decision is made in [`glb_common::second_chance`]; `actions`
//! carries it out, `local_state` and `socket_lookup` answer its questions.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::xdp_action,
    helpers::bpf_xdp_get_buff_len,
    macros::{map, xdp},
    maps::{PerCpuArray, ProgramArray},
    programs::XdpContext,
};
use glb_common::{
    packet_access::{Frame, Nested, Wire},
    reason::RedirectReason as Reason,
    second_chance::{
        Decision, NO_VIP, TAG, Verdict,
        abi::{REDIRECT_COUNTERS, RedirectConfig, RedirectCounters},
        decide, fast_path, tags,
    },
};

mod lpm_key;
mod map_value;
mod packet_access;
mod trace;
use packet_access::XdpFrame;

/// Read-only data whose fields are read one by one. The compiler must not know the values, and copying the
/// whole struct for each packet would be slow.
#[repr(transparent)]
struct ReadOnly(MaybeUninit<RedirectConfig>);

#[unsafe(no_mangle)]
static CONFIG: ReadOnly = ReadOnly(MaybeUninit::zeroed());

macro_rules! config {
    ($($field:tt)*) => {{
        let settings = crate::CONFIG.0.as_ptr();
        // SAFETY: always initialised: zeroes, or the values that user space sets at load time.
        unsafe { core::ptr::read_volatile(&raw const (*settings).$($field)*) }
    }};
}

mod actions;
mod local_state;
mod mss_clamp;
mod socket_lookup;
use actions::{CountedActions, leave, send, strip};
use local_state::ThisHost;

/// Holds the general program.
#[map]
static GENERAL: ProgramArray = ProgramArray::with_max_entries(1, 0);

// Maps that outlive generations.

#[map]
static COUNTERS: PerCpuArray<RedirectCounters> =
    PerCpuArray::with_max_entries(REDIRECT_COUNTERS, 0);

/// A frame that may have several buffers (jumbo frames). All headers are in the first one.
struct Received {
    linear: XdpFrame,
    /// Length of all buffers in bytes.
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

/// Handles ordinary packets. This program is attached.
#[xdp(frags)]
#[inline(always)]
fn glb_redirect(ctx: XdpContext) -> u32 {
    trace::begin(&ctx);
    let frame = XdpFrame::new(&ctx);
    let actions = CountedActions { ctx: &ctx, bytes: frame.len() as u64 };
    fast_path::decide(&frame, &ThisHost { ctx: &ctx }, &actions).unwrap_or_else(|| {
        // SAFETY: a tail call. It returns only if the slot is empty; user space always fills it.
        unsafe { GENERAL.tail_call(&ctx, 0) };
        actions.done(None, Reason::Refused, NO_VIP)
    })
}

/// Handles all other packets: those with VLAN tags, several buffers, IP options, extension headers or
/// congestion marks, ICMP, and malformed ones.
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

/// Carries out a decision and counts it.
#[inline(always)]
fn finish(ctx: &XdpContext, decision: &Decision, tag_bytes: usize, bytes: u64) -> u32 {
    let Decision { reason, vip, .. } = *decision;
    let done = match decision.verdict {
        Verdict::Leave => Some(leave(reason)),
        Verdict::Take => strip(ctx, &decision.decap, tag_bytes),
        Verdict::Send => send(ctx, &decision.forward, tag_bytes),
    };
    match done {
        Some(verdict) => count(ctx, verdict, reason, vip, bytes),
        None => count(ctx, xdp_action::XDP_DROP, Reason::Refused, vip, bytes),
    }
}

/// Returns `TAG` × `tags` as a value that the verifier does not know. With a known value it would walk the
/// rest of the program once for each number of tags.
#[inline(always)]
fn tag_bytes(tags: usize) -> usize {
    /// Writable, so that the verifier does not treat it as constant.
    static mut TAG_BYTES: [usize; 4] = [0, TAG, 2 * TAG, 2 * TAG];
    // SAFETY: the index is at most 3, and the array is never written.
    unsafe { (&raw const TAG_BYTES[tags & 3]).read_volatile() & (3 * TAG) }
}

/// Counts a packet and traces its decision.
#[inline(always)]
fn count(ctx: &XdpContext, verdict: u32, reason: Reason, vip: u32, bytes: u64) -> u32 {
    if let Some(counters) = COUNTERS.get_ptr_mut(vip) {
        // SAFETY: the pointer is to this CPU's counters, which live as long as the map.
        let counter = unsafe { &mut (*counters).by_reason[reason as usize] };
        counter.packets += 1;
        counter.bytes += bytes;
    }
    trace::end(ctx, verdict, reason as u8, vip);
    verdict
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
