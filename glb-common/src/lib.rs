//! What the director, the backend and the tests must agree on, without any dependency on a kernel:
//! wire formats, packet parsing, the flow hash, encapsulation and second chance.
//!
//! The same code runs in the BPF programs and, on plain slices, in the tests and in user space.
#![cfg_attr(not(test), no_std)]

pub mod bind;
pub mod checksum;
pub mod direct;
pub mod encap;
pub mod ends;
pub mod fast;
pub mod frame;
pub mod hash;
pub mod layout;
pub mod mss;
pub mod parse;
pub mod reason;
pub mod second_chance;
pub mod siphash;
pub mod steer;
pub mod too_big;
pub mod trace;
pub mod wire;
