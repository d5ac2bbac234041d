//! Arrays that a BPF program addresses without a look-up.
//!
//! An array with one element, whose value holds all that others have as elements, has an address that
//! the kernel can put into the program's instructions (`BPF_PSEUDO_MAP_VALUE`). The compiler gets a
//! number in its place, and the loader looks for that number: see `glb_host::map_relocation`.

/// Upper half of an array's place holder, less its number. The lower half is 0.
const MARK: u32 = 0x6b72_6100;

/// The number that stands for the address of the array `number`.
#[must_use]
pub const fn placeholder(number: u8) -> u64 {
    ((MARK | number as u32) as u64) << 32
}

/// The array whose place holder has this upper half.
#[must_use]
pub const fn number(upper: u32) -> Option<u8> {
    if upper & !0xff == MARK { Some(upper as u8) } else { None }
}

/// Numbers of the arrays.
pub mod array {
    /// [`u32`], of a perfect hash.
    pub const DISPLACEMENTS: u8 = 0;
    /// [`crate::abi::BindSlot`].
    pub const BINDS: u8 = 1;
    /// [`crate::abi::TableRows`].
    pub const ROWS: u8 = 2;
    /// [`crate::abi::Backend`].
    pub const BACKENDS: u8 = 3;
    /// [`crate::second_chance::abi::AddressEntry`].
    pub const ADDRESSES: u8 = 4;
}
