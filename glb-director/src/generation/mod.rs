//! A generation: one version of the tables in the kernel, with a program and maps of its own.
//!
//! [`ProgramSpec`] says what the verifier must know, [`LoadedProgram`] is the verified program with
//! empty maps, and [`Generation`] has its maps filled from [`crate::compiled_tables`]. [`self_test`]
//! tries it before any packet reaches it. Changed next hops are written into a running generation.
//! Attaching it in the place of another one is done by [`glb_host::generations`].

mod adopt;
mod load;
mod next_hops;
pub mod self_test;
mod trace_program;

pub use adopt::AdoptError;
pub use load::{Generation, LoadedProgram, ProgramSpec};
pub use trace_program::{TraceProgram, TraceProgramError, remove_trace_program};
