//! Which other stores this one hears of, said in its log.
//!
//! Owns what counts as silence, and the memory of what was said. Pure: the table of stores and the ages of
//! contacts come as arguments. What follows from silence (elections, lag, copies) is decided elsewhere, each by its
//! own measure; this is for people.
//!
//! Invariant: each silence is told once when it begins and once when it ends.

use rdb_proto::raft::StoreRow;
use rdb_types::StoreId;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Stores ask each other what time it is every second, whatever else they do: longer is no chance.
pub(super) const SILENCE: Duration = Duration::from_secs(3);

/// What changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It is in the cluster's tables, having spoken for itself.
    Member,
    /// Nothing came from it for so long.
    Silent(Duration),
    /// It is heard of again.
    Back,
}

/// The other stores, as this one told of them last.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    members: BTreeSet<StoreId>,
    silent: BTreeSet<StoreId>,
}

impl Neighbours {
    /// Looks at all stores but this one. `age`: how long ago a store was heard of last; of one that never was,
    /// since when this store could have heard of it.
    pub(super) fn look(
        &mut self,
        me: StoreId,
        stores: &BTreeMap<StoreId, StoreRow>,
        age: impl Fn(StoreId) -> Duration,
    ) -> Vec<(StoreId, Change)> {
        let mut changes = Vec::new();
        for (store, row) in stores.iter().filter(|(store, _)| **store != me) {
            if row.registered && self.members.insert(*store) {
                changes.push((*store, Change::Member));
            }
            let age = age(*store);
            if age > SILENCE {
                if self.silent.insert(*store) {
                    changes.push((*store, Change::Silent(age)));
                }
            } else if self.silent.remove(store) {
                changes.push((*store, Change::Back));
            }
        }
        changes
    }
}

/// Says it.
pub(super) fn tell(stores: &BTreeMap<StoreId, StoreRow>, changes: Vec<(StoreId, Change)>) {
    for (store, change) in changes {
        let row = stores.get(&store);
        let address = row
            .and_then(|row| row.member.as_ref())
            .map_or("", |member| &*member.address);
        let version = row.map_or("", |row| &*row.version);
        let store = store.get();
        match change {
            Change::Member => tracing::info!(store, address, version, "a store is a member"),
            Change::Silent(age) => {
                let silent_ms = age.as_millis() as u64;
                tracing::warn!(store, address, silent_ms, "nothing is heard of a store");
            }
            Change::Back => tracing::info!(store, address, "the store is heard of again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silence_is_told_once_and_its_end_once() {
        let [one, two] = [1, 2].map(|id| StoreId::new(id).unwrap());
        let row = StoreRow {
            registered: true,
            ..Default::default()
        };
        let stores: BTreeMap<StoreId, StoreRow> = [(one, row.clone()), (two, row)].into();
        let mut neighbours = Neighbours::default();
        let mut look = |age_ms| {
            neighbours.look(one, &stores, |store| {
                assert_eq!(store, two, "nobody asks after itself");
                Duration::from_millis(age_ms)
            })
        };
        assert_eq!(look(10), [(two, Change::Member)]);
        assert_eq!(look(2_000), []);
        let silent = Duration::from_millis(4_000);
        assert_eq!(look(4_000), [(two, Change::Silent(silent))]);
        assert_eq!(look(9_000), []);
        assert_eq!(look(20), [(two, Change::Back)]);
        assert_eq!(look(20), []);
    }
}
