//! The director's XDP program: maps, bounds and helper calls. Every decision is in glb-common.
#![no_std]
#![no_main]

use aya_ebpf::{
    Global,
    bindings::{BPF_F_MMAPABLE, xdp_action},
    helpers::{bpf_ktime_get_ns, bpf_redirect, bpf_xdp_adjust_head, bpf_xdp_adjust_tail},
    macros::{map, xdp},
    maps::{Array, LpmTrie, PerCpuArray},
    programs::XdpContext,
};
use glb_common::{
    encap,
    frame::{Frame as _, FrameMut as _, Wire},
    hash::Address,
    layout::{
        BACKEND_SLOTS, Backend, BindSlot, Config, Counter, PrefixEntry, ReasonCounters, Row,
        Segment, TABLE_SLOTS, TableInfo, TableRows,
    },
    parse::{IP_OFFSET, Parsed, parse},
    reason::{Action, DirectorReason as Reason, MAX_REASONS},
    steer::{Refusal, Send, View, steer},
    too_big::{self, Answer},
    wire::{
        ethernet::{self, EthernetHeader},
        protocol,
    },
};

mod frame;
mod prefix_key;
use frame::XdpFrame;
use prefix_key::Words;

// What belongs to a generation. Sizes are set by user space when it loads the program; arrays can
// be mapped into its memory, so that filling one takes no system call for each element.

#[unsafe(no_mangle)]
static CONFIG: Global<Config> = Global::new(Config {
    bind_seed: 0,
    displacement_mask: 0,
    bind_mask: 0,
    has_port_ranges: 0,
    tos_mask: 0,
    tos_value: 0,
    padding: 0,
    answers_per_second: 0,
});
#[map]
static DISPLACEMENTS: Array<u32> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static BINDS: Array<BindSlot> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static PREFIXES_V4: LpmTrie<[u8; 4], PrefixEntry> = LpmTrie::with_max_entries(1, 1);
#[map]
static PREFIXES_V6: LpmTrie<[u8; 16], PrefixEntry> = LpmTrie::with_max_entries(1, 1);
#[map]
static SEGMENTS: Array<Segment> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static TABLES: Array<TableInfo> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static ROWS: Array<TableRows> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static BACKENDS: Array<Backend> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Answers that this CPU sent in a second of the kernel's clock.
#[repr(C)]
struct Answers {
    second: u64,
    sent: u64,
}
#[map]
static ANSWERS: PerCpuArray<Answers> = PerCpuArray::with_max_entries(1, 0);

// What outlives generations.

#[map]
static TABLE_COUNTERS: PerCpuArray<ReasonCounters> = PerCpuArray::with_max_entries(TABLE_SLOTS, 0);
#[map]
static BACKEND_COUNTERS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(BACKEND_SLOTS, 0);

/// A bit for each reason that leaves a packet to the kernel.
const PASSES: u32 = {
    let (mut bits, mut index) = (0, 0);
    while index < Reason::ALL.len() {
        if matches!(Reason::ALL[index].action(), Action::Pass) {
            bits |= 1 << index;
        }
        index += 1;
    }
    bits
};

/// This generation's maps.
struct Maps;

impl View for Maps {
    #[inline(always)]
    fn config(&self) -> Config {
        CONFIG.load()
    }

    #[inline(always)]
    fn displacement(&self, index: u32) -> Option<u32> {
        DISPLACEMENTS.get(index).copied()
    }

    #[inline(always)]
    fn bind(&self, index: u32) -> Option<&BindSlot> {
        BINDS.get(index)
    }

    #[inline(always)]
    fn prefix<A: Address>(&self, address: &A) -> Option<PrefixEntry> {
        let [high, low] = address.words();
        if A::FAMILY == 4 {
            PREFIXES_V4.get(Words::<2>::new().of_ipv4(low as u32)).copied()
        } else {
            PREFIXES_V6.get(Words::<5>::new().of_ipv6([high, low])).copied()
        }
    }

    #[inline(always)]
    fn segment(&self, index: u32) -> Option<&Segment> {
        SEGMENTS.get(index)
    }

    #[inline(always)]
    fn table(&self, index: u32) -> Option<&TableInfo> {
        TABLES.get(index)
    }

    #[inline(always)]
    fn row(&self, rows: u32, row: u16) -> Option<Row> {
        ROWS.get(rows)?.get(usize::from(row)).copied()
    }

    #[inline(always)]
    fn backend(&self, index: u16) -> Option<&Backend> {
        BACKENDS.get(u32::from(index))
    }
}

