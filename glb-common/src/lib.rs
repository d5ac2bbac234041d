//! What the director, the backend and the tests must agree on, without any dependency on a kernel:
//! wire formats, packet parsing, the flow hash, encapsulation and second chance.
//!
//! The same code runs in the BPF programs and, on plain slices, in the tests and in user space.
#![cfg_attr(not(test), no_std)]

pub mod abi;
pub mod checksum;
pub mod encap;
pub mod fast_path;
pub mod flow;
pub mod flow_dissector;
pub mod forwarding;
pub mod hash;
pub mod icmp_too_big;
pub mod map_value;
pub mod mss;
pub mod packet_access;
pub mod parse;
pub mod perfect_hash;
pub mod reason;
pub mod second_chance;
pub mod siphash;
pub mod tables;
pub mod trace;
pub mod vip_lookup;
pub mod wire;
