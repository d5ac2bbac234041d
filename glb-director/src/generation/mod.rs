//! A generation: the program loaded with its constants and its own maps, pinned, tested in the
//! kernel, and swapped in behind the links of all interfaces.

mod load;
pub mod self_test;
mod swap;

pub use load::{Generation, LoadError};
pub use swap::{SwapError, current_program, detach_all, remove_if_detached, remove_stale, swap};

/// Names of the pins below the pin folder.
pub mod pins {
    /// Folder with a folder for each generation.
    pub const GENERATIONS: &str = "generations";
    /// Folder with a link for each interface.
    pub const LINKS: &str = "links";
    /// A generation's program.
    pub const PROGRAM: &str = "program";
}
