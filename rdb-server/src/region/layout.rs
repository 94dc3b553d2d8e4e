//! Keys of a region's rows.
//!
//! ```text
//! data         namespace u32, user key                        -> Record
//! region       region u64                                     -> RegionRow
//!              region u64, namespace u32                      -> RegionNamespaceRow
//! request_ids  region u64, generation u64, namespace u32, id  -> RequestIdRow
//! expiry       region u64, namespace u32, 0, expires_at_ms u64, global key    -> nothing
//!              region u64, namespace u32, 1, origin u16, sequence u64         -> global key
//! ```
//! Numbers are big endian, so that rows order as their parts do. The second kind of `expiry` rows names the
//! dead of a namespace that is or was eventual: tombstones and expired records that still stand in `data`.
//!
//! Both kinds, like `data`, lie together by namespace, so that they go from one owner to another with a
//! change of mode and nothing is written again.

use crate::eventual::layout as own;
use bytes::{BufMut, Bytes, BytesMut};
use rdb_proto::raft::RegionDescriptor;
use rdb_storage::{Family, KeyRange};
use rdb_types::{Dot, GlobalKey, NamespaceId, RegionId, StoreId};
use std::collections::BTreeSet;

fn key(parts: &[&[u8]]) -> Bytes {
    let mut key = BytesMut::with_capacity(parts.iter().map(|part| part.len()).sum());
    for part in parts {
        key.put_slice(part);
    }
    key.freeze()
}

/// The region's own row, and the prefix of all that belongs to it outside `data`.
pub fn region(region: RegionId) -> Bytes {
    key(&[&region.0.to_be_bytes()])
}

/// A namespace's row within a region.
pub fn region_namespace(region: RegionId, namespace: NamespaceId) -> Bytes {
    key(&[&region.0.to_be_bytes(), &namespace.0.to_be_bytes()])
}

/// The namespace of a key that [`region_namespace`] made; `None` for the region's own row.
pub fn namespace_of(key: &[u8]) -> Option<NamespaceId> {
    key.get(8..12)?
        .try_into()
        .ok()
        .map(|bytes| NamespaceId(u32::from_be_bytes(bytes)))
}

/// All ids of one generation of the table of request ids.
pub fn request_ids(region: RegionId, generation: u64) -> Bytes {
    key(&[&region.0.to_be_bytes(), &generation.to_be_bytes()])
}

/// One remembered request id.
pub fn request_id(region: RegionId, generation: u64, namespace: NamespaceId, id: &[u8]) -> Bytes {
    key(&[
        &region.0.to_be_bytes(),
        &generation.to_be_bytes(),
        &namespace.0.to_be_bytes(),
        id,
    ])
}

const EXPIRING: u8 = 0;
const DEAD: u8 = 1;

fn index_prefix(region: RegionId, namespace: NamespaceId, kind: u8, room: usize) -> BytesMut {
    let mut key = BytesMut::with_capacity(13 + room);
    key.put_u64(region.0);
    key.put_u32(namespace.0);
    key.put_u8(kind);
    key
}

/// The index row of a record that will expire.
pub fn expiring(region: RegionId, expires_at_ms: u64, global: &GlobalKey) -> Bytes {
    let bytes = global.as_bytes();
    let mut key = index_prefix(region, global.namespace(), EXPIRING, 8 + bytes.len());
    key.put_u64(expires_at_ms);
    key.put_slice(bytes);
    key.freeze()
}

/// The records of a namespace that expire up to and including `through_ms`.
pub fn expiring_through(region: RegionId, namespace: NamespaceId, through_ms: u64) -> KeyRange {
    let prefix = index_prefix(region, namespace, EXPIRING, 8);
    let mut end = prefix.clone();
    end.put_u64(through_ms.saturating_add(1));
    KeyRange::new(prefix.freeze(), end.freeze())
}

/// The index rows of a region from a namespace on.
pub fn index_from(region: RegionId, namespace: NamespaceId) -> KeyRange {
    KeyRange {
        start: key(&[&region.0.to_be_bytes(), &namespace.0.to_be_bytes()]),
        end: Some(key(&[&(region.0 + 1).to_be_bytes()])),
    }
}

