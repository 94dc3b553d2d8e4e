//! Keys of the rows of eventual namespaces.
//!
//! ```text
//! region        0, "eventual/", region u64, namespace u32        -> EventualRow
//!               0, "eventual-ids/", region u64                   -> EventualIdsRow
//! data          global key                                       -> record (as in strong namespaces)
//! origin_log    region u64, namespace u32, origin u16, sequence u64   -> OriginEntry
//! conflicts     region u64, namespace u32, 0, stamp u64, user key     -> ConflictRow
//!               region u64, namespace u32, 1, length u32, user key, stamp u64   -> nothing
//!               region u64, namespace u32, 2, stamp u64, user key     -> nothing
//! request_ids   region u64 | TOP, ...                            -> RequestIdRow
//! ```
//! Numbers are big endian, so that rows order as their parts do. What expires and what is dead stands where it
//! does in strong namespaces, too ([`crate::region::layout`]). The third kind of `conflicts` rows names writes
//! that were set aside here, and that the other replicas have not been told of yet.
//!
//! The region's number has its top bit set in `request_ids`, which also holds rows of the region's log: those
//! go along in its snapshots, and a snapshot that replaces them must not touch what this store accepted.

use bytes::{BufMut, Bytes, BytesMut};
use rdb_storage::KeyRange;
use rdb_types::{Dot, NamespaceId, RegionId, Stamp, StoreId};

const STATES: &str = "eventual/";
const BY_STAMP: u8 = 0;
const BY_KEY: u8 = 1;
const UNTOLD: u8 = 2;

/// Where the rows of eventual namespaces stand in families that hold rows of the log, too.
pub fn beside(region: RegionId) -> RegionId {
    RegionId(region.0 | 1 << 63)
}

/// What is kept of all namespaces of a region begins with this.
pub fn states(region: RegionId) -> Bytes {
    let mut key = BytesMut::from(&crate::layout_store::row(STATES)[..]);
    key.put_u64(region.0);
    key.freeze()
}

/// What is kept of a namespace.
pub fn state(region: RegionId, namespace: NamespaceId) -> Bytes {
    let mut key = BytesMut::from(&states(region)[..]);
    key.put_u32(namespace.0);
    key.freeze()
}

/// The namespace in the key of [`state`].
pub fn namespace_of(key: &[u8]) -> Option<NamespaceId> {
    // Region 0, the name, the region.
    key.get(16 + STATES.len()..)?
        .try_into()
        .ok()
        .map(|bytes| NamespaceId(u32::from_be_bytes(bytes)))
}

/// Where the table of request ids stands.
pub fn ids(region: RegionId) -> Bytes {
    let mut key = BytesMut::from(&crate::layout_store::row("eventual-ids/")[..]);
    key.put_u64(region.0);
    key.freeze()
}

fn namespace_prefix(region: RegionId, namespace: NamespaceId, room: usize) -> BytesMut {
    let mut key = BytesMut::with_capacity(12 + room);
    key.put_u64(region.0);
    key.put_u32(namespace.0);
    key
}

/// An entry of an origin's log.
pub fn entry(region: RegionId, namespace: NamespaceId, dot: Dot) -> Bytes {
    let mut key = namespace_prefix(region, namespace, 10);
    key.put_u16(dot.origin.get());
    key.put_u64(dot.sequence);
    key.freeze()
}

/// The entries of one origin from `first` to `last`, both included.
pub fn entries(
    region: RegionId,
    namespace: NamespaceId,
    origin: StoreId,
    first: u64,
    last: u64,
) -> KeyRange {
    let at = |sequence| entry(region, namespace, Dot { origin, sequence });
    KeyRange::new(at(first), at(last.saturating_add(1)))
}

/// The sequence in the key of an entry.
pub fn sequence_of(key: &[u8]) -> Option<u64> {
    key.get(14..22)?.try_into().ok().map(u64::from_be_bytes)
}

/// What the key of an [`entry`] names.
pub fn entry_of(key: &[u8]) -> Option<(RegionId, NamespaceId, Dot)> {
    let region = key.get(..8)?.try_into().ok().map(u64::from_be_bytes)?;
    let namespace = key.get(8..12)?.try_into().ok().map(u32::from_be_bytes)?;
    let origin = key.get(12..14)?.try_into().ok().map(u16::from_be_bytes)?;
    let dot = Dot {
        origin: StoreId::new(u64::from(origin))?,
        sequence: sequence_of(key)?,
    };
    Some((RegionId(region), NamespaceId(namespace), dot))
}

fn by_stamp_prefix(region: RegionId, namespace: NamespaceId) -> BytesMut {
    let mut key = namespace_prefix(region, namespace, 64);
    key.put_u8(BY_STAMP);
    key
}

/// A write that lost, by its stamp.
pub fn conflict(region: RegionId, namespace: NamespaceId, stamp: Stamp, user_key: &[u8]) -> Bytes {
    let mut key = by_stamp_prefix(region, namespace);
    key.put_u64(stamp.0);
    key.put_slice(user_key);
    key.freeze()
}

/// All writes that lost, the oldest first.
pub fn conflicts(region: RegionId, namespace: NamespaceId) -> KeyRange {
    KeyRange::prefix(&by_stamp_prefix(region, namespace))
}

/// The writes that lost, behind this one; all of them where it is `None`.
pub fn conflicts_after(
    region: RegionId,
    namespace: NamespaceId,
    after: Option<(Stamp, &[u8])>,
) -> KeyRange {
    let mut range = conflicts(region, namespace);
    if let Some((stamp, user_key)) = after {
        // The next key there can be.
        range.start = [&conflict(region, namespace, stamp, user_key)[..], &[0]]
            .concat()
            .into();
    }
    range
}

