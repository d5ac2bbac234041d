//! An XDP context as a frame of glb-common.

use core::mem::size_of;

use aya_ebpf::programs::XdpContext;
use glb_common::frame::{Frame, FrameMut, MAX_OFFSET, Wire};

/// The linear part of the packet behind an XDP context. Every access is checked against its end,
/// which is what the verifier wants to see. Made anew after each change of the head or tail.
pub(crate) struct XdpFrame {
    start: usize,
    end: usize,
}

impl XdpFrame {
    #[inline(always)]
    pub(crate) fn new(ctx: &XdpContext) -> Self {
        Self { start: ctx.data(), end: ctx.data_end() }
    }

    /// Where `T` at `offset` lies, if it lies inside.
    #[inline(always)]
    fn at<T>(&self, offset: usize) -> Option<*mut T> {
        if offset > MAX_OFFSET {
            return None;
        }
        let place = self.start + offset;
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
    fn len(&self) -> usize {
        self.end - self.start
    }
}

impl FrameMut for XdpFrame {
    #[inline(always)]
    fn write<T: Wire>(&mut self, offset: usize, value: T) -> bool {
        let Some(place) = self.at::<T>(offset) else { return false };
        // SAFETY: inside the packet by the check above; T is plain bytes.
        unsafe { place.write_unaligned(value) };
        true
    }
}
