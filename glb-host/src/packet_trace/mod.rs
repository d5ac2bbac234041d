//! Showing decisions to people: `replay` runs a capture through a program that is not attached;
//! `trace` and `capture` show the decisions of a running one.

pub mod client;
pub mod filter;
mod format;
mod packet;
pub mod replay;
pub mod trace;

pub use format::{Decision, DecisionPrinter, Egress, print_line, print_note};
pub use packet::{FiveTuple, Headers, Tunnel};
