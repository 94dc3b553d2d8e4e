//! Where a region's log lies on the disk.
//!
//! Owns the keys of the families `raft_log` and `raft_state`. Knows nothing of what stands behind
//! them.
//!
//! ```text
//! raft_log    region (8 bytes, big endian), index (8 bytes, big endian)   -> Entry
//! raft_state  region (8 bytes, big endian), name                          -> Vote or LogId
//! ```
//!
//! Invariant: the entries of one region are neighbours, in the order of their indexes.

use bytes::{BufMut, Bytes, BytesMut};
use rdb_storage::KeyRange;
use rdb_types::RegionId;

/// The last vote.
pub(super) const VOTE: &str = "vote";
/// The last entry that was removed from the front of the log.
pub(super) const PURGED: &str = "purged";
/// The last entry that is known to be committed.
pub(super) const COMMITTED: &str = "committed";

/// Where an entry lies.
pub(super) fn entry(region: RegionId, index: u64) -> Bytes {
    let mut key = BytesMut::with_capacity(16);
    key.put_u64(region.0);
    key.put_u64(index);
    key.freeze()
}

/// The index of an entry's key; `None` if it is not one of this region.
pub(super) fn index_of(region: RegionId, key: &[u8]) -> Option<u64> {
    let index = key.strip_prefix(region.0.to_be_bytes().as_slice())?;
    Some(u64::from_be_bytes(index.try_into().ok()?))
}

/// The entries from `start` up to `end`, exclusive.
pub(super) fn entries(region: RegionId, start: u64, end: u64) -> KeyRange {
    KeyRange::new(entry(region, start), entry(region, end))
}

/// Every entry of a region. The last index there is (2^64 - 1) is never used: nothing could follow.
pub(super) fn all_entries(region: RegionId) -> KeyRange {
    entries(region, 0, u64::MAX)
}

/// Where one of the log's own numbers lies.
pub(super) fn state(region: RegionId, name: &str) -> Bytes {
    let mut key = BytesMut::with_capacity(8 + name.len());
    key.put_u64(region.0);
    key.put_slice(name.as_bytes());
    key.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_a_region_are_neighbours_in_order() {
        let region = RegionId(0x0102);
        assert!(entry(region, 255) < entry(region, 256));
        assert!(entry(region, u64::MAX - 1) < entry(RegionId(0x0103), 0));
        assert!(all_entries(region).contains(&entry(region, 0)));
        assert!(all_entries(region).contains(&entry(region, u64::MAX - 1)));
        assert!(!all_entries(region).contains(&entry(RegionId(0x0101), u64::MAX)));
        assert!(!all_entries(region).contains(&entry(RegionId(0x0103), 0)));
    }

    #[test]
    fn an_index_is_read_back_only_from_a_key_of_the_region() {
        let region = RegionId(7);
        assert_eq!(index_of(region, &entry(region, 42)), Some(42));
        assert_eq!(index_of(RegionId(8), &entry(region, 42)), None);
        assert_eq!(index_of(region, &state(region, VOTE)), None);
    }
}
