//! The merge law of eventual namespaces: the newest stamp wins, tombstones included.
//!
//! Two records of one key become one, the same on every replica, in whatever order they arrive: the law
//! is commutative, associative and idempotent, so replicas that merged the same writes hold the same
//! records (Shapiro et al., "Conflict-free Replicated Data Types", 2011, section 3: a last-writer-wins
//! register). Nobody else decides who wins.
//!
//! Stamps are unique, so a tie means the same write. Should damage make two contents of one stamp, the
//! larger content wins everywhere: replicas then still agree, and their digests say that something was
//! wrong before.

use crate::Record;
use std::cmp::Ordering;

/// Which of two records of a key stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Winner {
    /// The one that is there.
    Current,
    /// The one that arrived.
    Incoming,
    /// Both are the same write.
    Same,
}

/// Decides between what is stored under a key and what arrived for it.
pub fn winner(current: Option<&Record>, incoming: &Record) -> Winner {
    let Some(current) = current else {
        return Winner::Incoming;
    };
    match rank(current).cmp(&rank(incoming)) {
        Ordering::Less => Winner::Incoming,
        Ordering::Greater => Winner::Current,
        Ordering::Equal => Winner::Same,
    }
}

/// The total order of records. The stamp decides; the rest only where one stamp has two contents.
fn rank(record: &Record) -> (u64, bool, u64, &[u8], u64, u64) {
    (
        record.stamp.0,
        record.tombstone,
        record.expires_at_ms,
        &record.value,
        record.origin_sequence,
        record.epoch.0,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Epoch, Stamp};
    use proptest::prelude::*;

    /// What is stored after `incoming` was merged.
    fn merged(current: Option<Record>, incoming: Record) -> Option<Record> {
        match winner(current.as_ref(), &incoming) {
            Winner::Incoming => Some(incoming),
            Winner::Current | Winner::Same => current,
        }
    }

    /// Few stamps, so that ties and damage are common.
    fn records() -> impl Strategy<Value = Record> {
        (0u64..4, any::<bool>(), 0u64..2, 0u8..3).prop_map(|(stamp, tombstone, expiry, value)| {
            Record {
                tombstone,
                stamp: Stamp(stamp),
                origin_sequence: stamp,
                epoch: Epoch(1),
                expires_at_ms: expiry,
                value: vec![value].into(),
                ..Record::default()
            }
        })
    }

    proptest! {
        #[test]
        fn merge_is_commutative(a in records(), b in records()) {
            prop_assert_eq!(merged(Some(a.clone()), b.clone()), merged(Some(b), a));
        }

        #[test]
        fn merge_is_associative(a in records(), b in records(), c in records()) {
            let left = merged(merged(Some(a.clone()), b.clone()), c.clone());
            let right = merged(Some(a), merged(Some(b), c).unwrap());
            prop_assert_eq!(left, right);
        }

        #[test]
        fn merge_is_idempotent(a in records(), b in records()) {
            let once = merged(Some(a), b.clone());
            prop_assert_eq!(merged(once.clone(), b), once);
        }

        #[test]
        fn the_newest_stamp_wins_tombstones_included(a in records(), b in records()) {
            let newest = a.stamp.max(b.stamp);
            prop_assert_eq!(merged(Some(a), b).unwrap().stamp, newest);
        }
    }
}
