//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

/// Folds a sum of 16-bit words into one word with end-around carry.
#[inline(always)]
#[must_use]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// Folds a sum of 32-bit words into one 16-bit word. 32-bit words may be added before folding because
/// 2^32 equals 1 in end-around-carry arithmetic.
#[inline(always)]
#[must_use]
pub const fn fold_wide(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    // The sum is below 2^33 now: two more folds suffice.
    let sum = (sum & 0xffff) + (sum >> 16);
    fold(((sum & 0xffff) + (sum >> 16)) as u32)
}

/// Adds the two words of a four-byte field.
#[inline(always)]
#[must_use]
pub const fn sum_4(bytes: [u8; 4]) -> u32 {
    u16::from_be_bytes([bytes[0], bytes[1]]) as u32
        + u16::from_be_bytes([bytes[2], bytes[3]]) as u32
}

/// Adds the eight words of a sixteen-byte field.
#[inline(always)]
#[must_use]
pub const fn sum_16(bytes: [u8; 16]) -> u32 {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
    sum_4([a, b, c, d]) + sum_4([e, f, g, h]) + sum_4([i, j, k, l]) + sum_4([m, n, o, p])
}

/// Updates a checksum after words with the sum `old` were replaced by words with the sum `new`
/// (RFC 1624, equation 3).
#[inline(always)]
#[must_use]
pub const fn replace(checksum: u16, old: u32, new: u32) -> u16 {
    !fold(!checksum as u32 + !fold(old) as u32 + fold(new) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wide_sum_folds_like_its_16_bit_words() {
        for sum in [
            0,
            1,
            0xffff,
            0x1_0000,
            0xffff_ffff,
            0x1_0000_0000,
            0x4_ffff_fffe,
            0x1_0000_ffff_ffff,
            u64::MAX >> 1,
        ] {
            let halves = [0, 16, 32, 48].map(|bits| (sum >> bits) as u32 & 0xffff);
            assert_eq!(fold_wide(sum), fold(halves.iter().sum()), "{sum:#x}");
        }
    }

    #[test]
    fn folding_adds_every_carry() {
        assert_eq!(fold(0), 0);
        assert_eq!(fold(0xffff), 0xffff);
        assert_eq!(fold(0x1_0000), 1);
        assert_eq!(fold(0xffff_ffff), 0xffff);
        assert_eq!(fold(0x0001_ffff), 1);
    }
}
