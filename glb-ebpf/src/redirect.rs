//! The backend's XDP program: maps, socket look-ups and edits. Every decision is in glb-common.
#![no_std]
#![no_main]
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a key that is moved is copied on the stack, at times by words that the verifier \
              finds misaligned"
)]

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, xdp_action},
    helpers::{bpf_redirect, bpf_xdp_adjust_head, bpf_xdp_get_buff_len},
    macros::{map, xdp},
    maps::{HashMap, LpmTrie, PerCpuArray},
    programs::XdpContext,
};
use glb_common::{
    frame::{Frame, FrameMut as _, Nested, Wire},
    hash::Address,
    parse::Flow,
    reason::{Action, RedirectReason as Reason},
    second_chance::{
        Ack, Forward, Host, Owner, Take, Verdict, decide,
        layout::{FEW, Peer, RedirectCounters, Settings},
    },
    wire::ethernet::EthernetHeader,
};

mod frame;
mod prefix_key;
mod trace;
use frame::XdpFrame;
use prefix_key::Words;

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

mod mss_clamp;
mod sockets;

// What belongs to a generation; sizes are set by user space when it loads the program. Elements are
// not preallocated: a replaced one then lives as long as somebody reads it.

/// Fellow backends over IPv4 and the way to them. User space follows the ways.
#[map]
static PEERS_V4: HashMap<[u8; 4], Peer> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);
/// Fellow backends over IPv6.
#[map]
static PEERS_V6: HashMap<[u8; 16], Peer> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);
/// VIPs, where there are many.
#[map]
static VIPS_V4: HashMap<[u8; 4], u8> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);
/// VIPs, where there are many.
#[map]
static VIPS_V6: HashMap<[u8; 16], u8> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);
/// Directors, where there are many.
#[map]
static DIRECTORS_V4: LpmTrie<[u8; 4], u8> = LpmTrie::with_max_entries(1, BPF_F_NO_PREALLOC);
/// Directors, where there are many.
#[map]
static DIRECTORS_V6: LpmTrie<[u8; 16], u8> = LpmTrie::with_max_entries(1, BPF_F_NO_PREALLOC);

// What outlives generations.

#[map]
static COUNTERS: PerCpuArray<RedirectCounters> = PerCpuArray::with_max_entries(1, 0);

/// A frame whose end may lie beyond what can be read here.
struct Received<'a> {
    linear: XdpFrame,
    ctx: &'a XdpContext,
}

impl Frame for Received<'_> {
    #[inline(always)]
    fn read<T: Wire>(&self, offset: usize) -> Option<T> {
        self.linear.read(offset)
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.linear.len()
    }

    #[inline(always)]
    fn holds(&self, bytes: usize) -> bool {
        // Only a frame in several buffers needs to ask the kernel.
        // SAFETY: the context is this program's own.
        bytes <= self.linear.len() || bytes as u64 <= unsafe { bpf_xdp_get_buff_len(self.ctx.ctx) }
    }
}

impl Nested for Received<'_> {
    type Rest<'a>
        = XdpFrame
    where
        Self: 'a;

    #[inline(always)]
    fn rest(&self, offset: usize) -> Option<XdpFrame> {
        self.linear.rest(offset)
    }
}

/// This machine, as its maps and its kernel know it.
struct ThisHost<'a> {
    ctx: &'a XdpContext,
}

#[inline(always)]
fn bytes_4(low: u64) -> [u8; 4] {
    (low as u32).to_le_bytes()
}

#[inline(always)]
fn bytes_16([high, low]: [u64; 2]) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&high.to_le_bytes());
    bytes[8..].copy_from_slice(&low.to_le_bytes());
    bytes
}

#[inline(always)]
fn has(flag: u64) -> bool {
    setting!(flags) & flag != 0
}

#[inline(always)]
fn is_vip<A: Address>(address: &A) -> bool {
    let [high, low] = address.words();
    let few = if A::FAMILY == 4 {
        !has(Settings::NO_VIPS_V4) && (0..FEW).any(|i| setting!(vips_v4[i]) == low)
    } else {
        !has(Settings::NO_VIPS_V6)
            && (0..FEW).any(|i| setting!(vips_v6[i][1]) == low && setting!(vips_v6[i][0]) == high)
    };
    if few || !has(Settings::MANY_VIPS) {
        return few;
    }
    if A::FAMILY == 4 {
        VIPS_V4.get_ptr(&bytes_4(low)).is_some()
    } else {
        VIPS_V6.get_ptr(&bytes_16([high, low])).is_some()
    }
}

