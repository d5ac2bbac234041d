//! Finds the table that serves a VIP, protocol and port.
//!
//! Binds of one address and one port stand in a [`perfect_hash`]. Prefixes and port ranges are searched
//! only if the configuration has any, and for packets without ports (echo requests, later fragments),
//! which stand there under port 0.

use crate::{
    abi::BindSlot,
    flow::{Address as _, FiveTuple, V4},
    perfect_hash,
    tables::Tables,
};

/// The table index of a packet without ports that could belong to several tables.
pub const NO_TABLE: u32 = u32::MAX;

/// Port, protocol and family of a bind in one word: its key besides the address. It is never 0.
#[inline(always)]
#[must_use]
pub const fn port_key(family: u8, protocol: u8, port: u16) -> u32 {
    // The port is in network byte order so that the fast path need not swap it.
    (port.to_be() as u32) << 16 | (protocol as u32) << 8 | family as u32
}

/// The port of a [`port_key`].
#[must_use]
pub const fn port(port_key: u32) -> u16 {
    u16::from_be((port_key >> 16) as u16)
}

/// Protocol and port as a [`crate::abi::Segment`] compares them.
#[inline(always)]
#[must_use]
pub const fn segment_key(protocol: u8, port: u16) -> u32 {
    (protocol as u32) << 16 | port as u32
}

/// Hashes a bind's key.
#[inline(always)]
#[must_use]
pub const fn hash(seed: u64, address: [u64; 2], port_key: u32) -> u64 {
    // Odd constants with well-mixed bits (the golden ratio and two of SplitMix64's).
    let mut hash = seed ^ address[1] ^ ((port_key as u64) << 32);
    hash = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^= hash >> 32;
    // The first word of an IPv4 address is 0, so the compiler drops this for IPv4.
    hash ^= address[0].wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = hash.wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 29)
}

/// Finds the bind of exactly this address, protocol and port.
#[inline(always)]
pub fn exact<V: Tables + ?Sized>(view: &V, address: [u64; 2], port_key: u32) -> Option<&BindSlot> {
    let hash = hash(view.config(|config| &config.bind_seed), address, port_key);
    let mask = view.config(|config| &config.displacement_mask);
    let displacement = view.displacement(perfect_hash::bucket(hash, mask))?;
    let mask = view.config(|config| &config.bind_mask);
    let found = view.bind(perfect_hash::slot(hash, displacement, mask))?;
    // The family is part of the port key, and the first word of an IPv4 address is 0.
    let is_v4 = port_key as u8 == V4::FAMILY;
    let same = found.port_key == port_key
        && found.address[1] == address[1]
        && (is_v4 || found.address[0] == address[0]);
    same.then_some(found)
}

/// Finds the index of the table that serves `flow`.
#[inline(always)]
pub fn find<V: Tables + ?Sized>(view: &V, flow: &FiveTuple) -> Option<u32> {
    let port_key = port_key(flow.family, flow.protocol, flow.destination_port);
    if let Some(found) = exact(view, flow.destination, port_key) {
        return Some(found.table);
    }
    if view.config(|config| &config.has_port_ranges) == 0 && flow.destination_port != 0 {
        return None;
    }
    let prefix = view.prefix(flow.family, flow.destination)?;
    let key = segment_key(flow.protocol, flow.destination_port);
    // Binary search for the last segment that starts at or before the key. At most 2^16 segments.
    let (mut low, mut high) = (0, prefix.count);
    for _ in 0..17 {
        if low >= high {
            break;
        }
        let middle = low + (high - low) / 2;
        let segment = view.segment(prefix.start.wrapping_add(middle))?;
        if segment.first > key {
            high = middle;
        } else if segment.last < key {
            low = middle + 1;
        } else {
            return (segment.table != NO_TABLE).then_some(segment.table);
        }
    }
    None
}