fn by_key_prefix(region: RegionId, namespace: NamespaceId, user_key: &[u8]) -> BytesMut {
    let mut key = namespace_prefix(region, namespace, 13 + user_key.len());
    key.put_u8(BY_KEY);
    // The length first, so that no key's rows are found under a key that begins like it.
    key.put_u32(user_key.len() as u32);
    key.put_slice(user_key);
    key
}

/// The index row of a write that lost, by its key.
pub fn conflict_of_key(
    region: RegionId,
    namespace: NamespaceId,
    user_key: &[u8],
    stamp: Stamp,
) -> Bytes {
    let mut key = by_key_prefix(region, namespace, user_key);
    key.put_u64(stamp.0);
    key.freeze()
}

/// The index rows of one key.
pub fn conflicts_of_key(region: RegionId, namespace: NamespaceId, user_key: &[u8]) -> KeyRange {
    KeyRange::prefix(&by_key_prefix(region, namespace, user_key))
}

/// The stamp at the end of an index row's key.
pub fn stamp_of(key: &[u8]) -> Option<Stamp> {
    let at = key.len().checked_sub(8)?;
    key.get(at..)?
        .try_into()
        .ok()
        .map(|bytes| Stamp(u64::from_be_bytes(bytes)))
}

/// The mark of a write that was set aside here and is to be told to the others.
pub fn untold(region: RegionId, namespace: NamespaceId, stamp: Stamp, user_key: &[u8]) -> Bytes {
    let mut key = namespace_prefix(region, namespace, 9 + user_key.len());
    key.put_u8(UNTOLD);
    key.put_u64(stamp.0);
    key.put_slice(user_key);
    key.freeze()
}

/// All marks of a namespace, the oldest write first.
pub fn all_untold(region: RegionId, namespace: NamespaceId) -> KeyRange {
    let mut key = namespace_prefix(region, namespace, 1);
    key.put_u8(UNTOLD);
    KeyRange::prefix(&key)
}

/// Takes a mark apart.
pub fn parse_untold(key: &Bytes) -> Option<(Stamp, Bytes)> {
    let stamp = key.get(13..21)?.try_into().ok().map(u64::from_be_bytes)?;
    Some((Stamp(stamp), key.slice(21..)))
}

/// All rows of a namespace's conflict log.
pub fn all_conflicts(region: RegionId, namespace: NamespaceId) -> KeyRange {
    KeyRange::prefix(&namespace_prefix(region, namespace, 0))
}

/// All entries of a namespace's logs.
pub fn all_entries(region: RegionId, namespace: NamespaceId) -> KeyRange {
    KeyRange::prefix(&namespace_prefix(region, namespace, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGION: RegionId = RegionId(2);
    const NAMESPACE: NamespaceId = NamespaceId(7);

    #[test]
    fn keys_come_apart_again() {
        let origin = StoreId::new(3).unwrap();
        let dot = Dot {
            origin,
            sequence: 300,
        };
        let key = entry(REGION, NAMESPACE, dot);
        assert_eq!(sequence_of(&key), Some(300));
        assert_eq!(entry_of(&key), Some((REGION, NAMESPACE, dot)));
        assert_eq!(entry_of(&key[..21]), None);
        let row = conflict_of_key(REGION, NAMESPACE, b"k", Stamp(5));
        assert_eq!(stamp_of(&row), Some(Stamp(5)));
        let mark = untold(REGION, NAMESPACE, Stamp(5), b"k");
        assert!(all_untold(REGION, NAMESPACE).contains(&mark));
        assert!(!conflicts(REGION, NAMESPACE).contains(&mark));
        assert_eq!(
            parse_untold(&mark),
            Some((Stamp(5), Bytes::from_static(b"k")))
        );
    }

    #[test]
    fn ranges_hold_what_they_say_and_no_more() {
        let origin = StoreId::new(3).unwrap();
        let at = |sequence| Dot { origin, sequence };
        let range = entries(REGION, NAMESPACE, origin, 5, 7);
        for (sequence, inside) in [(4, false), (5, true), (7, true), (8, false)] {
            let key = entry(REGION, NAMESPACE, at(sequence));
            assert_eq!(range.contains(&key), inside);
            assert!(all_entries(REGION, NAMESPACE).contains(&key));
        }
        let range = conflicts_of_key(REGION, NAMESPACE, b"k");
        assert!(range.contains(&conflict_of_key(REGION, NAMESPACE, b"k", Stamp(u64::MAX))));
        assert!(!range.contains(&conflict_of_key(REGION, NAMESPACE, b"kk", Stamp(1))));
    }

    #[test]
    fn a_page_of_conflicts_begins_behind_the_one_before() {
        let at = |stamp, key| conflict(REGION, NAMESPACE, Stamp(stamp), key);
        let rest = conflicts_after(REGION, NAMESPACE, Some((Stamp(5), b"k")));
        for (row, inside) in [
            (at(4, b"z"), false),
            (at(5, b"k"), false),
            (at(5, b"k\0"), true),
            (at(5, b"l"), true),
            (at(6, b"a"), true),
            (conflict_of_key(REGION, NAMESPACE, b"k", Stamp(9)), false),
        ] {
            assert_eq!(rest.contains(&row), inside, "{row:?}");
        }
        assert!(conflicts_after(REGION, NAMESPACE, None).contains(&at(0, b"")));
    }
}
