//! Forwarding tables: files, the model that they describe, and the rows that follow from it.
//!
//! A table tells which packets are balanced (binds), and to which servers (backends). From it follow
//! 65,536 rows, each with two to four backends in an order. The hash of a flow selects a row; the
//! director sends the packet to the row's first hop, and backends pass it on to the next hop if they do
//! not know the flow.
//!
//! A table file goes through these layers:
//!
//! | layer | module | does |
//! |---|---|---|
//! | syntax | `syntax` | parses TOML or GLB's JSON into a tree with places |
//! | schema | `schema`, `parse` | checks keys, types and ranges |
//! | validation | `validate` | checks the file as a whole |
//! | model | [`TableSet`], [`Table`] | is the valid table |
//! | rank | [`Ranks`] | ranks the backends in each row by hash and weight |
//! | rows | [`Rows`], [`RowCache`] | chooses and orders the hops |
//!
//! On top of them: [`flow_safety`] tells whether a change can break established flows, [`plan`]
//! evaluates sequences of changes, [`lookup`] explains one flow, [`diff`](mod@diff) compares tables, [`edit`] and
//! [`health_overlay`] change single values of a file, and [`glbd`] reads and writes GLB's binary format.
//!
//! Start reading at [`Table`] and [`Table::rows`]. Nothing here touches the network or the kernel.
//!
//! ```
//! use glb_table::{Format, parse_bytes};
//!
//! let text = r#"
//!     [[tables]]
//!     name = "web"
//!     hash_key = "2ac26cd8ca2eb2aa9b4a52d7cb39dd3a"
//!     seed = "c5a3ab27d95dd9a3ae4d2c8bf4a5a3f1"
//!     binds = [{ ip = "203.0.113.10", proto = "tcp", port = 443 }]
//!     backends = [
//!         { ip = "10.0.0.1", state = "active", healthy = true },
//!         { ip = "10.0.0.2", state = "active", healthy = true },
//!         { ip = "10.0.0.3", state = "draining", healthy = true },
//!     ]
//! "#;
//! let set = parse_bytes("table.toml".as_ref(), Format::Toml, text.as_bytes())?;
//! let rows = set.tables[0].rows();
//! // A draining backend is never the first hop while the second takes new connections.
//! assert!(rows.iter().all(|row| row.len() == 2 && row[0] != 2));
//! # Ok::<(), glb_table::LoadError>(())
//! ```

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
pub mod write_mark;

pub use diagnostic::{Diagnostic, LoadError, render};
pub use digest::{Digest, hex};
pub use glb_common::hash::HashFields;
pub use key::Key;
pub use model::{
    Backend, Bind, MAX_BACKENDS, MAX_BINDS, MAX_FILE, MAX_HOPS, MAX_NAME, MAX_ROWS_BYTES,
    MAX_TABLES, Order, Proto, ROWS, State, Table, TableSet, load, parse_bytes, read_bytes,
    read_input,
};
pub use rank::Ranks;
pub use row_cache::{BuiltTable, RowCache};
pub use rows::Rows;
pub use schema::hash_field_names;
pub use serialize::WriteError;
pub use syntax::Format;
