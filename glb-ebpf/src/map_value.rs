//! Arrays without look-ups.

use core::{arch::asm, hint::assert_unchecked, marker::PhantomData};

use glb_common::map_value::placeholder;

/// All elements of an array in one value, whose address user space puts into the program.
pub(crate) struct Direct<T, const NUMBER: u8>(PhantomData<T>);

impl<T, const NUMBER: u8> Direct<T, NUMBER> {
    pub(crate) const fn new() -> Self {
        Self(PhantomData)
    }

    /// One element. That there is one is the verifier's to check: it refuses a program that does not
    /// bound the index.
    #[inline(always)]
    pub(crate) fn at(&self, index: u32) -> &'static T {
        let start: *const u8;
        // SAFETY: one instruction, which loads a constant. Were it one to the compiler, it would
        // calculate with it and write it in other forms.
        unsafe {
            asm!(
                "{} = {} ll",
                out(reg) start,
                const placeholder(NUMBER),
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        // Elements lie at multiples of eight bytes, as in any array of the kernel's.
        let stride = const { size_of::<T>().next_multiple_of(8) };
        let element: *const T = start.wrapping_add(index as usize * stride).cast();
        // SAFETY: the verifier has seen that the index is inside; the array lives as long as the program.
        // No element lies at 0, for which the compiler would ask.
        unsafe {
            assert_unchecked(!element.is_null());
            &*element
        }
    }
}
