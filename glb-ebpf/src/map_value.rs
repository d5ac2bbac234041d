//! Arrays that the program addresses without a map look-up: see [`glb_common::map_value`].

use core::{arch::asm, hint::assert_unchecked, marker::PhantomData};

use glb_common::map_value::placeholder;

/// An array whose address user space writes into the program.
pub(crate) struct MapValueArray<T, const NUMBER: u8>(PhantomData<T>);

impl<T, const NUMBER: u8> MapValueArray<T, NUMBER> {
    pub(crate) const fn new() -> Self {
        Self(PhantomData)
    }

    /// Returns an element. The verifier rejects a program that does not bound the index.
    #[inline(always)]
    pub(crate) fn at(&self, index: u32) -> &'static T {
        let start: *const u8;
        // SAFETY: one instruction that loads a constant. As a Rust constant the compiler would fold it into
        // other instructions, where the loader could not find it.
        unsafe {
            asm!(
                "{} = {} ll",
                out(reg) start,
                const placeholder(NUMBER),
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        // The kernel aligns array elements to eight bytes.
        let stride = const { size_of::<T>().next_multiple_of(8) };
        let element: *const T = start.wrapping_add(index as usize * stride).cast();
        // SAFETY: the verifier has checked the index; the array lives as long as the program. The hint saves
        // a null check.
        unsafe {
            assert_unchecked(!element.is_null());
            &*element
        }
    }
}
