//! Packet counters that survive reloads and restarts.
//!
//! Counters belong to a table's name or to a backend of a table, not to a position in a file. A pinned
//! map remembers the slot of each ([`CounterSlotMap`]), so that neither a reload nor a restart resets
//! or mixes them. [`read`] sums them up over all CPUs; [`migrate`] carries them over to a release whose
//! maps have another shape.

mod counter_slots;
mod layout;
mod migration;
mod report;

pub use self::{
    counter_slots::{CounterSlotMap, Overflow},
    layout::{
        BackendId, CounterSlots, CountersError, SELF_TEST_BACKEND_SLOT, SELF_TEST_TABLE_SLOT, pins,
    },
    migration::{finish_migration, migrate},
    report::{BackendReport, Count, Report, TableReport, action, read},
};
