//! Decisions shown to people: what `replay` and `trace` have in common.

mod line;
mod packet;
pub mod replay;
pub mod trace;
pub mod wanted;
pub mod watch;

pub use line::{Decision, Lines, Way, print_line, say};
pub use packet::{End, Headers, Tunnel};
