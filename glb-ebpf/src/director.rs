//! The director's XDP programs: maps, bounds and helper calls. Every decision is made in glb-common.
//!
//! `glb_director`, the fast path, is attached. It tail-calls the general program for other packets. That
//! program has three parts, which the verifier checks separately: `general` parses, `forward_packet` decides and
//! encapsulates, `answer` sends an ICMP "packet too big". They pass each other a [`Scratch`].
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

use aya_ebpf::{
    Global,
    bindings::{BPF_F_MMAPABLE, xdp_action},
    helpers::{
        bpf_ktime_get_ns, bpf_redirect, bpf_xdp_adjust_head, bpf_xdp_adjust_tail,
        bpf_xdp_get_buff_len,
    },
    macros::{map, xdp},
    maps::{Array, LpmTrie, PerCpuArray, ProgramArray},
    programs::XdpContext,
};
use glb_common::{
    abi::{
        ArrayBounds, BACKEND_SLOTS, Backend, BindSlot, Config, Counter, Hops, Ipv6Endpoints,
        KEEP_TAGS, PrefixEntry, ReasonCounters, Scratch, Segment, TABLE_SLOTS, TableInfo,
        TableRows,
    },
    encap, fast_path,
    flow::{Address, V4, V6},
    forwarding::{Rejection, plan_encapsulation},
    icmp_too_big::{self, IcmpReply, IpHeader},
    map_value::array,
    packet_access::{Frame, Wire},
    parse::{IP_OFFSET, Packet, Tags, parse},
    reason::{Action, DirectorReason as Reason, MAX_REASONS},
    tables::Tables,
};

mod lpm_key;
mod map_value;
mod packet_access;
mod trace;
use lpm_key::LpmKey;
use map_value::MapValueArray;
use packet_access::XdpFrame;

// Maps of one generation. User space sets their sizes when it loads the program and maps the arrays into its
// memory, so that filling one needs no system call for each element.

#[unsafe(no_mangle)]
static CONFIG: Global<Config> = Global::new(Config {
    bind_seed: 0,
    displacement_mask: 0,
    bind_mask: 0,
    has_port_ranges: 0,
    tos_mask: 0,
    tos_value: 0,
    may_fragment: 0,
    answers_per_second: 0,
    tags: KEEP_TAGS,
    tag_words: [0; 2],
    padding: 0,
});
/// Lengths of the arrays that the program addresses without a look-up.
#[unsafe(no_mangle)]
static BOUNDS: Global<ArrayBounds> = Global::new(ArrayBounds { rows: 0, backends: 0 });
const DISPLACEMENTS: MapValueArray<u32, { array::DISPLACEMENTS }> = MapValueArray::new();
const BINDS: MapValueArray<BindSlot, { array::BINDS }> = MapValueArray::new();
const ROWS: MapValueArray<TableRows, { array::ROWS }> = MapValueArray::new();
const BACKENDS: MapValueArray<Backend, { array::BACKENDS }> = MapValueArray::new();
#[map]
static PREFIXES_V4: LpmTrie<[u8; 4], PrefixEntry> = LpmTrie::with_max_entries(1, 1);
#[map]
static PREFIXES_V6: LpmTrie<[u8; 16], PrefixEntry> = LpmTrie::with_max_entries(1, 1);
#[map]
static SEGMENTS: Array<Segment> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static TABLES: Array<TableInfo> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static IPV6_ENDPOINTS: Array<Ipv6Endpoints> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// The parts of the general program, at the indices of [`part`].
#[map]
static PARTS: ProgramArray = ProgramArray::with_max_entries(3, 0);
#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// ReplyRate that this CPU sent in a second of the kernel's clock.
#[repr(C)]
struct ReplyRate {
    second: u64,
    sent: u64,
}
#[map]
static REPLY_RATE: PerCpuArray<ReplyRate> = PerCpuArray::with_max_entries(1, 0);

// Maps that outlive generations.

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

/// The index of a backend's entry in a bank. Both entries of a backend are adjacent.
#[inline(always)]
fn entry(index: u16, bank: u32) -> u32 {
    2 * u32::from(index) + bank
}

macro_rules! bound {
    ($field:ident) => {{
        let room = (&raw const BOUNDS).cast::<ArrayBounds>();
        // SAFETY: reads one field of the struct that user space sets at load time. Volatile, because the
        // compiler would use the static's initial value.
        unsafe { (&raw const (*room).$field).read_volatile() }
    }};
}

