//! What becomes strong is one thing: every replica that goes on with its own data at a seal takes part in
//! it, holds just the fence, and holds the same records as all others.

use bytes::Bytes;
use rdb_types::{Record, StoreId, VersionVector};
use std::collections::{BTreeMap, BTreeSet};

/// Its name.
pub const NAME: &str = "all seal the same";

/// A seal, as the first replica that applied it had it.
#[derive(Clone, Debug)]
pub struct Sealed {
    /// Who.
    pub by: StoreId,
    /// In the log: what was sealed.
    pub fence: VersionVector,
    /// In the log: who promised it.
    pub participants: BTreeSet<StoreId>,
    /// Records by user key, those that count.
    pub records: BTreeMap<Bytes, Record>,
}

/// A replica goes on with `held` and `records`.
///
/// # Errors
/// It takes no part, or holds something else than the fence, or than `first` had.
pub fn check(
    store: StoreId,
    held: &VersionVector,
    records: &BTreeMap<Bytes, Record>,
    first: &Sealed,
) -> Result<(), String> {
    if !first.participants.contains(&store) {
        return Err(format!(
            "store {store} goes on as strong, and the seal was made without it"
        ));
    }
    if *held != first.fence {
        return Err(format!(
            "store {store} goes on as strong with {held}, and the fence is {}",
            first.fence
        ));
    }
    let keys = records.keys().chain(first.records.keys());
    let different = keys.filter(|key| records.get(*key) != first.records.get(*key));
    match different.min() {
        None => Ok(()),
        Some(key) => Err(format!(
            "stores {} and {store} sealed the same writes, and hold under key {}: {:?} and {:?}",
            first.by,
            key.escape_ascii(),
            first.records.get(key),
            records.get(key)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_and_differences_are_seen() {
        let (one, two, three) = (1, 2, 3).into_ids();
        let at = |sequence| [(one, sequence)].into_iter().collect::<VersionVector>();
        let records = BTreeMap::from([(Bytes::from_static(b"k"), Record::default())]);
        let first = Sealed {
            by: one,
            fence: at(4),
            participants: [one, two].into(),
            records: records.clone(),
        };
        check(two, &at(4), &records, &first).unwrap();
        assert!(check(three, &at(4), &records, &first).is_err());
        assert!(check(two, &at(3), &records, &first).is_err());
        assert!(check(two, &at(4), &BTreeMap::new(), &first).is_err());
    }

    trait IntoIds {
        fn into_ids(self) -> (StoreId, StoreId, StoreId);
    }

    impl IntoIds for (u64, u64, u64) {
        fn into_ids(self) -> (StoreId, StoreId, StoreId) {
            let id = |id| StoreId::new(id).unwrap();
            (id(self.0), id(self.1), id(self.2))
        }
    }
}
