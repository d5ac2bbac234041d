//! The tc program that lowers the MSS of SYN-ACKs to clients. It shares the VIPs with the XDP program of its
//! generation.

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

/// Counts SYN-ACKs whose MSS was lowered. It outlives generations.
#[map]
static CLAMPED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// The VIPs of this generation.
struct ConfiguredVips;

impl Vips for ConfiguredVips {
    #[inline(always)]
    fn is_vip<A: Address>(&self, address: &A) -> bool {
        local_state::vip(address).is_some()
    }
}

/// Lowers the MSS of a VIP's SYN-ACK. The packet always goes on to the next tc program.
#[classifier]
fn glb_mss_clamp(ctx: TcContext) -> i32 {
    // The headers of a SYN-ACK that this kernel makes are linear.
    let limits = Limits { v4: config!(mss_v4) as u16, v6: config!(mss_v6) as u16 };
    if let Some(change) = clamp(&XdpFrame::new(&ctx), limits, &ConfiguredVips) {
        let (from, to) = change.words();
        let [from, to] = [from, to].map(|word| u64::from(u16::from_ne_bytes(word)));
        // If the hardware computes the checksum, the field holds a sum over the addresses only and the
        // kernel leaves it unchanged. The MSS is written only if the checksum could be updated.
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
