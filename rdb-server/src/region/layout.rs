//! Keys of a region's rows.
//!
//! ```text
//! data         namespace u32, user key                        -> Record
//! region       region u64                                     -> RegionRow
//!              region u64, namespace u32                      -> RegionNamespaceRow
//! request_ids  region u64, generation u64, namespace u32, id  -> RequestIdRow
//! expiry       region u64, expires_at_ms u64, global key      -> nothing
//! ```
//! Numbers are big endian, so that rows order as their parts do.

use bytes::{BufMut, Bytes, BytesMut};
use rdb_proto::raft::RegionDescriptor;
use rdb_storage::{Family, KeyRange};
use rdb_types::{GlobalKey, NamespaceId, RegionId};

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

/// Where a record that expires stands in the order of expiry.
pub fn expiry(region: RegionId, expires_at_ms: u64, global: &GlobalKey) -> Bytes {
    key(&[
        &region.0.to_be_bytes(),
        &expires_at_ms.to_be_bytes(),
        global.as_bytes(),
    ])
}

/// Takes a key that [`expiry`] made apart.
pub fn parse_expiry(key: &Bytes) -> Option<(u64, GlobalKey)> {
    let at = key.get(8..16)?.try_into().ok().map(u64::from_be_bytes)?;
    Some((at, GlobalKey::from_bytes(key.slice(16..))?))
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

/// Everything that a snapshot of the region holds, and that installing one replaces: all but the records of
/// the namespaces in `eventual` (in order), which each replica keeps by itself.
pub fn replicated_ranges(
    descriptor: &RegionDescriptor,
    eventual: &[NamespaceId],
) -> Vec<(Family, KeyRange)> {
    let prefix = region(RegionId(descriptor.id));
    let mut ranges = Vec::new();
    let mut rest = Some(data_range(descriptor));
    for namespace in eventual {
        let Some(range) = &mut rest else { break };
        let start = GlobalKey::namespace_start(*namespace);
        let before = KeyRange {
            start: range.start.clone(),
            end: Some(
                range
                    .end
                    .clone()
                    .map_or(start.clone(), |end| end.min(start)),
            ),
        };
        if !before.is_empty() {
            ranges.push((Family::Data, before));
        }
        match GlobalKey::namespace_end(*namespace) {
            Some(end) => range.start = range.start.clone().max(end),
            None => rest = None,
        }
    }
    if let Some(rest) = rest.filter(|rest| !rest.is_empty()) {
        ranges.push((Family::Data, rest));
    }
    ranges.extend([
        (Family::Expiry, KeyRange::prefix(&prefix)),
        (Family::RequestIds, KeyRange::prefix(&prefix)),
        (Family::Region, KeyRange::prefix(&prefix)),
    ]);
    ranges
}

/// Whether a region's range covers a global key.
pub fn covers(descriptor: &RegionDescriptor, global: &[u8]) -> bool {
    global >= &descriptor.start[..] && (descriptor.end.is_empty() || global < &descriptor.end[..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expiry_key_comes_apart_again() {
        let global = GlobalKey::new(NamespaceId(7), b"k");
        let stored = expiry(RegionId(3), 99, &global);
        assert_eq!(parse_expiry(&stored), Some((99, global)));
        assert_eq!(parse_expiry(&stored.slice(..12)), None);
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
    fn a_snapshot_leaves_out_the_records_of_eventual_namespaces() {
        let descriptor = RegionDescriptor {
            id: 2,
            start: GlobalKey::namespace_start(NamespaceId(1)),
            end: Bytes::new(),
            generation: 1,
        };
        let holds = |eventual: &[NamespaceId], namespace| {
            let key = GlobalKey::new(NamespaceId(namespace), b"k");
            replicated_ranges(&descriptor, eventual)
                .iter()
                .any(|(family, range)| *family == Family::Data && range.contains(key.as_bytes()))
        };
        for namespace in [1, 2, 3, 4, 5] {
            assert!(holds(&[], namespace));
            let eventual = [NamespaceId(2), NamespaceId(4)];
            assert_eq!(holds(&eventual, namespace), namespace % 2 == 1);
            assert_eq!(holds(&[NamespaceId(1)], namespace), namespace != 1);
        }
        // One that the region does not hold changes nothing.
        assert!(holds(&[NamespaceId(0)], 1));
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
