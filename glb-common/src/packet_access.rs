//! Bounds-checked access to a frame, in a slice or behind an XDP context.

use core::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Limit of the offset of a read. It bounds offsets for the verifier and lies beyond every header that
/// the programs read.
pub const MAX_OFFSET: usize = 1024;

/// Data that can be read from and written to a frame at any place: any bytes are a valid value, and it
/// has no padding. Numbers are read in this machine's byte order, which is little-endian.
pub trait Wire: FromBytes + IntoBytes + Immutable + Copy {}

impl<T: FromBytes + IntoBytes + Immutable + Copy> Wire for T {}
const _: () = assert!(cfg!(target_endian = "little"), "headers are put together little-endian");

/// A received frame.
pub trait Frame {
    /// Reads a `T` at `offset`; `None` if it does not lie inside the frame.
    fn read<T: Wire>(&self, offset: usize) -> Option<T>;

    /// The first `N` bytes of the frame after one bounds check; `None` if there are fewer.
    fn window<const N: usize>(&self) -> Option<&[u8; N]>;

    /// Number of bytes in the frame.
    fn len(&self) -> usize;

    /// True if the frame is at least `bytes` long, counting buffers that cannot be read here.
    #[inline(always)]
    fn holds(&self, bytes: usize) -> bool {
        bytes <= self.len()
    }

    /// True if the frame has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A frame whose rest can be accessed as a frame of its own. Data after a header of variable length then
/// has constant offsets again.
pub trait Nested: Frame {
    /// The type of the rest.
    type Rest<'a>: Nested
    where
        Self: 'a;

    /// The frame from `offset` on; `None` if it is shorter.
    fn rest(&self, offset: usize) -> Option<Self::Rest<'_>>;

    /// The same as [`Self::rest`] for a constant offset. The length is not checked here, but at each
    /// read.
    #[inline(always)]
    fn rest_at(&self, offset: usize) -> Option<Self::Rest<'_>> {
        self.rest(offset)
    }
}

/// A frame that can be written.
pub trait FrameMut: Frame {
    /// Writes `value` at `offset`; `false` if it does not fit.
    #[must_use]
    fn write<T: Wire>(&mut self, offset: usize, value: T) -> bool;

    /// The first `N` bytes of the frame for writing; `None` if there are fewer.
    fn window_mut<const N: usize>(&mut self) -> Option<&mut [u8; N]>;

    /// The same as [`Self::write`] with a result for `?`.
    #[inline(always)]
    fn put<T: Wire>(&mut self, offset: usize, value: T) -> Option<()> {
        self.write(offset, value).then_some(())
    }

    /// Writes six words and two bytes at `offset`: the outer headers up to the hop list.
    #[inline(always)]
    fn write_words(&mut self, offset: usize, words: [u64; 6], last: u16) -> Option<()> {
        let [a, b, c, d, e, f] = words;
        self.put(offset, a)?;
        self.put(offset + 8, b)?;
        self.put(offset + 16, c)?;
        self.put(offset + 24, d)?;
        self.put(offset + 32, e)?;
        self.put(offset + 40, f)?;
        self.put(offset + 48, last)
    }

    /// Writes outer headers with one listed hop to the start, after one bounds check.
    #[inline(always)]
    fn write_outer(&mut self, words: [u64; 6], last: u16, hop: u32) -> Option<()> {
        self.write_words(0, words, last)?;
        self.put(50, hop)
    }
}

/// A number at any address.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Unaligned<T>(T);

/// Loads the number at offset `at` of a window with one instruction. Without `volatile` the compiler
/// would use several smaller loads for numbers whose bits are tested separately.
#[inline(always)]
fn load<T: Wire, const N: usize>(window: &[u8; N], at: usize) -> T {
    assert!(at + size_of::<T>() <= N, "a window is as large as what is read from it");
    let place = window.as_ptr().wrapping_add(at).cast::<Unaligned<T>>();
    // SAFETY: inside the window by the check above; any bytes are a valid T, and `Unaligned` makes no
    // demand on the address.
    unsafe { place.read_volatile() }.0
}

