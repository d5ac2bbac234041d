//! The look-up of a perfect hash by "hash and displace": one displacement, one slot, no collisions.
//!
//! The key's hash chooses a bucket; the bucket's displacement and the hash choose the slot. The slot
//! then holds the key or the key is not in the table, so a look-up costs the same for 2 and for 10,000
//! keys. `glb_host::perfect_hash` finds displacements under which no two keys share a slot. The director
//! finds binds this way ([`crate::vip_lookup`]), the backend addresses
//! ([`crate::second_chance::abi::AddressEntry`]).

/// The index of the displacement for a hash. There are `displacement_mask + 1` displacements.
#[inline(always)]
#[must_use]
pub const fn bucket(hash: u64, displacement_mask: u32) -> u32 {
    hash as u32 & displacement_mask
}

/// The slot that a displacement gives a hash. There are `slot_mask + 1` slots.
#[inline(always)]
#[must_use]
pub const fn slot(hash: u64, displacement: u32, slot_mask: u32) -> u32 {
    (hash.wrapping_mul(displacement as u64 | 1) >> 40) as u32 & slot_mask
}
