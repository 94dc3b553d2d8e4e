//! What the meta region wants of each namespace, for the regions that hold it.
//!
//! Owns the book that the store keeps up to date from its own copy of the cluster's tables, and that the
//! regions look into. An order is a state, not an event: who finds its region not as the order says, and
//! leads it, takes the next step. Knows nothing of steps.
//!
//! Invariant: of two orders of one namespace the one with the higher attempt is the later.

use crate::watch;
use rdb_types::{Mode, NamespaceId, StoreId};
use std::collections::{BTreeMap, BTreeSet};

/// What a namespace shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// In which mode.
    pub target: Mode,
    /// Grows with every change of the target; what regions were told under a lower one does not count.
    pub attempt: u64,
    /// Stores without which it may become strong; what only they hold is set aside.
    pub accept_missing: BTreeSet<StoreId>,
}

/// The orders of all namespaces.
pub struct OrderBook(watch::Sender<BTreeMap<NamespaceId, Order>>);

impl Default for OrderBook {
    fn default() -> Self {
        OrderBook(watch::channel(BTreeMap::new()).0)
    }
}

impl OrderBook {
    /// Takes up what the cluster's tables say; wakes who waits if anything is new.
    pub fn set(&self, orders: BTreeMap<NamespaceId, Order>) {
        self.0.send_if_modified(|known| {
            let changed = *known != orders;
            *known = orders;
            changed
        });
    }

    /// All orders as they are now.
    pub fn all(&self) -> BTreeMap<NamespaceId, Order> {
        self.0.borrow().clone()
    }

    /// Tells of changes.
    pub fn subscribe(&self) -> watch::Receiver<BTreeMap<NamespaceId, Order>> {
        self.0.subscribe()
    }
}
