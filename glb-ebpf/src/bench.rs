//! Programs for the benchmark: what surrounds the program under test, and the floor that it is
//! compared with.
#![no_std]
#![no_main]

use core::hint::black_box;

use aya_ebpf::{
    Global,
    bindings::{
        BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO,
        BPF_F_MMAPABLE, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_sock_tuple, xdp_action,
    },
    helpers::{bpf_sk_release, bpf_skc_lookup_tcp, bpf_xdp_adjust_head},
    macros::{classifier, map, xdp},
    maps::{Array, PerCpuArray, ProgramArray},
    programs::{TcContext, XdpContext},
};
use glb_common::{
    checksum::fold, fast_path, packet_access::FrameMut as _, wire::ethernet::EthernetHeader,
};

mod packet_access;
use packet_access::XdpFrame;

/// Bytes of the packet under test.
#[unsafe(no_mangle)]
static LENGTH: Global<u64> = Global::new(64);
/// True if it is an IPv6 packet.
#[unsafe(no_mangle)]
static IS_V6: Global<u32> = Global::new(0);
/// Number of flows less one; their number is a power of two.
#[unsafe(no_mangle)]
static FLOW_MASK: Global<u64> = Global::new(0);

/// The program under test, which takes frames in several buffers: an array holds one kind only.
#[map]
static UNDER_TEST: ProgramArray = ProgramArray::with_max_entries(1, 0);
/// State of the generator of flows.
#[map]
static STATE: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The program under test, if it takes frames in one buffer only.
#[map]
static LINEAR_UNDER_TEST: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Undoes what the last run did to the packet, gives it the next flow's source address and port,
/// and goes on to the program under test. (The kernel does not reset the packet between the runs of
/// one `BPF_PROG_TEST_RUN`.)
#[xdp(frags)]
fn rearm(ctx: XdpContext) -> u32 {
    if rearm_packet(&ctx) {
        // SAFETY: a tail call; it comes back only if the slot is empty.
        unsafe { UNDER_TEST.tail_call(&ctx, 0) };
    }
    xdp_action::XDP_ABORTED
}

/// As `rearm`, for a program under test that takes frames in one buffer only.
#[xdp]
fn rearm_linear(ctx: XdpContext) -> u32 {
    if rearm_packet(&ctx) {
        // SAFETY: a tail call; it comes back only if the slot is empty.
        unsafe { LINEAR_UNDER_TEST.tail_call(&ctx, 0) };
    }
    xdp_action::XDP_ABORTED
}

/// The number of the next packet's flow.
#[inline(always)]
fn next_flow() -> Option<u64> {
    let state = STATE.get_ptr_mut(0)?;
    // SAFETY: a live element of the map; test runs do not overlap.
    unsafe {
        // Knuth's constants for MMIX.
        *state = (*state)
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        Some((*state >> 32) & FLOW_MASK.load())
    }
}

#[inline(always)]
fn rearm_packet(ctx: &XdpContext) -> bool {
    // The compiler must not find out that half of the difference is enough: the verifier allows no
    // 32-bit arithmetic with packet pointers.
    let growth = black_box((ctx.data_end() - ctx.data()) as u64) - LENGTH.load();
    // Called in any case: what the undoing costs is part of the surroundings, not of the program
    // under test.
    // SAFETY: the context is this program's own; pointers are made anew below.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, growth as i32) } != 0 {
        return false;
    }
    let Some(flow) = next_flow() else { return false };
    let mut frame = XdpFrame::new(ctx);
    let (ethertype, address, port) =
        if IS_V6.load() == 0 { ([8, 0], 26, 34) } else { ([0x86, 0xdd], 34, 54) };
    let ethernet =
        EthernetHeader { destination: [2, 0, 0, 0, 0, 1], source: [2, 0, 0, 0, 0, 2], ethertype };
    frame.write(0, ethernet)
        && frame.write(address, (0x0a00_0000 + flow as u32).to_be_bytes())
        && frame.write(port, (flow as u16 | 1024).to_be_bytes())
}

/// Bytes of a tunnelled packet that its handling may change: all in front of the inner headers.
const OUTER_LEN: usize = 54;

/// A tunnelled packet's outer headers with Ethernet in front, as they arrive.
#[map]
static OUTER: Array<[u8; OUTER_LEN]> = Array::with_max_entries(1, 0);

