//! Whose flow it is, by the kernel's own socket tables.

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

/// The network namespace of the interface that the packet came in by, and no other.
const CURRENT_NETNS: u64 = -1i64 as u64;

/// `TCP_LISTEN` of the kernel's tcp_states.h.
const LISTEN: u32 = 10;

/// Whose flow it is.
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
    // SAFETY: not null, so a socket that is ours to read until it is released below.
    let state = unsafe { (*socket).state };
    let owner = if state != LISTEN {
        SocketMatch::Socket
    } else if ack.is_some_and(|ack| is_cookie(socket, flow, ack)) {
        SocketMatch::SynCookie
    } else {
        SocketMatch::NoSocket
    };
    // SAFETY: the one reference that the look-up took.
    unsafe { bpf_sk_release(socket.cast()) };
    owner
}

/// Source and destination port as they lie on the wire.
#[inline(always)]
fn ports<A: Address>(flow: &Flow<A>) -> u32 {
    u32::from(flow.source_port.to_be()) | u32::from(flow.destination_port.to_be()) << 16
}

#[inline(always)]
fn look_up<Tuple, const LEN: usize>(ctx: &XdpContext, mut tuple: Tuple) -> *mut bpf_sock {
    const { assert!(LEN <= size_of::<Tuple>()) };
    let tuple: *mut bpf_sock_tuple = from_mut(&mut tuple).cast();
    // SAFETY: the tuple is that long, which is what tells the kernel its family.
    unsafe { bpf_skc_lookup_tcp(ctx.ctx.cast(), tuple, LEN as u32, CURRENT_NETNS, 0) }
}

/// Whether the segment returns a cookie that the listener's kernel has made.
#[inline(always)]
fn is_cookie<A: Address>(listener: *mut bpf_sock, flow: &Flow<A>, ack: Ack) -> bool {
    // The kernel reads versions, addresses, ports, numbers and flags, and these headers have no
    // other: made here, they cost less than two copies out of the packet by the kernel. Made of
    // words of eight bytes, since the verifier wants the stack written at aligned places, and the
    // compiler would join smaller fields without a look at where they lie.
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

/// Two words in the order in which they lie in memory.
#[inline(always)]
fn join(first: u32, second: u32) -> u64 {
    u64::from(first) | u64::from(second) << 32
}

#[inline(always)]
fn check<Ip, const LEN: usize>(listener: *mut bpf_sock, mut ip: Ip, mut tcp: [u64; 3]) -> bool {
    const { assert!(LEN <= size_of::<Ip>() && TcpHeader::LEN <= size_of::<[u64; 3]>()) };
    // SAFETY: both headers are whole, on this program's stack, and as long as is said.
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