/// The maps of this generation as [`Tables`].
struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn config<T: Copy>(&self, field: impl Fn(&Config) -> &T) -> T {
        // SAFETY: reads one field of the struct that user space sets at load time. Volatile, because the
        // compiler would use the static's initial value.
        unsafe {
            let config = &*(&raw const CONFIG).cast::<Config>();
            (&raw const *field(config)).read_volatile()
        }
    }

    #[inline(always)]
    fn displacement(&self, index: u32) -> Option<u32> {
        Some(*DISPLACEMENTS.at(index))
    }

    #[inline(always)]
    fn bind(&self, index: u32) -> Option<&BindSlot> {
        Some(BINDS.at(index))
    }

    #[inline(always)]
    fn prefix(&self, family: u8, address: [u64; 2]) -> Option<PrefixEntry> {
        if family == V4::FAMILY {
            PREFIXES_V4.get(LpmKey::<2>::new().of_ipv4(address[1] as u32)).copied()
        } else {
            PREFIXES_V6.get(LpmKey::<5>::new().of_ipv6(address)).copied()
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
    fn rows(&self, index: u32) -> Option<&TableRows> {
        (index < bound!(rows)).then(|| ROWS.at(index))
    }

    #[inline(always)]
    fn backend(&self, index: u16, bank: u32) -> Option<&Backend> {
        let entry = entry(index, bank);
        (entry < bound!(backends)).then(|| BACKENDS.at(entry))
    }

    #[inline(always)]
    fn ipv6_endpoints(&self, index: u16, bank: u32) -> Option<&Ipv6Endpoints> {
        IPV6_ENDPOINTS.get(entry(index, bank))
    }
}

/// A frame that may have several buffers. All headers are in the linear part.
struct WholeFrame<'c> {
    linear: XdpFrame,
    ctx: &'c XdpContext,
}

impl Frame for WholeFrame<'_> {
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
        bytes <= self.linear.len() || bytes as u64 <= whole_length(self.ctx)
    }
}

/// Length of the frame in all its buffers.
#[inline(always)]
fn whole_length(ctx: &XdpContext) -> u64 {
    // SAFETY: a plain helper call on this program's own context.
    unsafe { bpf_xdp_get_buff_len(ctx.ctx) }
}

/// The parts of the general program.
mod part {
    pub(super) const GENERAL: u32 = 0;
    pub(super) const FORWARD: u32 = 1;
    pub(super) const ANSWER: u32 = 2;
}

/// Tail-calls a part of the general program. Returns, with a verdict, only if the slot is empty.
#[inline(always)]
fn tail_call(ctx: &XdpContext, part: u32) -> u32 {
    // SAFETY: the context is this program's own.
    unsafe { PARTS.tail_call(ctx, part) };
    finish(ctx, Reason::Inconsistent, 0)
}

/// Handles ordinary packets on the fast path. This program is attached.
#[xdp(frags)]
#[inline(always)]
fn glb_director(ctx: XdpContext) -> u32 {
    trace::begin(&ctx);
    let frame = XdpFrame::new(&ctx);
    let received = frame.len();
    let sent = match fast_path::ethertype(&frame) {
        Some(fast_path::IPV4) => fast_path::match_v4(&Maps, &frame)
            .map_or(FastResult::GeneralProgram, |bound| send_fast::<V4>(&ctx, &bound, received)),
        Some(fast_path::IPV6) => fast_path::match_v6(&Maps, &frame)
            .map_or(FastResult::GeneralProgram, |bound| send_fast::<V6>(&ctx, &bound, received)),
        _ => FastResult::GeneralProgram,
    };
    match sent {
        FastResult::Sent(verdict) => verdict,
        FastResult::GeneralProgram => tail_call(&ctx, part::GENERAL),
    }
}

/// The result of the fast path.
enum FastResult {
    Sent(u32),
    GeneralProgram,
}

