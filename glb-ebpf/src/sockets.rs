//! Whose flow it is, by the kernel's own socket tables.

use core::{
    mem::{MaybeUninit, size_of},
    ptr::from_mut,
};

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_tuple, tcphdr},
    helpers::{bpf_sk_release, bpf_skc_lookup_tcp, bpf_tcp_check_syncookie, bpf_xdp_load_bytes},
    programs::XdpContext,
};
use glb_common::{
    frame::Wire,
    hash::Address,
    parse::Flow,
    second_chance::{Ack, Owner},
    wire::{ipv4::Ipv4Header, ipv6::Ipv6Header, tcp::TcpHeader},
};

/// The network namespace of the interface that the packet came in by, and no other.
const CURRENT_NETNS: u64 = -1i64 as u64;

/// `TCP_LISTEN` of the kernel's tcp_states.h.
const LISTEN: u32 = 10;

/// The kernel's `struct bpf_sock_tuple` for one family: addresses, then ports, network order.
#[repr(C, align(8))]
struct Tuple<const N: usize> {
    source: [u8; N],
    destination: [u8; N],
    source_port: u16,
    destination_port: u16,
}

/// Whose flow it is.
#[inline(always)]
pub(crate) fn owner<A: Address>(ctx: &XdpContext, flow: &Flow<A>, ack: Option<Ack>) -> Owner {
    let source_port = flow.source_port.to_be();
    let destination_port = flow.destination_port.to_be();
    let ([_, source], [_, destination]) = (flow.source.words(), flow.destination.words());
    let socket = if A::FAMILY == 4 {
        look_up(
            ctx,
            Tuple {
                source: (source as u32).to_le_bytes(),
                destination: (destination as u32).to_le_bytes(),
                source_port,
                destination_port,
            },
            // Two addresses, two ports.
            12,
        )
    } else {
        look_up(
            ctx,
            Tuple {
                source: crate::bytes_16(flow.source.words()),
                destination: crate::bytes_16(flow.destination.words()),
                source_port,
                destination_port,
            },
            36,
        )
    };
    if socket.is_null() {
        return Owner::Nobody;
    }
    // SAFETY: not null, so a socket that is ours to read until it is released below.
    let state = unsafe { (*socket).state };
    let owner = if state != LISTEN {
        Owner::Here
    } else if ack.is_some_and(|ack| is_cookie::<A>(ctx, socket, ack)) {
        Owner::Cookie
    } else {
        Owner::Nobody
    };
    // SAFETY: the one reference that the look-up took.
    unsafe { bpf_sk_release(socket.cast()) };
    owner
}

#[inline(always)]
fn look_up<const N: usize>(ctx: &XdpContext, mut tuple: Tuple<N>, size: u32) -> *mut bpf_sock {
    let tuple: *mut bpf_sock_tuple = from_mut(&mut tuple).cast();
    // SAFETY: the tuple is `size` bytes long, which is what tells the kernel its family.
    unsafe { bpf_skc_lookup_tcp(ctx.ctx.cast(), tuple, size, CURRENT_NETNS, 0) }
}

/// Whether the segment returns a cookie that the listener's kernel has made.
#[inline(always)]
fn is_cookie<A: Address>(ctx: &XdpContext, listener: *mut bpf_sock, ack: Ack) -> bool {
    if A::FAMILY == 4 {
        check::<Ipv4Header>(ctx, listener, ack)
    } else {
        check::<Ipv6Header>(ctx, listener, ack)
    }
}

#[inline(always)]
fn check<Ip: Wire>(ctx: &XdpContext, listener: *mut bpf_sock, ack: Ack) -> bool {
    let (Some(mut ip), Some(mut tcp)) =
        (copy::<Ip>(ctx, ack.ip_offset), copy::<TcpHeader>(ctx, ack.tcp_offset))
    else {
        return false;
    };
    // The kernel reads addresses, ports and numbers; options do not matter to it.
    // SAFETY: both headers are whole, on this program's stack, and as long as is said.
    let answer = unsafe {
        bpf_tcp_check_syncookie(
            listener.cast(),
            from_mut(&mut ip).cast(),
            size_of::<Ip>() as u32,
            from_mut(&mut tcp).cast::<tcphdr>(),
            TcpHeader::LEN as u32,
        )
    };
    answer == 0
}

/// A copy of a header, made by the kernel: this far into the packet, at offsets that it cannot
/// know, the verifier loses sight of checks made here.
#[inline(always)]
fn copy<T: Wire>(ctx: &XdpContext, offset: usize) -> Option<T> {
    let mut copy = MaybeUninit::<T>::uninit();
    // SAFETY: the buffer is as long as is said.
    let answer = unsafe {
        bpf_xdp_load_bytes(ctx.ctx, offset as u32, copy.as_mut_ptr().cast(), size_of::<T>() as u32)
    };
    // SAFETY: filled by the kernel; any bytes are a valid T.
    (answer == 0).then(|| unsafe { copy.assume_init() })
}
