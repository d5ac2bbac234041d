//! Builds perfect hashes for the BPF programs: see [`glb_common::perfect_hash`] for the look-up.

use std::cmp::Reverse;

use glb_common::perfect_hash::{bucket, slot};

/// A collision-free placement of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PerfectHash {
    /// The seed that the keys were hashed with.
    pub seed: u64,
    /// One displacement for each bucket; their number is a power of two.
    pub displacements: Vec<u32>,
    /// The slot of each key, in the order of the keys.
    pub slots: Vec<usize>,
    /// The number of slots, a power of two.
    pub slot_count: usize,
}

impl PerfectHash {
    /// Places `keys`, which must be distinct. `hash` hashes a key with a seed. Half of the slots stay
    /// empty, which keeps the search short.
    pub fn build<K>(keys: &[K], hash: impl Fn(u64, &K) -> u64) -> Self {
        let slot_count = (keys.len() * 2).next_power_of_two();
        // About four keys in a bucket.
        let buckets = (keys.len() / 4).next_power_of_two();
        (0u64..)
            .find_map(|seed| {
                let hashes: Vec<u64> = keys.iter().map(|key| hash(seed, key)).collect();
                let (displacements, slots) = place(&hashes, buckets, slot_count)?;
                Some(Self { seed, displacements, slots, slot_count })
            })
            // Not all of 2^64 seeds fail for distinct keys.
            .unwrap_or(Self { seed: 0, displacements: vec![0], slots: Vec::new(), slot_count: 1 })
    }

    /// Arranges `values`, one for each key in the same order, as the program's array of slots.
    #[must_use]
    pub fn arrange<T: Copy + Default>(&self, values: impl IntoIterator<Item = T>) -> Vec<T> {
        let mut slots = vec![T::default(); self.slot_count];
        for (slot, value) in self.slots.iter().zip(values) {
            slots[*slot] = value;
        }
        slots
    }

    /// The slot that the program looks at for a key with this hash.
    #[must_use]
    pub fn slot_of(&self, hash: u64) -> usize {
        let bucket = bucket(hash, self.displacements.len() as u32 - 1);
        slot(hash, self.displacements[bucket as usize], self.slot_count as u32 - 1) as usize
    }
}

/// Finds displacements under which no two hashes share a slot, and the slot of each hash.
fn place(hashes: &[u64], buckets: usize, slot_count: usize) -> Option<(Vec<u32>, Vec<usize>)> {
    const TRIES: u32 = 1 << 16;
    let mask = slot_count as u32 - 1;
    let mut members: Vec<Vec<usize>> = vec![Vec::new(); buckets];
    for (key, hash) in hashes.iter().enumerate() {
        members[bucket(*hash, buckets as u32 - 1) as usize].push(key);
    }
    // The fullest buckets first, while most slots are free.
    let mut order: Vec<usize> = (0..buckets).collect();
    order.sort_by_key(|bucket| Reverse(members[*bucket].len()));
    let mut displacements = vec![0; buckets];
    let mut taken = vec![false; slot_count];
    let mut slots = vec![0; hashes.len()];
    for bucket in order {
        let keys = &members[bucket];
        // Only even numbers are tried: the look-up sets the lowest bit anyway.
        let (displacement, found) = (0..TRIES).map(|n| n << 1).find_map(|displacement| {
            let mut found: Vec<usize> = Vec::with_capacity(keys.len());
            for key in keys {
                let slot = slot(hashes[*key], displacement, mask) as usize;
                if taken[slot] || found.contains(&slot) {
                    return None;
                }
                found.push(slot);
            }
            Some((displacement, found))
        })?;
        displacements[bucket] = displacement;
        for (key, slot) in keys.iter().zip(found) {
            taken[slot] = true;
            slots[*key] = slot;
        }
    }
    Some((displacements, slots))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mix(seed: u64, key: &u64) -> u64 {
        let hash = (seed ^ key).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^ (hash >> 32)
    }

    #[test]
    fn a_table_without_keys_has_one_empty_slot() {
        let empty = PerfectHash::build(&[], mix);
        assert_eq!((empty.displacements.len(), empty.slot_count), (1, 1));
        assert_eq!(empty.slot_of(mix(empty.seed, &7)), 0);
    }

    proptest! {
        #[test]
        fn every_key_has_a_slot_of_its_own(keys in prop::collection::hash_set(any::<u64>(), 0..300)) {
            let keys: Vec<u64> = keys.into_iter().collect();
            let placed = PerfectHash::build(&keys, mix);
            let slots = placed.arrange(keys.iter().map(|key| Some(*key)));
            for key in &keys {
                prop_assert_eq!(slots[placed.slot_of(mix(placed.seed, key))], Some(*key));
            }
        }
    }
}