#[inline(always)]
fn send_fast<A: Address>(
    ctx: &XdpContext,
    bound: &fast_path::MatchedFlow<'_>,
    received: usize,
) -> FastResult {
    // The frame grows before the hash, so that few registers are live across the call.
    // SAFETY: the context is this program's own; the frame's pointers are made anew below.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(fast_path::GROWTH as i32)) } != 0 {
        return FastResult::GeneralProgram;
    }
    let mut frame = XdpFrame::of_length(ctx, received + fast_path::GROWTH);
    let Some(backend) = fast_path::send::<_, _, A>(&Maps, &mut frame, bound) else {
        // SAFETY: as above. Undoing the growth cannot fail.
        unsafe { bpf_xdp_adjust_head(ctx.ctx, fast_path::GROWTH as i32) };
        return FastResult::GeneralProgram;
    };
    let table_slot =
        trace::number(|| TABLES.get(bound.slot.table).map_or(0, |table| table.counter_slot));
    FastResult::Sent(transmit(ctx, backend, received as u64, table_slot))
}

/// Counts a frame for `backend` and sends it. The table's counter is not updated: user space adds up the
/// counters of the table's backends.
#[inline(always)]
fn transmit(ctx: &XdpContext, backend: &Backend, received: u64, table_slot: u32) -> u32 {
    if let Some(counter) = BACKEND_COUNTERS.get_ptr_mut(u32::from(backend.counter_slot)) {
        // SAFETY: the pointer is to this CPU's own counter, which lives as long as the map.
        count(unsafe { &mut *counter }, received);
    }
    // SAFETY: the context is this program's own.
    let arrived_on = unsafe { (*ctx.ctx).ingress_ifindex };
    let verdict = if backend.interface == arrived_on {
        xdp_action::XDP_TX
    } else {
        // SAFETY: a plain helper call; an interface that is gone makes it an aborted packet.
        unsafe { bpf_redirect(backend.interface, 0) as u32 }
    };
    trace::end(ctx, verdict, Reason::Encapsulated as u8, table_slot);
    verdict
}

/// Counts a frame that is not sent, and returns its verdict.
#[inline(always)]
fn finish(ctx: &XdpContext, reason: Reason, counter_slot: u32) -> u32 {
    finish_numbered(ctx, reason as u8, counter_slot)
}

#[inline(always)]
fn finish_numbered(ctx: &XdpContext, reason: u8, counter_slot: u32) -> u32 {
    count_table(counter_slot, reason, whole_length(ctx));
    let verdict =
        if PASSES >> reason & 1 != 0 { xdp_action::XDP_PASS } else { xdp_action::XDP_DROP };
    trace::end(ctx, verdict, reason, counter_slot);
    verdict
}

/// First part of the general program: parses the frame.
#[xdp(frags)]
#[inline(always)]
fn general(ctx: XdpContext) -> u32 {
    let frame = WholeFrame { linear: XdpFrame::new(&ctx), ctx: &ctx };
    let packet: Packet = match parse(&frame) {
        Ok(packet) => packet,
        Err(reason) => return finish(&ctx, reason, 0),
    };
    let Some(work) = SCRATCH.get_ptr_mut(0) else { return finish(&ctx, Reason::Inconsistent, 0) };
    // SAFETY: this CPU's element, which has no other user until the frame has its verdict.
    unsafe {
        (*work).packet = packet;
        (*work).hops.count = 0;
    }
    tail_call(&ctx, part::FORWARD)
}

/// Second part of the general program: chooses the backend and encapsulates the packet.
#[xdp(frags)]
#[inline(always)]
fn forward_packet(ctx: XdpContext) -> u32 {
    let Some(work) = SCRATCH.get_ptr_mut(0) else { return finish(&ctx, Reason::Inconsistent, 0) };
    // SAFETY: as in `general`, which wrote the element.
    let work = unsafe { &mut *work };
    match send_general(&ctx, &work.packet, &mut work.hops) {
        Ok(verdict) => verdict,
        Err(rejection) if rejection.reason_number() == Reason::TooBig as u8 => {
            work.inner_mtu = u32::from(rejection.inner_mtu());
            work.counter_slot = rejection.counter_slot();
            tail_call(&ctx, part::ANSWER)
        }
        Err(rejection) => {
            finish_numbered(&ctx, rejection.reason_number(), rejection.counter_slot())
        }
    }
}

