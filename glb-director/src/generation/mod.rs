//! A generation: the program loaded with its constants and its own maps, pinned and tested in the
//! kernel. Swapping it in is [`glb_host::generations`]'s part.

mod load;
pub mod self_test;

pub use load::{Generation, NotAdopted, Shape, Shell};
