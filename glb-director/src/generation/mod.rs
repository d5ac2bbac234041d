//! A generation: the program loaded with its constants and its own maps, pinned and tested in the
//! kernel. Swapping it in is [`glb_host::generations`]'s part.

mod adopt;
mod lens;
mod load;
pub mod self_test;
mod ways;

pub use adopt::NotAdopted;
pub use lens::{Lens, LensError, remove as remove_lens};
pub use load::{Generation, Shape, Shell};
