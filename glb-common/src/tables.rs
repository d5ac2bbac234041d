//! The director's tables as the decision reads them.

use crate::abi::{
    Backend, BindSlot, Config, Ipv6Endpoints, PrefixEntry, Segment, TableInfo, TableRows,
};

/// Read access to a generation's tables: BPF maps in the program, plain memory in user space.
pub trait Tables {
    /// Reads one of the constants.
    fn config<T: Copy>(&self, field: impl Fn(&Config) -> &T) -> T;
    /// A displacement of the perfect hash of binds.
    fn displacement(&self, index: u32) -> Option<u32>;
    /// A slot of the perfect hash of binds.
    fn bind(&self, index: u32) -> Option<&BindSlot>;
    /// The longest prefix of this family that contains the address.
    fn prefix(&self, family: u8, address: [u64; 2]) -> Option<PrefixEntry>;
    /// A segment of a prefix's port ranges.
    fn segment(&self, index: u32) -> Option<&Segment>;
    /// A table.
    fn table(&self, index: u32) -> Option<&TableInfo>;
    /// The rows with this index.
    fn rows(&self, index: u32) -> Option<&TableRows>;
    /// A backend's entry in this bank.
    fn backend(&self, index: u16, bank: u32) -> Option<&Backend>;
    /// An IPv6 backend's addresses in this bank.
    fn ipv6_endpoints(&self, index: u16, bank: u32) -> Option<&Ipv6Endpoints>;
}
