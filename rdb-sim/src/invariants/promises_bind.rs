//! A promise binds: a replica that a seal counts on holds the fence when the seal takes effect. It may fall
//! behind later, and take a snapshot then, but has nothing to set aside.

use rdb_types::{NamespaceId, RegionId, StoreId, VersionVector};

/// Its name.
pub const NAME: &str = "promises bind";

/// A replica that takes part in a seal, which has taken effect elsewhere, is about to be replaced by a copy.
///
/// # Errors
/// It does not hold what it had promised.
pub fn check(
    store: StoreId,
    (region, namespace): (RegionId, NamespaceId),
    held: &VersionVector,
    fence: &VersionVector,
) -> Result<(), String> {
    if held == fence {
        return Ok(());
    }
    Err(format!(
        "store {store} takes part in a seal of namespace {namespace} in region {region} with the fence {fence}, and holds {held}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_promise_is_seen() {
        let one = StoreId::new(1).unwrap();
        let at = |sequence| [(one, sequence)].into_iter().collect::<VersionVector>();
        let place = (RegionId(2), NamespaceId(5));
        check(one, place, &at(4), &at(4)).unwrap();
        assert!(check(one, place, &at(5), &at(4)).is_err());
        assert!(check(one, place, &at(3), &at(4)).is_err());
    }
}