/// Takes the key of an expiring record's row apart; `None` for any other row of the index.
pub fn parse_expiring(key: &Bytes) -> Option<(u64, GlobalKey)> {
    if *key.get(12)? != EXPIRING {
        return None;
    }
    let at = key.get(13..21)?.try_into().ok().map(u64::from_be_bytes)?;
    Some((at, GlobalKey::from_bytes(key.slice(21..))?))
}

/// The index row of a tombstone or an expired record.
pub fn dead(region: RegionId, namespace: NamespaceId, dot: Dot) -> Bytes {
    let mut key = index_prefix(region, namespace, DEAD, 10);
    key.put_u16(dot.origin.get());
    key.put_u64(dot.sequence);
    key.freeze()
}

/// The dead of one origin up to and including `last`.
pub fn dead_through(
    region: RegionId,
    namespace: NamespaceId,
    origin: StoreId,
    last: u64,
) -> KeyRange {
    let at = |sequence| dead(region, namespace, Dot { origin, sequence });
    KeyRange::new(at(0), at(last.saturating_add(1)))
}

/// All the dead of a namespace.
pub fn all_dead(region: RegionId, namespace: NamespaceId) -> KeyRange {
    KeyRange::prefix(&index_prefix(region, namespace, DEAD, 0))
}

/// The end of the global key space: the last namespace id is never given out.
const KEY_SPACE_END: &[u8] = &[0xff; 4];

/// The range of a region's data.
pub fn data_range(descriptor: &RegionDescriptor) -> KeyRange {
    let end = if descriptor.end.is_empty() {
        Bytes::from_static(KEY_SPACE_END)
    } else {
        descriptor.end.clone()
    };
    KeyRange {
        start: descriptor.start.clone(),
        end: Some(end),
    }
}

/// The part of a range of global keys that lies in a region.
pub fn intersect(descriptor: &RegionDescriptor, range: &KeyRange) -> KeyRange {
    let held = data_range(descriptor);
    let end = match (held.end, range.end.clone()) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    KeyRange {
        start: held.start.max(range.start.clone()),
        end,
    }
}

/// Everything that a snapshot of the region holds, in the order of the stream. Installing one replaces all of
/// it but what belongs to the namespaces in `kept`: eventual ones whose own data the replica goes on with.
pub fn replicated_ranges(
    descriptor: &RegionDescriptor,
    kept: &BTreeSet<NamespaceId>,
) -> Vec<(Family, KeyRange)> {
    let id = RegionId(descriptor.id);
    let prefix = region(id);
    let without = |family: Family, whole: KeyRange, of: &dyn Fn(NamespaceId) -> KeyRange| {
        let parts = cut_out(whole, kept.iter().map(|namespace| of(*namespace)));
        parts.into_iter().map(move |range| (family, range))
    };
    let data = |namespace| KeyRange {
        start: GlobalKey::namespace_start(namespace),
        end: GlobalKey::namespace_end(namespace),
    };
    let index = |namespace| KeyRange::prefix(&region_namespace(id, namespace));
    let state = |namespace| KeyRange::prefix(&own::state(id, namespace));
    let mut ranges: Vec<_> = without(Family::Data, data_range(descriptor), &data).collect();
    ranges.extend(without(Family::Expiry, KeyRange::prefix(&prefix), &index));
    ranges.push((Family::RequestIds, KeyRange::prefix(&prefix)));
    ranges.push((Family::Region, KeyRange::prefix(&prefix)));
    let states = KeyRange::prefix(&own::states(id));
    ranges.extend(without(Family::Region, states, &state));
    ranges
}

/// What is left of a range without some others, which come in order.
fn cut_out(whole: KeyRange, without: impl Iterator<Item = KeyRange>) -> Vec<KeyRange> {
    let mut parts = Vec::new();
    let mut rest = Some(whole);
    for gone in without {
        let Some(range) = rest.take() else { break };
        let before = KeyRange {
            start: range.start.clone(),
            end: Some(match &range.end {
                Some(end) => end.clone().min(gone.start.clone()),
                None => gone.start.clone(),
            }),
        };
        parts.push(before);
        rest = gone.end.map(|end| KeyRange {
            start: range.start.max(end),
            end: range.end,
        });
    }
    parts.extend(rest);
    parts.retain(|range| !range.is_empty());
    parts
}

