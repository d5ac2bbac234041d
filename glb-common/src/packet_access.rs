//! Reading and writing a frame, whether it lies in a slice or behind an XDP context.

use core::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// No read ever starts further into a frame than this; it keeps offsets small enough for the
/// verifier, and lies beyond every header that this project looks at.
pub const MAX_OFFSET: usize = 1024;

/// Data that can be read from and written to a frame at any place: any bytes are a valid value, and it
/// has no padding. Numbers are read in this machine's byte order, which is little-endian.
pub trait Wire: FromBytes + IntoBytes + Immutable + Copy {}

impl<T: FromBytes + IntoBytes + Immutable + Copy> Wire for T {}
const _: () = assert!(cfg!(target_endian = "little"), "headers are put together little-endian");

/// A received frame.
pub trait Frame {
    /// The `T` that starts at `offset`, or nothing if it does not lie wholly inside the frame.
    fn read<T: Wire>(&self, offset: usize) -> Option<T>;

    /// The first `N` bytes, checked once and then read for nothing; nothing if there are fewer.
    fn window<const N: usize>(&self) -> Option<&[u8; N]>;

    /// Bytes from the start of the frame to its end.
    fn len(&self) -> usize;

    /// Whether the frame is at least `bytes` long, parts that cannot be read here included.
    #[inline(always)]
    fn holds(&self, bytes: usize) -> bool {
        bytes <= self.len()
    }

    /// Whether there is nothing in the frame.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A frame whose rest, from some place on, can be looked at as a frame of its own: what follows a
/// header of variable length then lies at constant offsets again.
pub trait Nested: Frame {
    /// The rest of a frame.
    type Rest<'a>: Nested
    where
        Self: 'a;

    /// What follows the first `offset` bytes, if there is so much.
    fn rest(&self, offset: usize) -> Option<Self::Rest<'_>>;

    /// As [`Self::rest`], for an offset that is constant. There may be less than that: whoever reads of
    /// it finds out.
    #[inline(always)]
    fn rest_at(&self, offset: usize) -> Option<Self::Rest<'_>> {
        self.rest(offset)
    }
}

/// A frame that can be changed.
pub trait FrameMut: Frame {
    /// Puts `value` at `offset`; says whether it lay wholly inside the frame.
    #[must_use]
    fn write<T: Wire>(&mut self, offset: usize, value: T) -> bool;

    /// As [`Frame::window`], to be written to.
    fn window_mut<const N: usize>(&mut self) -> Option<&mut [u8; N]>;

    /// As `write`, for `?`.
    #[inline(always)]
    fn put<T: Wire>(&mut self, offset: usize, value: T) -> Option<()> {
        self.write(offset, value).then_some(())
    }

    /// Puts six words and two bytes at `offset`: the outer headers up to the list of hops.
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

    /// Puts the outer headers with one listed hop at the start, with one check.
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

/// The number at `at` of a window, with one load: the compiler would otherwise make several small
/// ones of those whose bits are looked at apart.
#[inline(always)]
fn load<T: Wire, const N: usize>(window: &[u8; N], at: usize) -> T {
    assert!(at + size_of::<T>() <= N, "a window is as large as what is read from it");
    let place = window.as_ptr().wrapping_add(at).cast::<Unaligned<T>>();
    // SAFETY: inside the window by the check above; any bytes are a valid T, and `Unaligned` makes no
    // demand on the address.
    unsafe { place.read_volatile() }.0
}

/// The little-endian number at `at` of a window.
///
/// # Panics
/// When it does not lie inside; with a constant `at` the compiler finds out.
#[inline(always)]
#[must_use]
pub fn u16_at<const N: usize>(window: &[u8; N], at: usize) -> u16 {
    load(window, at)
}

/// As [`u16_at`].
///
/// # Panics
/// As there.
#[inline(always)]
#[must_use]
pub fn u32_at<const N: usize>(window: &[u8; N], at: usize) -> u32 {
    load(window, at)
}

/// As [`u16_at`].
///
/// # Panics
/// As there.
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

/// Puts a number at `at` of a window, as it lies in this machine's memory.
///
/// # Panics
/// When it would not lie inside; with a constant `at` the compiler finds out.
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
    fn nothing_is_read_or_written_outside() {
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