impl Host for ThisHost<'_> {
    #[inline(always)]
    fn gives_second_chance(&self) -> bool {
        has(Settings::SECOND_CHANCE)
    }

    #[inline(always)]
    fn passes_strangers(&self) -> bool {
        has(Settings::PASS_STRANGERS)
    }

    #[inline(always)]
    fn is_own<A: Address>(&self, address: &A) -> bool {
        let [high, low] = address.words();
        if A::FAMILY == 4 {
            !has(Settings::NO_OWN_V4) && (0..FEW).any(|i| setting!(own_v4[i]) == low)
        } else {
            !has(Settings::NO_OWN_V6)
                && (0..FEW).any(|i| setting!(own_v6[i][1]) == low && setting!(own_v6[i][0]) == high)
        }
    }

    #[inline(always)]
    fn may_send<A: Address>(&self, source: &A) -> bool {
        let [high, low] = source.words();
        let director = if A::FAMILY == 4 {
            !has(Settings::NO_DIRECTORS_V4)
                && (0..FEW)
                    .any(|i| low & setting!(directors_v4[i][1]) == setting!(directors_v4[i][0]))
        } else {
            !has(Settings::NO_DIRECTORS_V6)
                && (0..FEW).any(|i| {
                    low & setting!(directors_v6[i][3]) == setting!(directors_v6[i][1])
                        && high & setting!(directors_v6[i][2]) == setting!(directors_v6[i][0])
                })
        };
        if director || self.peer(source).is_some() {
            return true;
        }
        if !has(Settings::MANY_DIRECTORS) {
            return false;
        }
        if A::FAMILY == 4 {
            DIRECTORS_V4.get(Words::<2>::new().of_ipv4(low as u32)).is_some()
        } else {
            DIRECTORS_V6.get(Words::<5>::new().of_ipv6([high, low])).is_some()
        }
    }

    #[inline(always)]
    fn is_vip<A: Address>(&self, address: &A) -> bool {
        is_vip(address)
    }

    #[inline(always)]
    fn owner<A: Address>(&self, flow: &Flow<A>, ack: Option<Ack>) -> Owner {
        sockets::owner(self.ctx, flow, ack)
    }

    #[inline(always)]
    fn peer<A: Address>(&self, address: &A) -> Option<Peer> {
        let words = address.words();
        let peer = if A::FAMILY == 4 {
            PEERS_V4.get_ptr(&bytes_4(words[1]))
        } else {
            PEERS_V6.get_ptr(&bytes_16(words))
        };
        // SAFETY: user space replaces values whole (the kernel swaps the element under RCU) and
        // never removes one from a running generation.
        peer.map(|peer| unsafe { *peer })
    }
}

// The frame may lie in several buffers (jumbo frames); all headers are in the first.
#[xdp(frags)]
fn glb_redirect(ctx: XdpContext) -> u32 {
    trace::begin(&ctx);
    let received = Received { linear: XdpFrame::new(&ctx), ctx: &ctx };
    let bytes = received.len() as u64;
    let (verdict, reason) = match decide(&received, &ThisHost { ctx: &ctx }) {
        Verdict::Leave(reason) => (leave(reason), reason),
        Verdict::Take(take) => match strip(&ctx, &take) {
            Some(verdict) => (verdict, take.reason),
            None => (xdp_action::XDP_DROP, Reason::Refused),
        },
        Verdict::Send(forward) => match send(&ctx, &forward) {
            Some(verdict) => (verdict, forward.reason),
            None => (xdp_action::XDP_DROP, Reason::Refused),
        },
    };
    if let Some(counters) = COUNTERS.get_ptr_mut(0) {
        // SAFETY: the pointer is to this CPU's own counters, which live as long as the map.
        let counter = unsafe { &mut (*counters).by_reason[reason as usize] };
        counter.packets += 1;
        counter.bytes += bytes;
    }
    trace::end(&ctx, verdict, reason as u8, 0);
    verdict
}

#[inline(always)]
fn leave(reason: Reason) -> u32 {
    match reason.action() {
        Action::Pass => xdp_action::XDP_PASS,
        Action::Send | Action::Take | Action::Drop | Action::Answer => xdp_action::XDP_DROP,
    }
}

/// Cuts the tunnel's headers out, from behind the Ethernet header.
#[inline(always)]
fn strip(ctx: &XdpContext, take: &Take) -> Option<u32> {
    let ethernet = XdpFrame::new(ctx).read::<EthernetHeader>(0)?;
    // SAFETY: the context is this program's own; the frame's pointers are made anew below.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, take.strip as i32) } != 0 {
        return None;
    }
    let ethernet = EthernetHeader { ethertype: take.ethertype, ..ethernet };
    let mut frame = XdpFrame::new(ctx);
    (frame.write(0, ethernet) && take.mark(&mut frame)).then_some(xdp_action::XDP_PASS)
}

/// Readdresses the packet to the next hop and sends it there.
#[inline(always)]
fn send(ctx: &XdpContext, forward: &Forward) -> Option<u32> {
    if !forward.write(&mut XdpFrame::new(ctx)) {
        return None;
    }
    // SAFETY: the context is this program's own.
    let arrived_on = unsafe { (*ctx.ctx).ingress_ifindex };
    if forward.peer.interface == arrived_on {
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