/// Whether a region's range covers a global key.
pub fn covers(descriptor: &RegionDescriptor, global: &[u8]) -> bool {
    global >= &descriptor.start[..] && (descriptor.end.is_empty() || global < &descriptor.end[..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_keys_come_apart_again_and_ranges_hold_what_they_say() {
        let (region, namespace) = (RegionId(3), NamespaceId(7));
        let global = GlobalKey::new(namespace, b"k");
        let row = expiring(region, 99, &global);
        assert_eq!(parse_expiring(&row), Some((99, global)));
        assert_eq!(parse_expiring(&row.slice(..15)), None);
        assert!(expiring_through(region, namespace, 99).contains(&row));
        assert!(!expiring_through(region, namespace, 98).contains(&row));
        let origin = StoreId::new(3).unwrap();
        let at = |sequence| dead(region, namespace, Dot { origin, sequence });
        assert_eq!(parse_expiring(&at(300)), None);
        let range = dead_through(region, namespace, origin, 7);
        assert!(range.contains(&at(7)) && !range.contains(&at(8)));
        assert!(all_dead(region, namespace).contains(&at(8)));
        assert!(!all_dead(region, namespace).contains(&row));
        assert!(index_from(region, NamespaceId(7)).contains(&at(1)));
        assert!(!index_from(region, NamespaceId(8)).contains(&at(1)));
    }

    #[test]
    fn rows_of_one_region_are_never_taken_for_anothers() {
        let prefix = region(RegionId(3));
        assert!(region_namespace(RegionId(3), NamespaceId(u32::MAX)).starts_with(&prefix));
        assert!(!region_namespace(RegionId(4), NamespaceId(0)).starts_with(&prefix));
        assert_eq!(namespace_of(&prefix), None);
        assert_eq!(
            namespace_of(&region_namespace(RegionId(3), NamespaceId(5))),
            Some(NamespaceId(5))
        );
    }

    #[test]
    fn what_a_replica_goes_on_with_is_not_replaced() {
        let descriptor = RegionDescriptor {
            id: 2,
            start: GlobalKey::namespace_start(NamespaceId(1)),
            end: Bytes::new(),
            generation: 1,
        };
        let region = RegionId(2);
        let holds = |kept: &[u32], namespace| {
            let kept = kept.iter().copied().map(NamespaceId).collect();
            let namespace = NamespaceId(namespace);
            let key = GlobalKey::new(namespace, b"k");
            let origin = StoreId::new(1).unwrap();
            let dot = Dot {
                origin,
                sequence: 1,
            };
            let ranges = replicated_ranges(&descriptor, &kept);
            [
                (Family::Data, key.as_bytes().clone()),
                (Family::Expiry, expiring(region, 5, &key)),
                (Family::Expiry, dead(region, namespace, dot)),
                (Family::Region, own::state(region, namespace)),
            ]
            .map(|(of, key)| {
                let found = ranges.iter();
                found
                    .filter(|(family, range)| *family == of && range.contains(&key))
                    .count()
            })
        };
        for namespace in [1, 2, 3, 4, 5] {
            assert_eq!(holds(&[], namespace), [1; 4]);
            let others = usize::from(namespace % 2 == 1);
            assert_eq!(holds(&[2, 4], namespace), [others; 4]);
            assert_eq!(holds(&[1], namespace), [usize::from(namespace != 1); 4]);
        }
        // One that the region does not hold changes nothing.
        assert_eq!(holds(&[0], 1), [1; 4]);
        // The state of the region and of its namespaces in the log is always replaced.
        let ranges = replicated_ranges(&descriptor, &[NamespaceId(2)].into());
        let row = region_namespace(region, NamespaceId(2));
        assert!(
            ranges
                .iter()
                .any(|(family, range)| *family == Family::Region && range.contains(&row))
        );
    }

    #[test]
    fn an_open_end_covers_everything_above() {
        let open = RegionDescriptor {
            id: 2,
            start: Bytes::from_static(b"b"),
            end: Bytes::new(),
            generation: 1,
        };
        assert!(covers(&open, b"b") && covers(&open, &[0xff; 9]) && !covers(&open, b"a"));
        let closed = RegionDescriptor {
            end: Bytes::from_static(b"d"),
            ..open
        };
        assert!(covers(&closed, b"czz") && !covers(&closed, b"d"));
    }
}
