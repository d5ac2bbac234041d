//! The tc program that lowers the MSS of SYN-ACKs on their way to clients. It shares the VIPs with
//! the XDP program of its generation.

use aya_ebpf::{
    bindings::TC_ACT_UNSPEC,
    macros::{classifier, map},
    maps::PerCpuArray,
    programs::TcContext,
};
use glb_common::{
    flow::Address,
    mss::{Limits, Vips, clamp},
};

use crate::{
    local_state,
    packet_access::{Bounds, XdpFrame},
};

impl Bounds for TcContext {
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        (self.data(), self.data_end())
    }

    #[inline(always)]
    fn end_again(&self) -> usize {
        // SAFETY: the context is valid while the program runs.
        unsafe { (&raw const (*self.skb.skb).data_end).read_volatile() as usize }
    }
}

/// SYN-ACKs whose MSS was lowered. Outlives generations.
#[map]
static CLAMPED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

struct Configured;

impl Vips for Configured {
    #[inline(always)]
    fn is_vip<A: Address>(&self, address: &A) -> bool {
        local_state::vip(address).is_some()
    }
}

/// Never decides anything about a packet: other tc programs go on.
#[classifier]
fn glb_mss_clamp(ctx: TcContext) -> i32 {
    // The headers of a SYN-ACK that this kernel makes are linear.
    let limits = Limits { v4: config!(mss_v4) as u16, v6: config!(mss_v6) as u16 };
    if let Some(change) = clamp(&XdpFrame::new(&ctx), limits, &Configured) {
        let (from, to) = change.words();
        let [from, to] = [from, to].map(|word| u64::from(u16::from_ne_bytes(word)));
        // Where the checksum is left to the hardware, the kernel leaves it alone here: it is over
        // the addresses then. Unchanged is better than half changed.
        let checksum = ctx.skb.l4_csum_replace(change.checksum_offset, from, to, 2);
        if checksum.is_ok() {
            if let Some(clamped) = CLAMPED.get_ptr_mut(0) {
                // SAFETY: this CPU's own counter, which lives as long as the map.
                unsafe { *clamped += 1 };
            }
            #[expect(
                clippy::let_underscore_must_use,
                reason = "the place lies in the headers that were read above, so it cannot fail"
            )]
            let _ = ctx.skb.store(change.mss_offset, &change.new, 0);
        }
    }
    TC_ACT_UNSPEC
}
