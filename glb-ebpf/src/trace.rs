//! Traces decisions.
//!
//! Both programs are built twice, without and with the feature `trace`. Without it the functions here are
//! empty and need no maps, so the programs that normally run pay nothing. During a trace the daemon replaces
//! them by the other build.

#[cfg(not(feature = "trace"))]
mod hooks {
    use aya_ebpf::programs::XdpContext;

    /// Starts the trace of a received frame.
    #[inline(always)]
    pub(crate) fn begin(_ctx: &XdpContext) {}

    /// Ends the trace with the frame's decision.
    #[inline(always)]
    pub(crate) fn end(_ctx: &XdpContext, _verdict: u32, _reason: u8, _slot: u32) {}

    /// Computes a number that only traces need.
    #[allow(dead_code, reason = "only the director needs it")]
    #[inline(always)]
    pub(crate) fn number(_of: impl FnOnce() -> u32) -> u32 {
        0
    }
}

#[cfg(feature = "trace")]
mod hooks {
    use core::mem::size_of;

    use aya_ebpf::{
        bindings::xdp_action,
        helpers::{
            bpf_get_prandom_u32, bpf_ktime_get_ns, bpf_xdp_get_buff_len, bpf_xdp_load_bytes,
        },
        macros::map,
        maps::{Array, PerCpuArray, RingBuf},
        programs::XdpContext,
    };
    use glb_common::{
        flow_dissector,
        trace::{MAX_SNAP, TraceEvent, TraceSettings, TraceTotals},
    };

    use crate::packet_access::XdpFrame;

    /// The trace's settings. They are in a map so that they can change while the program runs.
    #[map]
    static TRACE_SETTINGS: Array<TraceSettings> = Array::with_max_entries(1, 0);
    #[map]
    static TRACE_EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);
    #[map]
    static TRACE_TALLY: PerCpuArray<TraceTotals> = PerCpuArray::with_max_entries(1, 0);
    #[map]
    static TRACE_RECORD: PerCpuArray<Record> = PerCpuArray::with_max_entries(1, 0);

    /// The record that this CPU fills. No other XDP program interrupts this one, so it stays intact until
    /// the decision.
    #[repr(C)]
    struct Record {
        /// The second of the monotonic clock that `shown` counts in.
        second: u64,
        /// Number of records shown in that second.
        shown: u64,
        /// 1 if the received frame's headers match the filter.
        wanted: u64,
        event: TraceEvent,
        /// The received frame, followed by the sent frame.
        bytes: [u8; 2 * MAX_SNAP],
    }

    /// Copies a received frame whose headers match the filter, before the program changes it.
    ///
    /// It is not inlined, like [`end`]: the code around a call is compiled as it is without tracing.
    #[inline(never)]
    pub(crate) fn begin(ctx: &XdpContext) {
        let Some(record) = TRACE_RECORD.get_ptr_mut(0) else { return };
        let Some(settings) = TRACE_SETTINGS.get(0) else { return };
        let wanted = !settings.filter.needs_headers()
            || flow_dissector::visit(&XdpFrame::new(ctx), |ends| {
                settings.filter.matches_flow(ends)
            });
        // SAFETY: the pointer is to this CPU's record, which lives as long as the map and has no other user.
        let record = unsafe { &mut *record };
        record.wanted = u64::from(wanted);
        if wanted {
            record.event.received = length(ctx);
            record.event.before = copy(ctx, &raw mut record.bytes, 0, settings.snap);
        }
    }

    /// Ends the trace with the frame's decision.
    #[inline(never)]
    pub(crate) fn end(ctx: &XdpContext, verdict: u32, reason: u8, slot: u32) {
        let Some(record) = TRACE_RECORD.get_ptr_mut(0) else { return };
        let Some(settings) = TRACE_SETTINGS.get(0) else { return };
        let Some(tally) = TRACE_TALLY.get_ptr_mut(0) else { return };
        // SAFETY: as in `begin`.
        let (record, tally) = unsafe { (&mut *record, &mut *tally) };
        let reason = u32::from(reason);
        if record.wanted == 0 || !settings.filter.matches_decision(reason, slot) {
            return;
        }
        tally.wanted += 1;
        // SAFETY: a plain helper call.
        if settings.sample > 1 && unsafe { bpf_get_prandom_u32() } % settings.sample != 0 {
            tally.not_in_sample += 1;
            return;
        }
        // SAFETY: a plain helper call.
        let now = unsafe { bpf_ktime_get_ns() };
        let second = now / 1_000_000_000;
        if record.second != second {
            record.second = second;
            record.shown = 0;
        }
        if settings.per_second != 0 && record.shown >= u64::from(settings.per_second) {
            tally.over_rate += 1;
            return;
        }
        record.shown += 1;
        let left = length(ctx);
        let before = record.event.before as usize;
        // A dropped frame is not sent, and an unchanged one is not copied again.
        let leaves = verdict == xdp_action::XDP_TX
            || verdict == xdp_action::XDP_REDIRECT
            || verdict == xdp_action::XDP_PASS && left != record.event.received;
        let after =
            if leaves { copy(ctx, &raw mut record.bytes, before, settings.snap) } else { 0 };
        record.event = TraceEvent {
            time: now,
            // SAFETY: the context is this program's own.
            interface: unsafe { (*ctx.ctx).ingress_ifindex },
            verdict,
            reason,
            slot,
            received: record.event.received,
            left,
            before: record.event.before,
            after,
        };
        let length = size_of::<TraceEvent>() + bounded(before) + bounded(after as usize);
        // SAFETY: the event and both copies lie in the record one behind the other; both bounds
        // together are the size of `bytes`.
        let shown =
            unsafe { core::slice::from_raw_parts((&raw const record.event).cast::<u8>(), length) };
        match TRACE_EVENTS.output::<[u8]>(shown, 0) {
            Ok(()) => tally.shown += 1,
            Err(_) => tally.buffer_full += 1,
        }
    }

    /// Computes a number that only traces need.
    #[allow(dead_code, reason = "only the director needs it")]
    #[inline(always)]
    pub(crate) fn number(of: impl FnOnce() -> u32) -> u32 {
        of()
    }

    /// The frame's length in all buffers.
    #[inline(always)]
    fn length(ctx: &XdpContext) -> u32 {
        // SAFETY: the context is this program's own.
        unsafe { bpf_xdp_get_buff_len(ctx.ctx) as u32 }
    }

    /// Copies the frame's first bytes into `bytes` from `at` on. Returns how many.
    #[inline(always)]
    fn copy(ctx: &XdpContext, bytes: *mut [u8; 2 * MAX_SNAP], at: usize, snap: u32) -> u32 {
        let length = length(ctx).min(snap) as usize;
        if length == 0 {
            return 0;
        }
        let length = bounded(length);
        // SAFETY: `at` and `length` are each at most half of what is there.
        let done = unsafe {
            let to = bytes.cast::<u8>().add(bounded(at));
            bpf_xdp_load_bytes(ctx.ctx, 0, to.cast(), length as u32)
        };
        if done == 0 { length as u32 } else { 0 }
    }

    /// Bounds a length by [`MAX_SNAP`] so that the verifier sees it and the compiler cannot remove it.
    #[inline(always)]
    fn bounded(length: usize) -> usize {
        let length = core::hint::black_box(length);
        if length > MAX_SNAP { MAX_SNAP } else { length }
    }
}

#[allow(unused_imports, reason = "only the director needs all")]
pub(crate) use hooks::{begin, end, number};
