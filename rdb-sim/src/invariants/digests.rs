//! Equal index, equal digest, on all stores and at all times; and the digest is that of the data.

use rdb_types::{Digest, NamespaceId, RegionId, StoreId};
use std::collections::BTreeMap;

/// Its name.
pub const NAME: &str = "equal index, equal digest";

/// The digest that each namespace of each region had at each index that somebody looked at.
#[derive(Default)]
pub struct Digests(BTreeMap<(RegionId, u64, NamespaceId), (Digest, StoreId)>);

impl Digests {
    /// A store's namespace had this digest when `index` was the last entry that it had applied.
    ///
    /// # Errors
    /// Another store's had another one.
    pub fn seen(
        &mut self,
        region: RegionId,
        index: u64,
        namespace: NamespaceId,
        digest: Digest,
        store: StoreId,
    ) -> Result<(), String> {
        let (known, by) = *self
            .0
            .entry((region, index, namespace))
            .or_insert((digest, store));
        if known == digest {
            return Ok(());
        }
        Err(format!(
            "stores {by} and {store} differ in namespace {namespace} of region {region} at index {index}"
        ))
    }

    /// Looks at which two stores were compared.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

/// Whether the digest that a store keeps is that of the records that it holds.
///
/// # Errors
/// It is not.
pub fn agree(
    store: StoreId,
    region: RegionId,
    namespace: NamespaceId,
    kept: Digest,
    computed: Digest,
) -> Result<(), String> {
    if kept == computed {
        return Ok(());
    }
    Err(format!(
        "store {store} holds other records in namespace {namespace} of region {region} than its digest says"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdb_types::{Record, Stamp};

    #[test]
    fn different_data_at_one_index_is_seen() {
        let (one, two) = (StoreId::new(1).unwrap(), StoreId::new(2).unwrap());
        let (region, namespace) = (RegionId(2), NamespaceId(1));
        let record = Record {
            stamp: Stamp(9),
            ..Record::default()
        };
        let mut other = Digest::default();
        other.add(b"key", &record);
        let mut digests = Digests::default();
        digests
            .seen(region, 4, namespace, Digest::default(), one)
            .unwrap();
        digests.seen(region, 5, namespace, other, two).unwrap();
        assert!(digests.seen(region, 4, namespace, other, two).is_err());
        assert!(agree(one, region, namespace, other, Digest::default()).is_err());
    }
}
