//! What is sent to one other replica, and what it has.
//!
//! Owns the choice of entries: every store pushes what it accepted itself; what others accepted it passes
//! on only where nobody else does. Knows nothing of bytes, connections or time.
//!
//! Invariant: nothing is chosen beyond the synced vector, nor anything that the other is known to have.

use rdb_types::{NamespaceId, StoreId, VersionVector};
use std::collections::BTreeMap;

/// What this replica can send of a namespace.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// Synced up to here.
    pub vector: VersionVector,
    /// Logs are gone up to here.
    pub truncated: VersionVector,
}

/// Consecutive entries of one origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Of which namespace.
    pub namespace: NamespaceId,
    /// Of whose log.
    pub origin: StoreId,
    /// The first.
    pub first: u64,
    /// The last.
    pub last: u64,
}

#[derive(Clone, Debug, Default)]
struct Progress {
    /// What the other has, synced, as it said.
    acknowledged: VersionVector,
    /// What was sent and may be under way.
    sent: VersionVector,
}

/// The state of sending to one replica.
#[derive(Clone, Debug, Default)]
pub struct Outbox(BTreeMap<NamespaceId, Progress>);

impl Outbox {
    /// Nothing is known of the other.
    pub fn new() -> Outbox {
        Outbox::default()
    }

    /// Whether the other ever said what it has of a namespace.
    pub fn knows(&self, namespace: NamespaceId) -> bool {
        self.0.contains_key(&namespace)
    }

    /// The other has all this.
    pub fn acknowledged(&mut self, namespace: NamespaceId, vector: &VersionVector) {
        let progress = self.0.entry(namespace).or_default();
        progress.acknowledged.join(vector);
        progress.sent.join(vector);
    }

    /// A run was sent.
    pub fn sent(&mut self, run: Run) {
        if let Some(progress) = self.0.get_mut(&run.namespace) {
            progress.sent.raise(run.origin, run.last);
        }
    }

    /// What is under way may be lost: it will be sent again.
    pub fn lost(&mut self) {
        for progress in self.0.values_mut() {
            progress.sent = progress.acknowledged.clone();
        }
    }

    /// Drops what is known of a namespace, until the other says anew what it has.
    pub fn forget(&mut self, namespace: NamespaceId) {
        self.0.remove(&namespace);
    }

    /// What to send next of a namespace: own entries, and those of others where `relay` says so.
    pub fn runs(
        &self,
        namespace: NamespaceId,
        me: StoreId,
        held: &Held,
        relay: impl Fn(StoreId) -> bool,
    ) -> Vec<Run> {
        let Some(progress) = self.0.get(&namespace) else {
            return Vec::new();
        };
        held.vector
            .iter()
            .filter(|(origin, _)| *origin == me || relay(*origin))
            .map(|(origin, last)| Run {
                namespace,
                origin,
                first: progress.sent.get(origin) + 1,
                last,
            })
            // What is gone from the log here cannot be sent; who needs it takes a copy.
            .filter(|run| run.first <= run.last && run.first > held.truncated.get(run.origin))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMESPACE: NamespaceId = NamespaceId(3);

    fn store(id: u64) -> StoreId {
        StoreId::new(id).unwrap()
    }

    fn vector(parts: &[(u64, u64)]) -> VersionVector {
        parts.iter().map(|(id, last)| (store(*id), *last)).collect()
    }

    fn runs(outbox: &Outbox, held: &Held, relay: bool) -> Vec<(u64, u64, u64)> {
        outbox
            .runs(NAMESPACE, store(1), held, |_| relay)
            .into_iter()
            .map(|run| (u64::from(run.origin.get()), run.first, run.last))
            .collect()
    }

    #[test]
    fn own_entries_go_out_and_others_only_as_a_relay() {
        let mut outbox = Outbox::new();
        let held = Held {
            vector: vector(&[(1, 5), (2, 3)]),
            truncated: VersionVector::new(),
        };
        assert!(
            runs(&outbox, &held, true).is_empty(),
            "what it has is not known"
        );
        outbox.acknowledged(NAMESPACE, &vector(&[(1, 2)]));
        assert_eq!(runs(&outbox, &held, false), [(1, 3, 5)]);
        assert_eq!(runs(&outbox, &held, true), [(1, 3, 5), (2, 1, 3)]);
    }

    #[test]
    fn what_was_lost_is_sent_again_and_what_was_acknowledged_is_not() {
        let mut outbox = Outbox::new();
        let held = Held {
            vector: vector(&[(1, 5)]),
            truncated: VersionVector::new(),
        };
        outbox.acknowledged(NAMESPACE, &VersionVector::new());
        let run = outbox.runs(NAMESPACE, store(1), &held, |_| false)[0];
        outbox.sent(run);
        assert!(runs(&outbox, &held, false).is_empty());
        outbox.acknowledged(NAMESPACE, &vector(&[(1, 3)]));
        outbox.lost();
        assert_eq!(runs(&outbox, &held, false), [(1, 4, 5)]);
    }

    #[test]
    fn what_the_log_no_longer_has_is_not_promised() {
        let mut outbox = Outbox::new();
        outbox.acknowledged(NAMESPACE, &vector(&[(1, 2)]));
        let held = Held {
            vector: vector(&[(1, 5)]),
            truncated: vector(&[(1, 3)]),
        };
        assert!(runs(&outbox, &held, false).is_empty());
    }
}