/// Reads the little-endian number at offset `at` of a window.
///
/// # Panics
/// If the number does not lie inside. The check disappears for a constant `at`.
#[inline(always)]
#[must_use]
pub fn u16_at<const N: usize>(window: &[u8; N], at: usize) -> u16 {
    load(window, at)
}

/// The same as [`u16_at`] for a wider number.
///
/// # Panics
/// If the number does not lie inside.
#[inline(always)]
#[must_use]
pub fn u32_at<const N: usize>(window: &[u8; N], at: usize) -> u32 {
    load(window, at)
}

/// The same as [`u16_at`] for a wider number.
///
/// # Panics
/// If the number does not lie inside.
#[inline(always)]
#[must_use]
pub fn u64_at<const N: usize>(window: &[u8; N], at: usize) -> u64 {
    load(window, at)
}

impl Frame for [u8] {
    fn read<T: Wire>(&self, offset: usize) -> Option<T> {
        let bytes = self.get(offset..offset.checked_add(size_of::<T>())?)?;
        (offset <= MAX_OFFSET).then(|| {
            // SAFETY: `bytes` holds size_of::<T>() bytes, and any bytes are a valid T.
            unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }
        })
    }

    fn window<const N: usize>(&self) -> Option<&[u8; N]> {
        self.first_chunk()
    }

    fn len(&self) -> usize {
        <[u8]>::len(self)
    }
}

impl Frame for &[u8] {
    fn read<T: Wire>(&self, offset: usize) -> Option<T> {
        (**self).read(offset)
    }

    fn window<const N: usize>(&self) -> Option<&[u8; N]> {
        self.first_chunk()
    }

    fn len(&self) -> usize {
        <[u8]>::len(self)
    }
}

impl Nested for &[u8] {
    type Rest<'a>
        = &'a [u8]
    where
        Self: 'a;

    fn rest(&self, offset: usize) -> Option<&[u8]> {
        self.get(offset..).filter(|_| offset <= MAX_OFFSET)
    }
}

/// Writes a number in host order at offset `at` of a window.
///
/// # Panics
/// If the number does not lie inside. The check disappears for a constant `at`.
#[inline(always)]
pub fn put_at<T: Wire, const N: usize>(window: &mut [u8; N], at: usize, value: T) {
    assert!(at + size_of::<T>() <= N, "a window is as large as what is written to it");
    // SAFETY: inside the window by the check above; any bytes are a valid T.
    unsafe { window.as_mut_ptr().add(at).cast::<T>().write_unaligned(value) };
}

impl FrameMut for [u8] {
    fn window_mut<const N: usize>(&mut self) -> Option<&mut [u8; N]> {
        self.first_chunk_mut()
    }

    fn write<T: Wire>(&mut self, offset: usize, value: T) -> bool {
        let Some(end) = offset.checked_add(size_of::<T>()) else { return false };
        let Some(bytes) = self.get_mut(offset..end) else { return false };
        // SAFETY: `bytes` holds size_of::<T>() bytes, and any bytes are a valid T.
        unsafe { bytes.as_mut_ptr().cast::<T>().write_unaligned(value) };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_outside_the_frame_fail() {
        let mut frame = [1u8, 2, 3, 4];
        assert_eq!(frame[..].read::<[u8; 2]>(2), Some([3, 4]));
        assert_eq!(frame[..].read::<[u8; 2]>(3), None);
        assert_eq!(frame[..].read::<u8>(usize::MAX), None);
        assert!(frame[..].write(2, [9u8, 9]));
        assert!(!frame[..].write(3, [7u8, 7]));
        assert!(!frame[..].write(usize::MAX, 7u8));
        assert_eq!(frame, [1, 2, 9, 9]);
    }
}
