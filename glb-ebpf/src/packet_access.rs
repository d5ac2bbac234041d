//! Access to the frame behind an XDP or tc context, as [`glb_common::packet_access`] defines it.

use core::{hint::assert_unchecked, mem::size_of, ptr};

use aya_ebpf::{helpers::bpf_csum_diff, programs::XdpContext};
use glb_common::{
    checksum::fold,
    icmp_too_big::Summed,
    packet_access::{Frame, FrameMut, MAX_OFFSET, Nested, Wire},
};

/// A context with a packet behind it.
pub(crate) trait Bounds {
    /// The addresses at which the linear part starts and ends.
    fn bounds(&self) -> (usize, usize);

    /// The end address, read from the context again.
    fn end_again(&self) -> usize;
}

impl Bounds for XdpContext {
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        (self.data(), self.data_end())
    }

    #[inline(always)]
    fn end_again(&self) -> usize {
        // SAFETY: the context is valid while the program runs.
        unsafe { (&raw const (*self.ctx).data_end).read_volatile() as usize }
    }
}

/// The linear part of the packet behind an XDP or tc context. Every access is checked against its end, as the
/// verifier requires. A new one is needed after each change of the packet's head or tail.
#[derive(Clone, Copy)]
pub(crate) struct XdpFrame {
    start: usize,
    end: usize,
    length: usize,
}

impl XdpFrame {
    #[inline(always)]
    pub(crate) fn new(ctx: &impl Bounds) -> Self {
        let (start, end) = ctx.bounds();
        // The compiler must not know that both ends are equal. It would drop pointer checks after length
        // checks, but the verifier requires them.
        Self { start, end, length: ctx.end_again() - start }
    }

    /// The same for a linear part of known length.
    #[inline(always)]
    #[allow(dead_code, reason = "not every program has a use for it")]
    pub(crate) fn of_length(ctx: &impl Bounds, length: usize) -> Self {
        let (start, end) = ctx.bounds();
        Self { start, end, length }
    }

    /// The address of a `T` at `offset`, if it lies inside.
    #[inline(always)]
    fn at<T>(&self, offset: usize) -> Option<*mut T> {
        if offset > MAX_OFFSET {
            return None;
        }
        let place = self.start + offset;
        // SAFETY: a packet never lies at address 0. The hint saves a null check.
        unsafe { assert_unchecked(place != 0) };
        (place + size_of::<T>() <= self.end).then_some(place as *mut T)
    }
}

impl Frame for XdpFrame {
    #[inline(always)]
    fn read<T: Wire>(&self, offset: usize) -> Option<T> {
        // SAFETY: inside the packet by the check above; T is plain bytes.
        self.at::<T>(offset).map(|place| unsafe { place.read_unaligned() })
    }

    #[inline(always)]
    fn window<const N: usize>(&self) -> Option<&[u8; N]> {
        // SAFETY: inside the packet by the check; bytes have no alignment.
        self.at::<[u8; N]>(0).map(|place| unsafe { &*place })
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.length
    }
}

impl Nested for XdpFrame {
    type Rest<'a>
        = Self
    where
        Self: 'a;

    #[inline(always)]
    fn rest(&self, offset: usize) -> Option<Self> {
        if offset > MAX_OFFSET {
            return None;
        }
        let mut start = self.start + offset;
        // The compiler must not know this pointer's origin. It would compute it again for each access,
        // and the verifier tracks a checked pointer by its register. Written to the stack and read back,
        // it is one opaque value to the compiler and still a packet pointer to the verifier.
        // SAFETY: a local variable.
        start = unsafe { core::ptr::read_volatile(&raw const start) };
        (start <= self.end).then_some(Self {
            start,
            end: self.end,
            length: self.length.wrapping_sub(offset),
        })
    }

    #[inline(always)]
    fn rest_at(&self, offset: usize) -> Option<Self> {
        // The verifier tracks constant offsets without this.
        let (start, end) = (self.start + offset, self.end);
        Some(Self { start, end, length: self.length.wrapping_sub(offset) })
    }
}

impl FrameMut for XdpFrame {
    #[inline(always)]
    fn window_mut<const N: usize>(&mut self) -> Option<&mut [u8; N]> {
        // SAFETY: inside the packet by the check; bytes have no alignment. The caller has this
        // frame for itself.
        self.at::<[u8; N]>(0).map(|place| unsafe { &mut *place })
    }

    #[inline(always)]
    fn write<T: Wire>(&mut self, offset: usize, value: T) -> bool {
        let Some(place) = self.at::<T>(offset) else { return false };
        // SAFETY: inside the packet by the check above; T is plain bytes.
        unsafe { place.write_unaligned(value) };
        true
    }

    #[inline(always)]
    fn write_words(&mut self, offset: usize, words: [u64; 6], last: u16) -> Option<()> {
        let place: *mut u64 = self.at::<[u8; 50]>(offset)?.cast();
        // SAFETY: 50 bytes inside the packet by the check above.
        unsafe {
            write_words(place, words);
            place.add(6).cast::<u16>().write_unaligned(last);
        }
        Some(())
    }

    #[inline(always)]
    fn write_outer(&mut self, words: [u64; 6], last: u16, hop: u32) -> Option<()> {
        let place: *mut u64 = self.at::<[u8; 54]>(0)?.cast();
        // SAFETY: 54 bytes inside the packet by the check above.
        unsafe {
            write_words(place, words);
            let rest = place.add(6).cast::<u16>();
            rest.write_unaligned(last);
            rest.add(1).cast::<u32>().write_unaligned(hop);
        }
        Some(())
    }
}

/// Stores six words.
///
/// # Safety
/// 48 bytes from `place` on are valid for writing.
#[inline(always)]
unsafe fn write_words(place: *mut u64, [a, b, c, d, e, f]: [u64; 6]) {
    // SAFETY: by this function's contract.
    unsafe {
        place.write_unaligned(a);
        place.add(1).write_unaligned(b);
        place.add(2).write_unaligned(c);
        place.add(3).write_unaligned(d);
        place.add(4).write_unaligned(e);
        place.add(5).write_unaligned(f);
    }
}

impl Summed for XdpFrame {
    #[inline(always)]
    fn sum<const N: usize>(&self, offset: usize) -> Option<u16> {
        let place = self.at::<[u8; N]>(offset)?;
        // SAFETY: N bytes of the packet by the check above; N is a multiple of 4, at most 512.
        let sum = unsafe { bpf_csum_diff(ptr::null_mut(), 0, place.cast(), N as u32, 0) } as u32;
        // The kernel adds words in host order. Swapping the sum's bytes gives the sum in network order.
        Some(fold(sum).swap_bytes())
    }
}
