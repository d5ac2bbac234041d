//! Decisions shown to people: what `replay` and `trace` have in common.

pub mod client;
pub mod filter;
mod format;
mod packet;
pub mod replay;
pub mod trace;

pub use format::{Decision, DecisionPrinter, Egress, print_line, print_note};
pub use packet::{FiveTuple, Headers, Tunnel};
