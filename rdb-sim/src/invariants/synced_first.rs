//! Nothing leaves a store before it is synced: every entry, vector and record on the wire is on the
//! sender's disk for good.

use rdb_types::{NamespaceId, RegionId, StoreId, VersionVector};

/// Its name.
pub const NAME: &str = "nothing unsynced leaves";

/// A store told `told`; its disk says `durable`.
///
/// # Errors
/// It told of something that a crash would lose.
pub fn vector(
    store: StoreId,
    place: (RegionId, NamespaceId),
    told: &VersionVector,
    durable: &VersionVector,
) -> Result<(), String> {
    if durable.covers(told) {
        return Ok(());
    }
    Err(format!(
        "store {store} tells {told} of namespace {} in region {}, and has {durable} synced",
        place.1, place.0
    ))
}

/// A store sent an entry.
///
/// # Errors
/// It is not on its disk for good, nor was it forgotten there.
pub fn entry(
    store: StoreId,
    place: (RegionId, NamespaceId, StoreId),
    sequence: u64,
    on_disk: bool,
) -> Result<(), String> {
    if on_disk {
        return Ok(());
    }
    Err(format!(
        "store {store} sent entry {sequence} of store {} in namespace {} of region {}, which is not synced there",
        place.2, place.1, place.0
    ))
}

/// A store answered as of `told`, an epoch of a change of mode; its disk says `durable`.
///
/// # Errors
/// A crash would take it back to an epoch in which it did otherwise.
pub fn epoch(store: StoreId, region: RegionId, told: u64, durable: u64) -> Result<(), String> {
    if durable >= told {
        return Ok(());
    }
    Err(format!(
        "store {store} answered for a seal in epoch {told} of region {region}, and has epoch {durable} synced"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_synced_is_seen() {
        let one = StoreId::new(1).unwrap();
        let at = |sequence| [(one, sequence)].into_iter().collect::<VersionVector>();
        let place = (RegionId(2), NamespaceId(1));
        assert!(vector(one, place, &at(4), &at(4)).is_ok());
        assert!(vector(one, place, &at(5), &at(4)).is_err());
        assert!(entry(one, (place.0, place.1, one), 3, false).is_err());
        assert!(epoch(one, place.0, 3, 3).is_ok() && epoch(one, place.0, 4, 3).is_err());
    }
}
