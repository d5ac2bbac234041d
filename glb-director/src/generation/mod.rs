//! A generation: the program loaded with its constants and its own maps, pinned and tested in the
//! kernel. Swapping it in is [`glb_host::generations`]'s part.

mod adopt;
mod load;
mod next_hops;
pub mod self_test;
mod trace_program;

pub use adopt::NotAdopted;
pub use load::{Generation, Shape, Shell};
pub use trace_program::{Lens, LensError, remove as remove_lens};
