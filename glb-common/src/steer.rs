//! The director's decision, pure: a parsed packet and a view of the tables give a verdict.

use crate::{
    bind,
    encap::overhead,
    hash::{Address, HashFields, flow_hash},
    layout::{Backend, BindSlot, Config, NO_HOP, NO_ROWS, PrefixEntry, Row, Segment, TableInfo},
    parse::{Flow, Oversize, Packet},
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
    /// Two hops of one row, of the rows with this index.
    fn row(&self, rows: u32, row: u16) -> Option<Row>;
    /// One backend.
    fn backend(&self, index: u16) -> Option<&Backend>;
}

/// At most this many hops are listed: three beside the first, and four of the alternative row.
pub const MAX_LISTED: usize = 7;

/// How a packet is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Send<'v> {
    /// The first hop.
    pub backend: &'v Backend,
    /// The further hops' addresses in order, [`NOBODY`] where a place is empty: the row's second to
    /// fourth, then the alternative row's four.
    pub hops: [[u8; 4]; MAX_LISTED],
    /// How many hops are listed, 0 to [`MAX_LISTED`].
    pub listed: u8,
    /// Outer UDP source port.
    pub source_port: u16,
    /// Outer TOS or traffic class.
    pub tos: u8,
    /// Slot of the table's counters.
    pub counter_slot: u32,
}

impl Send<'_> {
    /// Lists the backend `index`, if there is one, at a place of its own. (A place that depended on
    /// how many are listed already would be a write that the verifier cannot follow.)
    #[inline(always)]
    fn list<V: View + ?Sized>(&mut self, view: &V, place: usize, index: u16) -> Option<()> {
        if index != NO_HOP {
            self.hops[place] = view.backend(index)?.address;
            self.listed += 1;
        }
        Some(())
    }
}

/// An address that is no backend's.
pub const NOBODY: [u8; 4] = [0; 4];

/// Why a packet is not sent, and whose counter says so: one number, because a struct's fields travel
/// through registers one by one, and the compiler lets those that a path does not use go unset, which
/// the verifier refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal(u64);

impl Refusal {
    /// A refusal that is counted for one table, or for none with slot 0.
    #[inline(always)]
    #[must_use]
    pub const fn new(reason: Reason, counter_slot: u32) -> Self {
        Self((counter_slot as u64) << 32 | reason as u64)
    }

    /// With the largest IP packet that fits the tunnel.
    #[inline(always)]
    const fn with_inner_mtu(self, mtu: u16) -> Self {
        Self(self.0 | (mtu as u64) << 8)
    }

    /// The reason's number, an index into [`Reason::ALL`].
    #[inline(always)]
    #[must_use]
    pub const fn reason_number(self) -> u8 {
        self.0 as u8
    }

    /// Slot of the table's counters; 0 if no table is concerned.
    #[inline(always)]
    #[must_use]
    pub const fn counter_slot(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// For [`Reason::TooBig`]: the largest IP packet that fits the tunnel.
    #[inline(always)]
    #[must_use]
    pub const fn inner_mtu(self) -> u16 {
        (self.0 >> 8) as u16
    }
}

/// Where a packet goes.
///
/// # Errors
/// The reason why it goes nowhere.
#[inline(always)]
pub fn steer<'v, V: View + ?Sized, A: Address>(
    view: &'v V,
    packet: &Packet<A>,
) -> Result<Send<'v>, Refusal> {
    let unowned = |reason| Refusal::new(reason, 0);
    let Some(index) = bind::find(view, &packet.flow) else {
        let is_fragment = packet.is_later_fragment;
        return Err(unowned(if is_fragment { Reason::LaterFragment } else { Reason::NoBind }));
    };
    let Some(table) = view.table(index) else { return Err(unowned(Reason::Inconsistent)) };
    let refuse = |reason| Refusal::new(reason, table.counter_slot);
    let inconsistent = || refuse(Reason::Inconsistent);

    let config = view.config();
    let hash = hash_of(table.key, table.hash_fields, &packet.flow).ok_or_else(inconsistent)?;
    let row = view.row(table.rows, hash as u16).ok_or_else(inconsistent)?;
    let first = view.backend(row.first).ok_or_else(inconsistent)?;
    if first.interface == 0 {
        return Err(refuse(Reason::NextHopUnresolved));
    }
    let mut send = Send {
        backend: first,
        hops: [NOBODY; MAX_LISTED],
        listed: 0,
        source_port: 0x8000 | ((hash as u16 ^ packet.flow_hint) & 0x7fff),
        tos: (packet.tos & config.tos_mask) | config.tos_value,
        counter_slot: table.counter_slot,
    };
    send.list(view, 0, row.second).ok_or_else(inconsistent)?;
    if table.has_more != 0 {
        list_more(view, table, hash as u16, &packet.flow, &mut send).ok_or_else(inconsistent)?;
    }
    let overhead = overhead(send.listed) as u32;
    if packet.ip_length as u32 + overhead > first.mtu as u32 {
        let reason = match packet.oversize {
            Oversize::Tell => Reason::TooBig,
            Oversize::Fragment => Reason::TooBigMayFragment,
            Oversize::Silent => Reason::TooBigUnanswered,
        };
        let mtu = (first.mtu as u32).saturating_sub(overhead) as u16;
        return Err(refuse(reason).with_inner_mtu(mtu));
    }
    Ok(send)
}

/// Lists what stands beyond the row's first two hops: the third and fourth, then the alternative
/// row. A backend may be listed twice, as in GLB: the second chance just asks it again.
#[inline(always)]
fn list_more<V: View + ?Sized, A: Address>(
    view: &V,
    table: &TableInfo,
    row: u16,
    flow: &Flow<A>,
    send: &mut Send<'_>,
) -> Option<()> {
    if table.more_rows != NO_ROWS {
        let more = view.row(table.more_rows, row)?;
        send.list(view, 1, more.first)?;
        send.list(view, 2, more.second)?;
    }
    if table.alt_rows != NO_ROWS {
        let row = hash_of(table.alt_key, table.alt_hash_fields, flow)? as u16;
        let alt = view.row(table.alt_rows, row)?;
        send.list(view, 3, alt.first)?;
        send.list(view, 4, alt.second)?;
        if table.alt_more_rows != NO_ROWS {
            let more = view.row(table.alt_more_rows, row)?;
            send.list(view, 5, more.first)?;
            send.list(view, 6, more.second)?;
        }
    }
    Some(())
}

#[inline(always)]
fn hash_of<A: Address>(key: [u64; 2], fields: u8, flow: &Flow<A>) -> Option<u64> {
    Some(flow_hash(key, HashFields::from_bits(fields)?, flow))
}
