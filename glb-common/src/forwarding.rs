//! The director's decision: which backend gets a parsed packet, and which hops it lists.
//!
//! The decision is a pure function of the packet and the [`Tables`]. [`crate::fast_path`] gives the same
//! answer for ordinary packets.

use crate::{
    abi::{Hops, NO_ROWS, Row, TableInfo},
    encap::{self, Encapsulation, FRAGMENTABLE, overhead},
    flow::FiveTuple,
    hash::{HashFields, flow_hash},
    parse::{Oversize, Packet},
    reason::DirectorReason as Reason,
    tables::Tables,
    vip_lookup,
};

/// Why a packet is not sent, with the table that counts it. All is packed into one number: the compiler
/// passes a struct's fields in registers and leaves unused ones undefined, which the verifier rejects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejection(u64);

impl Rejection {
    /// A rejection that a table's counter slot counts; slot 0 for no table.
    #[inline(always)]
    #[must_use]
    pub const fn new(reason: Reason, counter_slot: u32) -> Self {
        Self((counter_slot as u64) << 32 | reason as u64)
    }

    /// Adds the largest IP packet that fits the tunnel.
    #[inline(always)]
    const fn with_inner_mtu(self, mtu: u16) -> Self {
        Self(self.0 | (mtu as u64) << 8)
    }

    /// The reason's number, an index of [`Reason::ALL`].
    #[inline(always)]
    #[must_use]
    pub const fn reason_number(self) -> u8 {
        self.0 as u8
    }

    /// Slot of the table's counters; 0 for no table.
    #[inline(always)]
    #[must_use]
    pub const fn counter_slot(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The largest IP packet that fits the tunnel, set for [`Reason::TooBig`].
    #[inline(always)]
    #[must_use]
    pub const fn inner_mtu(self) -> u16 {
        (self.0 >> 8) as u16
    }
}

/// Chooses the backend of a packet and appends its further hops to `hops`, which must be empty.
///
/// The VIP, protocol and port choose the table; the flow's hash chooses the row; the row's first hop
/// gets the packet and the others are listed.
///
/// # Errors
/// The reason why the packet is not sent.
#[inline(always)]
pub fn plan_encapsulation<'v, V: Tables + ?Sized>(
    view: &'v V,
    packet: &Packet,
    hops: &mut Hops,
) -> Result<Encapsulation<'v>, Rejection> {
    let Some(index) = vip_lookup::find(view, &packet.flow) else {
        let is_fragment = packet.is_later_fragment;
        return Err(Rejection::new(
            if is_fragment { Reason::LaterFragment } else { Reason::NoBind },
            0,
        ));
    };
    let Some(table) = view.table(index) else {
        return Err(Rejection::new(Reason::Inconsistent, 0));
    };
    let reject = |reason| Rejection::new(reason, table.counter_slot);
    let inconsistent = || reject(Reason::Inconsistent);

    let hash = hash_of(table.key, table.hash_fields, &packet.flow).ok_or_else(inconsistent)?;
    let bank = table.bank;
    let row = row(view, table.rows, hash as u16).ok_or_else(inconsistent)?;
    let backend = view.backend(row.first, bank).ok_or_else(inconsistent)?;
    if !backend.is_resolved() {
        return Err(reject(Reason::NextHopUnresolved));
    }
    hops.list(row.second);
    if table.has_more != 0 {
        list_more(view, table, hash as u16, &packet.flow, hops).ok_or_else(inconsistent)?;
    }
    let is_v6 = table.is_v6 != 0;
    let mut encapsulation = Encapsulation {
        backend,
        first: row.first,
        bank,
        is_v6,
        source_port: encap::source_port(hash, packet.flow_hint),
        tos: encap::tos(view, packet.tos),
        fragmentable: 0,
        counter_slot: table.counter_slot,
    };
    let overhead = overhead(is_v6, hops.len()) as u32;
    let total = packet.ip_length as u32 + overhead;
    if total > backend.mtu as u32 {
        let may_fragment = packet.oversize == Oversize::Fragment;
        let may_fragment = may_fragment && view.config(|config| &config.may_fragment) != 0;
        if may_fragment && !is_v6 && total <= backend.link_mtu as u32 {
            // The inner identification separates the packets of one sender, the hash those of
            // different senders.
            encapsulation.fragmentable =
                FRAGMENTABLE | u32::from(packet.identification ^ (hash >> 16) as u16);
            return Ok(encapsulation);
        }
        let reason = match packet.oversize {
            Oversize::Tell => Reason::TooBig,
            Oversize::Fragment => Reason::TooBigMayFragment,
            Oversize::Silent => Reason::TooBigUnanswered,
        };
        let mtu = (backend.mtu as u32).saturating_sub(overhead) as u16;
        return Err(reject(reason).with_inner_mtu(mtu));
    }
    Ok(encapsulation)
}

/// Lists the hops after the row's first two: the third and fourth, then those of the alternative row.
/// A backend may be listed twice, as in GLB: it then gets the packet twice, and a backend that is its
/// own next hop skips itself.
#[inline(always)]
fn list_more<V: Tables + ?Sized>(
    view: &V,
    table: &TableInfo,
    row: u16,
    flow: &FiveTuple,
    hops: &mut Hops,
) -> Option<()> {
    if table.more_rows != NO_ROWS {
        let more = self::row(view, table.more_rows, row)?;
        hops.list(more.first);
        hops.list(more.second);
    }
    if table.alt_rows != NO_ROWS {
        let row = hash_of(table.alt_key, table.alt_hash_fields, flow)? as u16;
        let alt = self::row(view, table.alt_rows, row)?;
        hops.list(alt.first);
        hops.list(alt.second);
        if table.alt_more_rows != NO_ROWS {
            let more = self::row(view, table.alt_more_rows, row)?;
            hops.list(more.first);
            hops.list(more.second);
        }
    }
    Some(())
}

/// Reads two hops of one row.
#[inline(always)]
fn row<V: Tables + ?Sized>(view: &V, rows: u32, row: u16) -> Option<Row> {
    view.rows(rows)?.get(usize::from(row)).copied()
}

#[inline(always)]
fn hash_of(key: [u64; 2], fields: u8, flow: &FiveTuple) -> Option<u64> {
    Some(flow_hash(key, HashFields::from_bits(fields)?, flow))
}