#[xdp]
#[inline(always)]
fn glb_director(ctx: XdpContext) -> u32 {
    let received = (ctx.data_end() - ctx.data()) as u64;
    let (verdict, reason, slot) = match direct(&ctx) {
        Ok((verdict, slot)) => (verdict, Reason::Encapsulated as u8, slot),
        Err(refusal) => {
            let reason = refusal.reason_number();
            let (verdict, reason) = if reason == Reason::TooBig as u8 {
                if answer(&ctx, refusal.inner_mtu()) {
                    (xdp_action::XDP_TX, reason)
                } else {
                    (xdp_action::XDP_DROP, Reason::TooBigUnanswered as u8)
                }
            } else if PASSES >> reason & 1 != 0 {
                (xdp_action::XDP_PASS, reason)
            } else {
                (xdp_action::XDP_DROP, reason)
            };
            (verdict, reason, refusal.counter_slot())
        }
    };
    if let Some(counters) = TABLE_COUNTERS.get_ptr_mut(slot) {
        // SAFETY: the pointer is to this CPU's own counters, which live as long as the map.
        count(unsafe { &mut (*counters).by_reason[reason as usize % MAX_REASONS] }, received);
    }
    verdict
}

/// The verdict for a packet that is sent, and the slot of its table's counters.
#[inline(always)]
fn direct(ctx: &XdpContext) -> Result<(u32, u32), Refusal> {
    let received = XdpFrame::new(ctx);
    let unowned = |reason| Refusal::new(reason, 0);
    match parse(&received).map_err(unowned)? {
        Parsed::V4(packet) => {
            let send = steer(&Maps, &packet)?;
            encapsulate(ctx, &send, protocol::IPV4, packet.ip_length)
        }
        Parsed::V6(packet) => {
            let send = steer(&Maps, &packet)?;
            encapsulate(ctx, &send, protocol::IPV6, packet.ip_length)
        }
    }
}

#[inline(always)]
fn encapsulate(
    ctx: &XdpContext,
    send: &Send<'_>,
    inner: u8,
    inner_length: u16,
) -> Result<(u32, u32), Refusal> {
    let refuse = |reason| Refusal::new(reason, send.counter_slot);
    let received = (ctx.data_end() - ctx.data()) as u64;
    let total = encap::outer_length(inner_length, send.listed).ok_or(refuse(Reason::TooLong))?;
    let growth = encap::overhead(send.listed) as i32;
    // SAFETY: the context is this program's own; the frame's pointers are made anew below.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -growth) } != 0 {
        return Err(refuse(Reason::NoHeadroom));
    }
    if !encap::write(&mut XdpFrame::new(ctx), send, inner, total) {
        return Err(refuse(Reason::Inconsistent));
    }
    if let Some(counter) = BACKEND_COUNTERS.get_ptr_mut(u32::from(send.backend.counter_slot)) {
        // SAFETY: the pointer is to this CPU's own counter, which lives as long as the map.
        count(unsafe { &mut *counter }, received);
    }
    // SAFETY: the context is this program's own.
    let arrived_on = unsafe { (*ctx.ctx).ingress_ifindex };
    let verdict = if send.backend.interface == arrived_on {
        xdp_action::XDP_TX
    } else {
        // SAFETY: a plain helper call; an interface that is gone makes it an aborted packet.
        unsafe { bpf_redirect(send.backend.interface, 0) as u32 }
    };
    Ok((verdict, send.counter_slot))
}

/// Makes of a packet that is too big the answer to it; says whether it did.
#[inline(always)]
fn answer(ctx: &XdpContext, mtu: u16) -> bool {
    if !may_answer() {
        return false;
    }
    let frame = XdpFrame::new(ctx);
    let Some(ethernet) = frame.read::<EthernetHeader>(0) else { return false };
    if ethernet.ethertype == ethernet::IPV4 {
        let Some(headers) = too_big::answer_v4(&frame, mtu) else { return false };
        become_answer(ctx, IP_OFFSET + too_big::V4_QUOTE, too_big::V4_GROWTH, headers)
    } else {
        let Some(headers) = too_big::answer_v6(&frame, mtu) else { return false };
        become_answer(ctx, IP_OFFSET + too_big::V6_QUOTE, too_big::V6_GROWTH, headers)
    }
}

/// Cuts the frame to `keep` bytes and puts the answer's headers before them.
#[inline(always)]
fn become_answer<I: Wire>(
    ctx: &XdpContext,
    keep: usize,
    growth: usize,
    headers: Answer<I>,
) -> bool {
    let length = ctx.data_end() - ctx.data();
    // SAFETY: the context is this program's own; the frame's pointers are made anew below.
    let moved = unsafe {
        bpf_xdp_adjust_tail(ctx.ctx, keep as i32 - length as i32) == 0
            && bpf_xdp_adjust_head(ctx.ctx, -(growth as i32)) == 0
    };
    moved && XdpFrame::new(ctx).write(0, headers)
}

/// Whether this CPU may send another answer this second.
#[inline(always)]
fn may_answer() -> bool {
    let limit = CONFIG.load().answers_per_second;
    if limit == 0 {
        return true;
    }
    let Some(answers) = ANSWERS.get_ptr_mut(0) else { return false };
    // SAFETY: a plain helper call; the pointer is to this CPU's own element.
    unsafe {
        let second = bpf_ktime_get_ns() / 1_000_000_000;
        if (*answers).second != second {
            *answers = Answers { second, sent: 0 };
        }
        (*answers).sent += 1;
        (*answers).sent <= u64::from(limit)
    }
}

#[inline(always)]
fn count(counter: &mut Counter, bytes: u64) {
    counter.packets += 1;
    counter.bytes += bytes;
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
