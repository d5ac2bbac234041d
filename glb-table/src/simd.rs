//! Vectors of 64-bit lanes, with the operations that hashing and ranking need.
//!
//! They use intrinsics because the compiler does not vectorize the equivalent loops. Every function is
//! `inline(always)`, so that it is compiled with the features of the calling function.

/// A vector of `u64` lanes, which compare as signed numbers (AVX2 has no other comparison).
pub(crate) trait Vector: Copy {
    /// Number of lanes, at most [`MAX_LANES`].
    const LANES: usize;
    fn splat(value: u64) -> Self;
    fn load(values: &[u64; MAX_LANES]) -> Self;
    fn store(self, values: &mut [u64; MAX_LANES]);
    fn add(self, other: Self) -> Self;
    fn xor(self, other: Self) -> Self;
    /// Rotates each lane left by `BITS`: 13, 16, 17, 21 or 32.
    fn rotate<const BITS: u32>(self) -> Self;
    fn swap_bytes(self) -> Self;
    /// Whether any lane of `self` is less than the same lane of `other`.
    fn any_less(self, other: Self) -> bool;
    /// Sorts two pairs of key and value per lane, so that `pair` has the lesser key.
    fn sort_pair(pair: &mut (Self, Self), other: &mut (Self, Self));
}

/// Number of lanes of the widest vector.
pub(crate) const MAX_LANES: usize = 8;

/// A vector in portable code.
#[derive(Clone, Copy)]
pub(crate) struct Portable([u64; 4]);

