//! What the director, the backend and the tests must agree on, without any dependency on a kernel:
//! wire formats, packet parsing, the flow hash, encapsulation and second chance.
#![cfg_attr(not(test), no_std)]