/// As `rearm`, for tunnelled packets: the outer headers are put back as they arrive, and the inner
/// packet gets the next flow's source address and port.
#[xdp(frags)]
fn rearm_tunnel(ctx: XdpContext) -> u32 {
    let missing = LENGTH.load() - black_box((ctx.data_end() - ctx.data()) as u64);
    // As above: called in any case.
    // SAFETY: the context is this program's own; pointers are made anew below.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(missing as i32)) } != 0 {
        return xdp_action::XDP_ABORTED;
    }
    let (Some(flow), Some(outer)) = (next_flow(), OUTER.get(0)) else {
        return xdp_action::XDP_ABORTED;
    };
    let mut frame = XdpFrame::new(&ctx);
    let (address, port) = if IS_V6.load() == 0 {
        (OUTER_LEN + 12, OUTER_LEN + 20)
    } else {
        (OUTER_LEN + 20, OUTER_LEN + 40)
    };
    let written = frame.write(0, *outer)
        && frame.write(address, (0x0a00_0000 + flow as u32).to_be_bytes())
        && frame.write(port, (flow as u16 | 1024).to_be_bytes());
    if written {
        // SAFETY: a tail call; it comes back only if the slot is empty.
        unsafe { UNDER_TEST.tail_call(&ctx, 0) };
    }
    xdp_action::XDP_ABORTED
}

/// The backend's floor: the outer headers are cut out and the packet is passed.
#[xdp(frags)]
fn floor_strip(ctx: XdpContext) -> u32 {
    const STRIP: usize = OUTER_LEN - EthernetHeader::LEN;
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + OUTER_LEN > end {
        return xdp_action::XDP_ABORTED;
    }
    let ethertype: u16 = if IS_V6.load() == 0 { 0x0008 } else { 0xdd86 };
    // The Ethernet header is written where it will be first, before the cut: so nothing has to be
    // looked at twice.
    // SAFETY: the first OUTER_LEN bytes are in the packet, as has just been checked.
    unsafe {
        let (from, to) = (start as *const u8, (start + STRIP) as *mut u8);
        to.cast::<u64>().write_unaligned(from.cast::<u64>().read_unaligned());
        to.add(8).cast::<u32>().write_unaligned(from.add(8).cast::<u32>().read_unaligned());
        to.add(12).cast::<u16>().write_unaligned(ethertype);
    }
    // SAFETY: the context is this program's own; no pointer is used any more.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, STRIP as i32) } == 0 {
        xdp_action::XDP_PASS
    } else {
        xdp_action::XDP_ABORTED
    }
}

/// The kernel's own part of what a backend does: one socket look-up for the inner packet, no more.
#[xdp(frags)]
fn look_up(ctx: XdpContext) -> u32 {
    const CURRENT_NETNS: u64 = -1i64 as u64;
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + OUTER_LEN + 40 > end {
        return xdp_action::XDP_ABORTED;
    }
    let inner = (start + OUTER_LEN) as *const u8;
    // SAFETY: an IPv4 packet and its ports are inside the packet by the check above, and an IPv6
    // one by the next; the tuple is as long as is said.
    let socket = unsafe {
        let word = |at: usize| inner.add(at).cast::<u64>().read_unaligned();
        if IS_V6.load() == 0 {
            let mut tuple = [word(12), word(20)];
            let tuple = (&raw mut tuple).cast::<bpf_sock_tuple>();
            bpf_skc_lookup_tcp(ctx.ctx.cast(), tuple, 12, CURRENT_NETNS, 0)
        } else {
            if start + OUTER_LEN + 60 > end {
                return xdp_action::XDP_ABORTED;
            }
            let mut tuple = [word(8), word(16), word(24), word(32), word(40)];
            let tuple = (&raw mut tuple).cast::<bpf_sock_tuple>();
            bpf_skc_lookup_tcp(ctx.ctx.cast(), tuple, 36, CURRENT_NETNS, 0)
        }
    };
    if !socket.is_null() {
        // SAFETY: the one reference that the look-up took.
        unsafe { bpf_sk_release(socket.cast()) };
    }
    xdp_action::XDP_TX
}

