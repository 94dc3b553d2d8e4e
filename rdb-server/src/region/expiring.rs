//! Looking into the index of what expires, across namespaces.
//!
//! Owns the walk: one look for each namespace that has rows, however many namespaces there are.

use super::layout;
use rdb_storage::{Family, StorageError, View};
use rdb_types::{NamespaceId, RegionId};

/// The first record to expire of each namespace that has one, with its time (Unix), in the order of their ids.
pub fn firsts(
    view: &dyn View,
    region: RegionId,
) -> impl Iterator<Item = Result<(NamespaceId, u64), StorageError>> {
    let mut next = Some(NamespaceId(0));
    std::iter::from_fn(move || {
        while let Some(from) = next.take() {
            let range = layout::index_from(region, from);
            let key = match view.scan(Family::Expiry, &range, false).next()? {
                Ok((key, _)) => key,
                Err(error) => return Some(Err(error)),
            };
            let Some(namespace) = layout::namespace_of(&key) else {
                return Some(Err(StorageError::corruption(
                    format!("the index of what expires in region {region}"),
                    "a key is too short",
                )));
            };
            next = namespace.0.checked_add(1).map(NamespaceId);
            // Its first row names the dead: then nothing of it is still to expire.
            if let Some((at_ms, _)) = layout::parse_expiring(&key) {
                return Some(Ok((namespace, at_ms)));
            }
        }
        None
    })
}
