//! The forwarding table: files, the model that they mean, and the rows that follow from it.
//!
//! One table's way is a straight line: file → [`doc`] (what is written) → [`model`] (what is meant)
//! → [`rank`] → [`rows`]. Nothing here touches the network or the kernel.

mod built;
mod check;
pub mod checked;
pub mod diff;
mod digest;
mod doc;
pub mod edit;
mod fields;
mod form;
pub mod glbd;
pub mod holders;
mod key;
pub mod lookup;
mod model;
pub mod plan;
mod problem;
mod rank;
mod read;
mod rows;
mod simd;
pub mod simulate;
mod siphash;
pub mod weight;
pub mod write;

pub use built::{Builder, Built};
pub use digest::{Digest, hex};
pub use doc::Form;
pub use fields::hash_field_names;
pub use form::WriteError;
pub use glb_common::hash::HashFields;
pub use key::Key;
pub use model::{
    Backend, Bind, MAX_BACKENDS, MAX_BINDS, MAX_FILE, MAX_HOPS, MAX_NAME, MAX_ROWS_BYTES,
    MAX_TABLES, Order, Proto, ROWS, State, Table, TableSet, load, parse_bytes, read_bytes,
};
pub use problem::{LoadError, Problem, render};
pub use rank::Ranks;
pub use rows::Rows;