impl Vector for Portable {
    const LANES: usize = 4;
    #[inline(always)]
    fn splat(value: u64) -> Self {
        Self([value; 4])
    }
    #[inline(always)]
    fn load(values: &[u64; MAX_LANES]) -> Self {
        Self([values[0], values[1], values[2], values[3]])
    }
    #[inline(always)]
    fn store(self, values: &mut [u64; MAX_LANES]) {
        values[..4].copy_from_slice(&self.0);
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(std::array::from_fn(|l| self.0[l].wrapping_add(other.0[l])))
    }
    #[inline(always)]
    fn xor(self, other: Self) -> Self {
        Self(std::array::from_fn(|l| self.0[l] ^ other.0[l]))
    }
    #[inline(always)]
    fn rotate<const BITS: u32>(self) -> Self {
        Self(self.0.map(|lane| lane.rotate_left(BITS)))
    }
    #[inline(always)]
    fn swap_bytes(self) -> Self {
        Self(self.0.map(u64::swap_bytes))
    }
    #[inline(always)]
    fn any_less(self, other: Self) -> bool {
        (0..4).any(|l| (self.0[l] as i64) < other.0[l] as i64)
    }
    #[inline(always)]
    fn sort_pair(pair: &mut (Self, Self), other: &mut (Self, Self)) {
        for l in 0..4 {
            if (other.0.0[l] as i64) < pair.0.0[l] as i64 {
                std::mem::swap(&mut pair.0.0[l], &mut other.0.0[l]);
                std::mem::swap(&mut pair.1.0[l], &mut other.1.0[l]);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod x86 {
    //! Vectors with AVX2 and AVX-512.
    //!
    //! SAFETY of the whole module: the types are used only in functions with the matching
    //! `target_feature`, which are called only after the processor's features were checked.
    use std::arch::x86_64::*;

    use super::{MAX_LANES, Vector};

    /// A vector of four lanes; needs AVX2.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(__m256i);

    impl Vector for Avx2 {
        const LANES: usize = 4;
        #[inline(always)]
        fn splat(value: u64) -> Self {
            // SAFETY: see the module.
            Self(unsafe { _mm256_set1_epi64x(value as i64) })
        }
        #[inline(always)]
        fn load(values: &[u64; MAX_LANES]) -> Self {
            // SAFETY: see the module; the array is longer than the vector, and alignment is not required.
            Self(unsafe { _mm256_loadu_si256(values.as_ptr().cast()) })
        }
        #[inline(always)]
        fn store(self, values: &mut [u64; MAX_LANES]) {
            // SAFETY: see the module; the array is longer than the vector, and alignment is not required.
            unsafe { _mm256_storeu_si256(values.as_mut_ptr().cast(), self.0) }
        }
        #[inline(always)]
        fn add(self, other: Self) -> Self {
            // SAFETY: see the module.
            Self(unsafe { _mm256_add_epi64(self.0, other.0) })
        }
        #[inline(always)]
        fn xor(self, other: Self) -> Self {
            // SAFETY: see the module.
            Self(unsafe { _mm256_xor_si256(self.0, other.0) })
        }
        #[inline(always)]
        fn rotate<const BITS: u32>(self) -> Self {
            // SAFETY: see the module.
            Self(unsafe {
                match BITS {
                    32 => _mm256_shuffle_epi32::<0b10_11_00_01>(self.0),
                    16 => {
                        let order =
                            _mm_setr_epi8(6, 7, 0, 1, 2, 3, 4, 5, 14, 15, 8, 9, 10, 11, 12, 13);
                        _mm256_shuffle_epi8(self.0, _mm256_broadcastsi128_si256(order))
                    }
                    21 => _mm256_or_si256(
                        _mm256_slli_epi64::<21>(self.0),
                        _mm256_srli_epi64::<43>(self.0),
                    ),
                    17 => _mm256_or_si256(
                        _mm256_slli_epi64::<17>(self.0),
                        _mm256_srli_epi64::<47>(self.0),
                    ),
                    _ => {
                        const { assert!(matches!(BITS, 13 | 16 | 17 | 21 | 32)) };
                        _mm256_or_si256(
                            _mm256_slli_epi64::<13>(self.0),
                            _mm256_srli_epi64::<51>(self.0),
                        )
                    }
                }
            })
        }
        #[inline(always)]
        fn swap_bytes(self) -> Self {
            // SAFETY: see the module.
            Self(unsafe {
                let order = _mm_setr_epi8(7, 6, 5, 4, 3, 2, 1, 0, 15, 14, 13, 12, 11, 10, 9, 8);
                _mm256_shuffle_epi8(self.0, _mm256_broadcastsi128_si256(order))
            })
        }
        #[inline(always)]
        fn any_less(self, other: Self) -> bool {
            // SAFETY: see the module.
            unsafe { _mm256_movemask_epi8(_mm256_cmpgt_epi64(other.0, self.0)) != 0 }
        }
        #[inline(always)]
        fn sort_pair(pair: &mut (Self, Self), other: &mut (Self, Self)) {
            // SAFETY: see the module.
            unsafe {
                let less = _mm256_cmpgt_epi64(pair.0.0, other.0.0);
                let (a, b) = (*pair, *other);
                *pair = (
                    Self(_mm256_blendv_epi8(a.0.0, b.0.0, less)),
                    Self(_mm256_blendv_epi8(a.1.0, b.1.0, less)),
                );
                *other = (
                    Self(_mm256_blendv_epi8(b.0.0, a.0.0, less)),
                    Self(_mm256_blendv_epi8(b.1.0, a.1.0, less)),
                );
            }
        }
    }

    /// A vector of eight lanes; needs AVX-512 F and BW.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512(__m512i);

    impl Vector for Avx512 {
        const LANES: usize = 8;
        #[inline(always)]
        fn splat(value: u64) -> Self {
            // SAFETY: see the module.
            Self(unsafe { _mm512_set1_epi64(value as i64) })
        }
        #[inline(always)]
        fn load(values: &[u64; MAX_LANES]) -> Self {
            // SAFETY: see the module; the array is as long as the vector, and alignment is not required.
            Self(unsafe { _mm512_loadu_si512(values.as_ptr().cast()) })
        }
        #[inline(always)]
        fn store(self, values: &mut [u64; MAX_LANES]) {
            // SAFETY: see the module; the array is as long as the vector, and alignment is not required.
            unsafe { _mm512_storeu_si512(values.as_mut_ptr().cast(), self.0) }
        }
        #[inline(always)]
        fn add(self, other: Self) -> Self {
            // SAFETY: see the module.
            Self(unsafe { _mm512_add_epi64(self.0, other.0) })
        }
        #[inline(always)]
        fn xor(self, other: Self) -> Self {
            // SAFETY: see the module.
            Self(unsafe { _mm512_xor_si512(self.0, other.0) })
        }
        #[inline(always)]
        fn rotate<const BITS: u32>(self) -> Self {
            // SAFETY: see the module.
            Self(unsafe {
                match BITS {
                    32 => _mm512_rol_epi64::<32>(self.0),
                    21 => _mm512_rol_epi64::<21>(self.0),
                    17 => _mm512_rol_epi64::<17>(self.0),
                    16 => _mm512_rol_epi64::<16>(self.0),
                    _ => {
                        const { assert!(matches!(BITS, 13 | 16 | 17 | 21 | 32)) };
                        _mm512_rol_epi64::<13>(self.0)
                    }
                }
            })
        }
        #[inline(always)]
        fn swap_bytes(self) -> Self {
            // SAFETY: see the module.
            Self(unsafe {
                let order = _mm_setr_epi8(7, 6, 5, 4, 3, 2, 1, 0, 15, 14, 13, 12, 11, 10, 9, 8);
                _mm512_shuffle_epi8(self.0, _mm512_broadcast_i32x4(order))
            })
        }
        #[inline(always)]
        fn any_less(self, other: Self) -> bool {
            // SAFETY: see the module.
            unsafe { _mm512_cmplt_epi64_mask(self.0, other.0) != 0 }
        }
        #[inline(always)]
        fn sort_pair(pair: &mut (Self, Self), other: &mut (Self, Self)) {
            // SAFETY: see the module.
            unsafe {
                let less = _mm512_cmplt_epi64_mask(other.0.0, pair.0.0);
                let (a, b) = (*pair, *other);
                *pair = (
                    Self(_mm512_min_epi64(a.0.0, b.0.0)),
                    Self(_mm512_mask_blend_epi64(less, a.1.0, b.1.0)),
                );
                *other = (
                    Self(_mm512_max_epi64(a.0.0, b.0.0)),
                    Self(_mm512_mask_blend_epi64(less, b.1.0, a.1.0)),
                );
            }
        }
    }
}
