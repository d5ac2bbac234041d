//! Placeholders for arrays that a BPF program addresses without a map look-up.
//!
//! An array map with a single element has a fixed address, which the kernel writes into the program's
//! instructions (`BPF_PSEUDO_MAP_VALUE`). The whole array is that one element. The program is compiled
//! with a placeholder number, and `glb_host::map_relocation` replaces it when it loads the program.

/// Upper half of a placeholder without the array's number. The lower half is 0.
const MARK: u32 = 0x6b72_6100;

/// The placeholder for the address of array `number`.
#[must_use]
pub const fn placeholder(number: u8) -> u64 {
    ((MARK | number as u32) as u64) << 32
}

/// The array whose placeholder has this upper half.
#[must_use]
pub const fn number(upper: u32) -> Option<u8> {
    if upper & !0xff == MARK { Some(upper as u8) } else { None }
}

/// Numbers of the arrays, each with the type of its elements.
pub mod array {
    /// [`u32`]: displacements of a perfect hash.
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
