//! Looks flows up in the kernel's socket table.

use core::{mem::size_of, ptr::from_mut};

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_tuple, tcphdr},
    helpers::{bpf_sk_release, bpf_skc_lookup_tcp, bpf_tcp_check_syncookie},
    programs::XdpContext,
};
use glb_common::{
    flow::{Address, Flow},
    second_chance::{Ack, SocketMatch},
    wire::tcp::{self, TcpHeader},
};

/// Limits the look-up to the network namespace of the receiving interface.
const CURRENT_NETNS: u64 = -1i64 as u64;

/// `TCP_LISTEN` of the kernel's tcp_states.h.
const LISTEN: u32 = 10;

/// Finds the connection of a flow, or the listener that accepts the segment's SYN cookie.
#[inline(always)]
pub(crate) fn find<A: Address>(ctx: &XdpContext, flow: &Flow<A>, ack: Option<Ack>) -> SocketMatch {
    // The kernel's `struct bpf_sock_tuple` in words: addresses, then ports, network order.
    let ports = ports(flow);
    let ([_, source], [_, destination]) = (flow.source.words(), flow.destination.words());
    let socket = if A::FAMILY == 4 {
        look_up::<_, 12>(ctx, [join(source as u32, destination as u32), ports.into()])
    } else {
        let ([a, b], [c, d]) = (flow.source.words(), flow.destination.words());
        look_up::<_, 36>(ctx, [a, b, c, d, ports.into()])
    };
    if socket.is_null() {
        return SocketMatch::NoSocket;
    }
    // SAFETY: the pointer is not null; the reference is held until it is released below.
    let state = unsafe { (*socket).state };
    let owner = if state != LISTEN {
        SocketMatch::Socket
    } else if ack.is_some_and(|ack| is_cookie(socket, flow, ack)) {
        SocketMatch::SynCookie
    } else {
        SocketMatch::NoSocket
    };
    // SAFETY: releases the reference that the look-up took.
    unsafe { bpf_sk_release(socket.cast()) };
    owner
}

/// Source and destination port in network byte order, in one word.
#[inline(always)]
fn ports<A: Address>(flow: &Flow<A>) -> u32 {
    u32::from(flow.source_port.to_be()) | u32::from(flow.destination_port.to_be()) << 16
}

#[inline(always)]
fn look_up<Tuple, const LEN: usize>(ctx: &XdpContext, mut tuple: Tuple) -> *mut bpf_sock {
    const { assert!(LEN <= size_of::<Tuple>()) };
    let tuple: *mut bpf_sock_tuple = from_mut(&mut tuple).cast();
    // SAFETY: the tuple has this length, by which the kernel knows its family.
    unsafe { bpf_skc_lookup_tcp(ctx.ctx.cast(), tuple, LEN as u32, CURRENT_NETNS, 0) }
}

/// True if the segment returns a SYN cookie that this kernel made for the listener.
#[inline(always)]
fn is_cookie<A: Address>(listener: *mut bpf_sock, flow: &Flow<A>, ack: Ack) -> bool {
    // The kernel reads versions, addresses, ports, sequence numbers and flags. Building headers with just
    // those costs less than copying them out of the packet. They are built of 8-byte words because the
    // verifier requires aligned stores to the stack.
    let ports = join(ports(flow), ack.sequence);
    // A header of five words, ACK.
    let flags = u32::from_ne_bytes([0x50, tcp::ACK, 0, 0]);
    let tcp = [ports, join(ack.acknowledgement, flags), 0];
    if A::FAMILY == 4 {
        let ([_, source], [_, destination]) = (flow.source.words(), flow.destination.words());
        check::<_, 20>(listener, [0x45, join(0, source as u32), destination], tcp)
    } else {
        let ([a, b], [c, d]) = (flow.source.words(), flow.destination.words());
        check::<_, 40>(listener, [0x60, a, b, c, d], tcp)
    }
}

/// Joins two words in memory order.
#[inline(always)]
fn join(first: u32, second: u32) -> u64 {
    u64::from(first) | u64::from(second) << 32
}

#[inline(always)]
fn check<Ip, const LEN: usize>(listener: *mut bpf_sock, mut ip: Ip, mut tcp: [u64; 3]) -> bool {
    const { assert!(LEN <= size_of::<Ip>() && TcpHeader::LEN <= size_of::<[u64; 3]>()) };
    // SAFETY: both headers lie on this program's stack and have the given lengths.
    let answer = unsafe {
        bpf_tcp_check_syncookie(
            listener.cast(),
            from_mut(&mut ip).cast(),
            LEN as u32,
            from_mut(&mut tcp).cast::<tcphdr>(),
            TcpHeader::LEN as u32,
        )
    };
    answer == 0
}
