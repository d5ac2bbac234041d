//! Keys of prefix maps, laid on the stack as the verifier wants them.

use core::ptr;

use aya_ebpf::maps::lpm_trie::Key;

/// A packed key (the prefix's length, then the address) in words of 32 bits. The verifier refuses
/// stores of 64 bits to the stack at odd words, and a compiler that is free to join two words (or
/// that copies a packed key) makes them: which one does differs from version to version.
#[repr(C, align(8))]
pub(crate) struct Words<const N: usize>([u32; N]);

impl<const N: usize> Words<N> {
    /// Room for a key.
    #[inline(always)]
    pub(crate) const fn new() -> Self {
        Self([0; N])
    }

    /// Writes the words one by one.
    #[inline(always)]
    fn write(&mut self, words: [u32; N]) {
        for (place, word) in self.0.iter_mut().zip(words) {
            // SAFETY: a reference is valid for writing. Volatile stores are not joined.
            unsafe { ptr::write_volatile(place, word) };
        }
    }
}

impl Words<2> {
    /// The key for one IPv4 address, given as it lies in memory.
    #[inline(always)]
    pub(crate) fn of_ipv4(&mut self, address: u32) -> &Key<[u8; 4]> {
        self.write([32, address]);
        // SAFETY: `Key` is packed and has the same size: four bytes of length, four of address.
        unsafe { &*(&raw const *self).cast() }
    }
}

impl Words<5> {
    /// The key for one IPv6 address, given as two words of 64 bits as they lie in memory.
    #[inline(always)]
    pub(crate) fn of_ipv6(&mut self, [high, low]: [u64; 2]) -> &Key<[u8; 16]> {
        self.write([128, high as u32, (high >> 32) as u32, low as u32, (low >> 32) as u32]);
        // SAFETY: `Key` is packed and has four bytes of length and sixteen of address: 20 of the
        // 24 bytes here.
        unsafe { &*(&raw const *self).cast() }
    }
}

const _: () = assert!(size_of::<Key<[u8; 4]>>() == 8 && size_of::<Key<[u8; 16]>>() == 20);
const _: () = assert!(size_of::<Words<2>>() == 8 && size_of::<Words<5>>() == 24);
