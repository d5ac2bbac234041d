//! The director's decision, pure: a parsed packet and a view of the tables give a verdict.

use crate::{
    abi::{
        Backend, BindSlot, Config, Hops, Ipv6Way, NO_ROWS, PrefixEntry, Row, Segment, TableInfo,
        TableRows,
    },
    encap::overhead,
    hash::{HashFields, flow_hash},
    parse::{FiveTuple, Oversize, Packet},
    reason::DirectorReason as Reason,
    vip_lookup,
};

/// A generation's tables, in the kernel's maps or in plain memory.
pub trait View {
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
    /// One backend, by the [`TableInfo::side`] that is in force.
    fn backend(&self, index: u16, side: u32) -> Option<&Backend>;
    /// What an IPv6 backend has beside.
    fn ipv6_way(&self, index: u16, side: u32) -> Option<&Ipv6Way>;
}

/// The bit of [`Send::fragmentable`] that says so.
pub const FRAGMENTABLE: u32 = 1 << 16;

/// How a packet is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Send<'v> {
    /// The first hop.
    pub backend: &'v Backend,
    /// Its index.
    pub first: u16,
    /// The side that its way is read from.
    pub side: u32,
    /// Whether the backends are IPv6 ones.
    pub is_v6: bool,
    /// Outer UDP source port.
    pub source_port: u16,
    /// Outer TOS or traffic class.
    pub tos: u8,
    /// [`FRAGMENTABLE`] and the identification of an outer packet that routers may fragment, or 0. (An
    /// `Option` leaves its value unset where there is none, which the verifier takes amiss.)
    pub fragmentable: u32,
    /// Slot of the table's counters.
    pub counter_slot: u32,
}

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

/// Outer UDP source port of a flow with this hash and hint.
#[inline(always)]
pub(crate) const fn source_port(hash: u64, hint: u16) -> u16 {
    0x8000 | ((hash as u16 ^ hint) & 0x7fff)
}

/// Outer TOS or traffic class for a packet with this one.
#[inline(always)]
pub(crate) fn tos<V: View + ?Sized>(view: &V, tos: u8) -> u8 {
    (tos & view.config(|config| &config.tos_mask)) | view.config(|config| &config.tos_value)
}

/// Where a packet goes; its further hops are listed in `hops`, which is empty before.
///
/// # Errors
/// The reason why it goes nowhere.
#[inline(always)]
pub fn steer<'v, V: View + ?Sized>(
    view: &'v V,
    packet: &Packet,
    hops: &mut Hops,
) -> Result<Send<'v>, Refusal> {
    let Some(index) = vip_lookup::find(view, &packet.flow) else {
        let is_fragment = packet.is_later_fragment;
        return Err(Refusal::new(
            if is_fragment { Reason::LaterFragment } else { Reason::NoBind },
            0,
        ));
    };
    let Some(table) = view.table(index) else { return Err(Refusal::new(Reason::Inconsistent, 0)) };
    let refuse = |reason| Refusal::new(reason, table.counter_slot);
    let inconsistent = || refuse(Reason::Inconsistent);

    let hash = hash_of(table.key, table.hash_fields, &packet.flow).ok_or_else(inconsistent)?;
    let side = table.side;
    let row = row(view, table.rows, hash as u16).ok_or_else(inconsistent)?;
    let backend = view.backend(row.first, side).ok_or_else(inconsistent)?;
    if !backend.is_resolved() {
        return Err(refuse(Reason::NextHopUnresolved));
    }
    hops.list(row.second);
    if table.has_more != 0 {
        list_more(view, table, hash as u16, &packet.flow, hops).ok_or_else(inconsistent)?;
    }
    let is_v6 = table.is_v6 != 0;
    let mut send = Send {
        backend,
        first: row.first,
        side,
        is_v6,
        source_port: source_port(hash, packet.flow_hint),
        tos: tos(view, packet.tos),
        fragmentable: 0,
        counter_slot: table.counter_slot,
    };
    let overhead = overhead(is_v6, hops.len()) as u32;
    let total = packet.ip_length as u32 + overhead;
    if total > backend.mtu as u32 {
        let may_fragment = packet.oversize == Oversize::Fragment;
        let may_fragment = may_fragment && view.config(|config| &config.may_fragment) != 0;
        if may_fragment && !is_v6 && total <= backend.link_mtu as u32 {
            // Its own identification keeps the fragments of one sender's packets apart, the hash
            // those of different senders. 0 would be as good as any.
            send.fragmentable =
                FRAGMENTABLE | u32::from(packet.identification ^ (hash >> 16) as u16);
            return Ok(send);
        }
        let reason = match packet.oversize {
            Oversize::Tell => Reason::TooBig,
            Oversize::Fragment => Reason::TooBigMayFragment,
            Oversize::Silent => Reason::TooBigUnanswered,
        };
        let mtu = (backend.mtu as u32).saturating_sub(overhead) as u16;
        return Err(refuse(reason).with_inner_mtu(mtu));
    }
    Ok(send)
}

/// Lists what stands beyond the row's first two hops: the third and fourth, then the alternative
/// row. A backend may be listed twice, as in GLB: the second chance just asks it again, and one that is
/// its own next hop looks further.
#[inline(always)]
fn list_more<V: View + ?Sized>(
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

/// Two hops of one row.
#[inline(always)]
fn row<V: View + ?Sized>(view: &V, rows: u32, row: u16) -> Option<Row> {
    view.rows(rows)?.get(usize::from(row)).copied()
}

#[inline(always)]
fn hash_of(key: [u64; 2], fields: u8, flow: &FiveTuple) -> Option<u64> {
    Some(flow_hash(key, HashFields::from_bits(fields)?, flow))
}