#[inline(always)]
fn send_general(ctx: &XdpContext, packet: &Packet, hops: &mut Hops) -> Result<u32, Rejection> {
    let send = plan_encapsulation(&Maps, packet, hops)?;
    let reject = |reason| Rejection::new(reason, send.counter_slot);
    let received = whole_length(ctx);
    let total = encap::outer_length(&send, packet, hops).ok_or(reject(Reason::TooLong))?;
    let tags = encap::tags_to_send(&Maps, &packet.tags);
    let growth = encap::growth(&send, hops.len(), &packet.tags, &tags) as i32;
    // SAFETY: the context is this program's own; the frame's pointers are made anew below.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -growth) } != 0 {
        return Err(reject(Reason::NoHeadroom));
    }
    if !encap::write(&mut XdpFrame::new(ctx), &Maps, &send, packet, hops, total) {
        return Err(reject(Reason::Inconsistent));
    }
    Ok(transmit(ctx, send.backend, received, send.counter_slot))
}

/// Third part of the general program: turns a packet that is too big into the ICMP reply.
#[xdp(frags)]
#[inline(always)]
fn answer(ctx: XdpContext) -> u32 {
    let Some(work) = SCRATCH.get_ptr_mut(0) else { return finish(&ctx, Reason::Inconsistent, 0) };
    // SAFETY: as in `forward_packet`.
    let work = unsafe { &mut *work };
    let received = whole_length(&ctx);
    let tags = &work.packet.tags;
    if may_reply() && become_reply(&ctx, work.packet.flow.family, tags, work.inner_mtu as u16) {
        count_table(work.counter_slot, Reason::TooBig as u8, received);
        trace::end(&ctx, xdp_action::XDP_TX, Reason::TooBig as u8, work.counter_slot);
        xdp_action::XDP_TX
    } else {
        let reason = Reason::TooBigUnanswered as u8;
        count_table(work.counter_slot, reason, received);
        trace::end(&ctx, xdp_action::XDP_DROP, reason, work.counter_slot);
        xdp_action::XDP_DROP
    }
}

#[inline(always)]
fn become_reply(ctx: &XdpContext, family: u8, tags: &Tags, mtu: u16) -> bool {
    let frame = XdpFrame::new(ctx);
    if family == V4::FAMILY {
        let Some(headers) = icmp_too_big::reply_v4(&frame, tags, mtu) else { return false };
        replace(ctx, icmp_too_big::V4_QUOTE, icmp_too_big::V4_GROWTH, tags, headers)
    } else {
        let Some(headers) = icmp_too_big::reply_v6(&frame, tags, mtu) else { return false };
        replace(ctx, icmp_too_big::V6_QUOTE, icmp_too_big::V6_GROWTH, tags, headers)
    }
}

/// Cuts the frame to `quote` bytes of its IP packet and writes the reply's headers in front of them.
#[inline(always)]
fn replace<I: IpHeader>(
    ctx: &XdpContext,
    quote: usize,
    growth: usize,
    tags: &Tags,
    headers: IcmpReply<I>,
) -> bool {
    let keep = IP_OFFSET + tags.len() + quote;
    // SAFETY: the context is this program's own; the frame's pointers are made anew below.
    let moved = unsafe {
        bpf_xdp_adjust_tail(ctx.ctx, keep as i32 - whole_length(ctx) as i32) == 0
            && bpf_xdp_adjust_head(ctx.ctx, -(growth as i32)) == 0
    };
    moved && icmp_too_big::write(&mut XdpFrame::new(ctx), tags, headers)
}

#[inline(always)]
fn count_table(slot: u32, reason: u8, bytes: u64) {
    if let Some(counters) = TABLE_COUNTERS.get_ptr_mut(slot) {
        // SAFETY: the pointer is to this CPU's own counters, which live as long as the map.
        count(unsafe { &mut (*counters).by_reason[reason as usize % MAX_REASONS] }, bytes);
    }
}

/// True if this CPU may send another reply in this second.
#[inline(always)]
fn may_reply() -> bool {
    let limit = CONFIG.load().answers_per_second;
    if limit == 0 {
        return true;
    }
    let Some(answers) = REPLY_RATE.get_ptr_mut(0) else { return false };
    // SAFETY: a plain helper call; the pointer is to this CPU's own element.
    unsafe {
        let second = bpf_ktime_get_ns() / 1_000_000_000;
        if (*answers).second != second {
            *answers = ReplyRate { second, sent: 0 };
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
