//! The director's tables as the decision reads them.

use crate::abi::{
    Backend, BindSlot, Config, Ipv6Endpoints, PrefixEntry, Segment, TableInfo, TableRows,
};

/// A generation's tables, in the kernel's maps or in plain memory.
pub trait Tables {
    /// One of the constants.
    fn config<T: Copy>(&self, field: impl Fn(&Config) -> &T) -> T;
    /// One displacement of the perfect hash of binds.
    fn displacement(&self, index: u32) -> Option<u32>;
    /// One slot of the exact binds.
    fn bind(&self, index: u32) -> Option<&BindSlot>;
    /// The longest prefix of this family that covers the address.
    fn prefix(&self, family: u8, address: [u64; 2]) -> Option<PrefixEntry>;
    /// One segment of a prefix's ports.
    fn segment(&self, index: u32) -> Option<&Segment>;
    /// One table.
    fn table(&self, index: u32) -> Option<&TableInfo>;
    /// The rows with this index.
    fn rows(&self, index: u32) -> Option<&TableRows>;
    /// One backend, by the [`TableInfo::bank`] that is in force.
    fn backend(&self, index: u16, bank: u32) -> Option<&Backend>;
    /// What an IPv6 backend has beside.
    fn ipv6_endpoints(&self, index: u16, bank: u32) -> Option<&Ipv6Endpoints>;
}
