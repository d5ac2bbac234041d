//! The director's decision, pure: a parsed packet and a view of the tables give a verdict.

use crate::{
    bind,
    hash::{Address, HashFields, flow_hash},
    layout::{Backend, BindSlot, Config, PrefixEntry, ROWS, Row, Segment, TableInfo},
    parse::{Flow, Packet},
    reason::DirectorReason as Reason,
};

/// A generation's tables, in the kernel's maps or in plain memory.
pub trait View {
    /// The constants.
    fn config(&self) -> Config;
    /// One displacement of the perfect hash of binds.
    fn displacement(&self, index: u32) -> Option<u32>;
    /// One slot of the exact binds.
    fn bind(&self, index: u32) -> Option<&BindSlot>;
    /// The longest prefix that covers `address`.
    fn prefix<A: Address>(&self, address: &A) -> Option<PrefixEntry>;
    /// One segment of a prefix's ports.
    fn segment(&self, index: u32) -> Option<&Segment>;
    /// One table.
    fn table(&self, index: u32) -> Option<&TableInfo>;
    /// One row: `table << 16 | row`.
    fn row(&self, index: u32) -> Option<Row>;
    /// One backend.
    fn backend(&self, index: u16) -> Option<&Backend>;
}

/// At most this many hops are listed: the second of the row and both of the alternative row.
pub const MAX_LISTED: usize = 3;

/// How a packet is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Send {
    /// The first hop.
    pub backend: Backend,
    /// The further hops' addresses; the first `listed` count.
    pub hops: [[u8; 4]; MAX_LISTED],
    /// 0, 1 or 3.
    pub listed: u8,
    /// Outer UDP source port.
    pub source_port: u16,
    /// Slot of the table's counters.
    pub counter_slot: u32,
}

/// Why a packet is not sent, and whose counter says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The reason.
    pub reason: Reason,
    /// Slot of the table's counters; 0 if no table is concerned.
    pub counter_slot: u32,
}

/// Where a packet goes.
///
/// # Errors
/// The reason why it goes nowhere.
#[inline(always)]
pub fn steer<V: View + ?Sized, A: Address>(view: &V, packet: &Packet<A>) -> Result<Send, Refusal> {
    let unowned = |reason| Refusal { reason, counter_slot: 0 };
    let Some(table_index) = bind::find(view, &packet.flow) else {
        return Err(unowned(Reason::NoBind));
    };
    let Some(table) = view.table(table_index) else { return Err(unowned(Reason::Inconsistent)) };
    let refuse = |reason| Refusal { reason, counter_slot: table.counter_slot };
    let inconsistent = || refuse(Reason::Inconsistent);

    let (hash, row) = row_of(view, table_index, table, table.hash_fields, &packet.flow)
        .ok_or_else(inconsistent)?;
    let first = view.backend(row.first).ok_or_else(inconsistent)?;
    if first.interface == 0 {
        return Err(refuse(Reason::NextHopUnresolved));
    }
    let mut send = Send {
        backend: *first,
        hops: [[0; 4]; MAX_LISTED],
        listed: 0,
        source_port: 0x8000 | ((hash as u16 ^ packet.flow_hint) & 0x7fff),
        counter_slot: table.counter_slot,
    };
    if row.second != row.first {
        send.hops[0] = view.backend(row.second).ok_or_else(inconsistent)?.address;
        send.listed = 1;
    }
    if table.alt_hash_fields != 0 {
        let (_, alt) = row_of(view, table_index, table, table.alt_hash_fields, &packet.flow)
            .ok_or_else(inconsistent)?;
        // A backend may stand here twice, as in GLB: the second chance just asks it again.
        send.hops[0] = view.backend(row.second).ok_or_else(inconsistent)?.address;
        send.hops[1] = view.backend(alt.first).ok_or_else(inconsistent)?.address;
        send.hops[2] = view.backend(alt.second).ok_or_else(inconsistent)?.address;
        send.listed = 3;
    }
    Ok(send)
}

#[inline(always)]
fn row_of<V: View + ?Sized, A: Address>(
    view: &V,
    table_index: u32,
    table: &TableInfo,
    fields: u8,
    flow: &Flow<A>,
) -> Option<(u64, Row)> {
    let fields = HashFields::from_bits(fields)?;
    let hash = flow_hash(table.key, fields, flow);
    let row = view.row(table_index.wrapping_mul(ROWS as u32) | (hash as u32 & 0xffff))?;
    Some((hash, row))
}
