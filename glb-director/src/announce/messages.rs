//! What the daemon's loop, the withdraw gate and the announcement thread tell each other.

use std::sync::Arc;

use glb_host::control::Responder;
use glb_table::TableSet;
use tokio::{sync::oneshot, time::Instant};

use super::state_machine::DrainRequest;

/// A request to the announcement thread.
#[derive(Debug)]
pub(super) enum Request {
    /// Begin a drain.
    Drain(DrainRequest, Option<Responder>),
    /// Cancel the drain.
    Cancel(Option<Responder>),
    /// Withdraw what these tables, which are about to be swapped in, do not serve. The thread
    /// answers when it has taken them into account.
    Prepare(Arc<TableSet>, oneshot::Sender<()>),
    /// The prepared tables are in force, or will not be.
    PrepareDone,
}

/// The withdrawal of one announcement, as far as it is confirmed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Withdrawal {
    /// Since when the announcement has been desired and confirmed withdrawn, without a break.
    pub(super) confirmed: Option<Instant>,
    /// Why the method failed; empty if it did not.
    pub(super) error: String,
}

/// How a drain ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DrainOutcome {
    /// Nothing is announced, and no packets arrive.
    Drained,
    /// The drain was aborted for this reason, and everything is announced again.
    Aborted(String),
    /// An operator cancelled the drain.
    Cancelled,
}
