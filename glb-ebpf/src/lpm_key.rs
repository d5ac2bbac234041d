//! Keys of longest-prefix-match maps, laid out on the stack as the verifier requires.

use core::ptr;

use aya_ebpf::maps::lpm_trie::Key;

/// A packed key (prefix length, then address) as 32-bit words. The verifier rejects 64-bit stores to the
/// stack at odd words, which some compiler versions make when they join two words or copy a packed key.
#[repr(C, align(8))]
pub(crate) struct LpmKey<const N: usize>([u32; N]);

impl<const N: usize> LpmKey<N> {
    /// An empty key.
    #[inline(always)]
    pub(crate) const fn new() -> Self {
        Self([0; N])
    }

    /// Writes the words one by one.
    #[inline(always)]
    fn write(&mut self, words: [u32; N]) {
        for (place, word) in self.0.iter_mut().zip(words) {
            // SAFETY: a reference is valid for writing. The compiler does not join volatile stores.
            unsafe { ptr::write_volatile(place, word) };
        }
    }
}

impl LpmKey<2> {
    /// The key of one IPv4 address, given in network byte order.
    #[inline(always)]
    pub(crate) fn of_ipv4(&mut self, address: u32) -> &Key<[u8; 4]> {
        self.write([32, address]);
        // SAFETY: `Key` is packed and has the same size: four bytes of length, four of address.
        unsafe { &*(&raw const *self).cast() }
    }
}

impl LpmKey<5> {
    /// The key of one IPv6 address, given as two words in network byte order.
    #[inline(always)]
    pub(crate) fn of_ipv6(&mut self, [high, low]: [u64; 2]) -> &Key<[u8; 16]> {
        self.write([128, high as u32, (high >> 32) as u32, low as u32, (low >> 32) as u32]);
        // SAFETY: `Key` is packed and has four bytes of length and sixteen of address: 20 of the
        // 24 bytes here.
        unsafe { &*(&raw const *self).cast() }
    }
}

const _: () = assert!(size_of::<Key<[u8; 4]>>() == 8 && size_of::<Key<[u8; 16]>>() == 20);
const _: () = assert!(size_of::<LpmKey<2>>() == 8 && size_of::<LpmKey<5>>() == 24);
