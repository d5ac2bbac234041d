//! The forwarding table: files, the model that they mean, and the rows that follow from it.
//!
//! One table's way is a straight line: file → [`syntax`] (what is written) → [`model`] (what is meant)
//! → [`rank`] → [`rows`]. Nothing here touches the network or the kernel.

pub mod atomic_file;
mod diagnostic;
pub mod diff;
mod digest;
pub mod edit;
pub mod flow_safety;
pub mod glbd;
pub mod health_overlay;
mod key;
pub mod lookup;
mod model;
mod parse;
pub mod plan;
mod rank;
mod row_cache;
mod rows;
mod schema;
mod serialize;
mod simd;
mod siphash;
mod syntax;
pub mod text;
mod validate;
pub mod weight;

pub use diagnostic::{Diagnostic, LoadError, render};
pub use digest::{Digest, hex};
pub use glb_common::hash::HashFields;
pub use key::Key;
pub use model::{
    Backend, Bind, MAX_BACKENDS, MAX_BINDS, MAX_FILE, MAX_HOPS, MAX_NAME, MAX_ROWS_BYTES,
    MAX_TABLES, Order, Proto, ROWS, State, Table, TableSet, load, parse_bytes, read_bytes,
};
pub use rank::Ranks;
pub use row_cache::{BuiltTable, RowCache};
pub use rows::Rows;
pub use schema::hash_field_names;
pub use serialize::WriteError;
pub use syntax::Format;