/// Passes everything: the backend of the throughput's comparison.
#[xdp(frags)]
fn pass(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Puts a TCP packet to the VIP of `bench tunnel` into the tunnel, as a director does, but for whole
/// trains of segments at once: the kernel cuts them afterwards.
#[classifier]
fn encapsulate(ctx: TcContext) -> i32 {
    const VIP: u32 = u32::from_ne_bytes([203, 0, 113, 10]);
    const IP: usize = EthernetHeader::LEN;
    const ADDED: usize = OUTER_LEN - IP;
    const BEHIND_MAC: u32 = 1;
    const FLAGS: u64 = (BPF_F_ADJ_ROOM_FIXED_GSO
        | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4
        | BPF_F_ADJ_ROOM_ENCAP_L4_UDP) as u64;
    if ctx.load::<u16>(12) != Ok(0x0008) || ctx.load::<u32>(IP + 16) != Ok(VIP) {
        return TC_ACT_UNSPEC;
    }
    let Some(outer) = OUTER.get_ptr(0) else { return TC_ACT_SHOT };
    if ctx.skb.adjust_room(ADDED as i32, BEHIND_MAC, FLAGS).is_err() {
        return TC_ACT_SHOT;
    }
    let total = ctx.len() - IP as u32;
    // SAFETY: a live element of the map, which is OUTER_LEN bytes long.
    let word =
        |at: usize| unsafe { outer.cast::<u8>().add(IP + at).cast::<u64>().read_unaligned() };
    let mut words = [word(0), word(8), word(16), word(24), word(32)];
    // The lengths: IP's is bytes 2 and 3, UDP's 24 and 25.
    words[0] |= u64::from((total as u16).to_be()) << 16;
    words[3] |= u64::from((total as u16).wrapping_sub(20).to_be());
    let half = |word: u64, at: u32| (word >> (16 * at)) as u32 & 0xffff;
    let sum = |word| half(word, 0) + half(word, 1) + half(word, 2) + half(word, 3);
    let header = sum(words[0]) + sum(words[1]) + half(words[2], 0) + half(words[2], 1);
    words[1] |= u64::from(!fold(header)) << 16;
    match ctx.skb.store(IP, &words, 0) {
        Ok(()) => TC_ACT_UNSPEC,
        Err(_) => TC_ACT_SHOT,
    }
}

/// Nothing at all: what the surroundings cost.
#[xdp(frags)]
fn nothing(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_TX
}

/// Steps that `chain` takes, at most [`MOST_STEPS`].
#[map]
static STEPS: Array<u32> = Array::with_max_entries(1, 0);
const MOST_STEPS: u32 = 256;

/// A cost that is known: steps of which each waits for the one before.
#[xdp(frags)]
fn chain(_ctx: XdpContext) -> u32 {
    let steps = STEPS.get(0).copied().unwrap_or(0);
    let mut value = black_box(u64::from(steps));
    for step in 0..MOST_STEPS {
        if step >= steps {
            break;
        }
        value = black_box(value ^ value >> 7).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    // Never 0, which only this program knows.
    if value == 0 { xdp_action::XDP_ABORTED } else { xdp_action::XDP_TX }
}

/// What the floor writes: the outer headers of one flow to one backend, whole.
#[unsafe(no_mangle)]
static OUTER_WORDS: Global<[u64; 7]> = Global::new([0; 7]);

/// The floor: room in front, constant outer headers with a correct checksum, sent.
#[xdp(frags)]
fn floor(ctx: XdpContext) -> u32 {
    // SAFETY: the context is this program's own; pointers are made anew below.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(fast_path::GROWTH as i32)) } != 0 {
        return xdp_action::XDP_ABORTED;
    }
    let [a, b, c, d, e, f, last] = OUTER_WORDS.load();
    let hop = (last >> 16) as u32;
    match XdpFrame::new(&ctx).write_outer([a, b, c, d, e, f], last as u16, hop) {
        Some(()) => xdp_action::XDP_TX,
        None => xdp_action::XDP_ABORTED,
    }
}

/// The frame that `generate` sends, whole, as little-endian words.
#[map]
static FRAME: Array<[u64; FRAME_WORDS]> = Array::with_max_entries(1, 0);
/// Words of that frame.
const FRAME_WORDS: usize = 10;
/// Frames that have come back.
#[map]
static RETURNED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Sends a frame of the next flow. Live frames are used again as the programs left them, so every byte
/// is written.
#[xdp(frags)]
fn generate(ctx: XdpContext) -> u32 {
    let (Some(frame), Some(flow)) = (FRAME.get(0), next_flow()) else {
        return xdp_action::XDP_ABORTED;
    };
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + 8 * FRAME_WORDS > end {
        return xdp_action::XDP_ABORTED;
    }
    let (address, port) = if IS_V6.load() == 0 { (26, 34) } else { (34, 54) };
    // SAFETY: inside the frame by the check above.
    unsafe {
        for (index, word) in frame.iter().enumerate() {
            (start as *mut u64).add(index).write_unaligned(*word);
        }
        let address = (start + address) as *mut u32;
        address.write_unaligned((0x0a00_0000 + flow as u32).to_be());
        ((start + port) as *mut u16).write_unaligned((flow as u16 | 1024).to_be());
    }
    xdp_action::XDP_TX
}

/// Counts what comes back, and ends it.
#[xdp(frags)]
fn sink(_ctx: XdpContext) -> u32 {
    if let Some(count) = RETURNED.get_ptr_mut(0) {
        // SAFETY: this CPU's own element.
        unsafe { *count += 1 };
    }
    xdp_action::XDP_DROP
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
