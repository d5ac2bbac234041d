//! How many instructions the verifier walks for the director's programs on this kernel. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;
#[path = "../../glb-common/tests/support/verifier_margin.rs"]
mod verifier_margin;

use std::collections::HashMap;

use common::{Fixed, private_pins, tables};
use glb_director::{
    compiled_tables::{CompiledTables, ForwardingOptions},
    generation::Generation,
};
use glb_table::Format;

/// A table that needs every part of the programs: both families, a prefix, a range of ports.
const TABLE: &str = r#"
[[tables]]
name = "t"
hash_key = "12345678901234561234567890123456"
seed = "34567890123456783456789012345678"
binds = [
  { ip = "198.51.100.1", proto = "tcp", port = 80 },
  { ip = "2001:db8::1", proto = "tcp", port = 80 },
  { ip = "198.51.100.0/24", proto = "tcp", port_start = 81, port_end = 90 },
]
backends = [
  { ip = "10.0.1.11", state = "active", healthy = true },
  { ip = "10.0.1.12", state = "active", healthy = true },
]
"#;

#[test]
fn every_program_stays_far_below_the_limit_of_the_verifier() {
    let pins = private_pins();
    let tables = tables(TABLE, Format::Toml);
    let compiled = CompiledTables::new(
        &tables,
        &Fixed::new(&tables),
        &HashMap::new(),
        &ForwardingOptions::default(),
    )
    .unwrap();
    let generation = Generation::load(compiled, 1, &pins).unwrap();
    verifier_margin::assert(generation.programs().map(|(name, info)| (name, info.unwrap())));
}
