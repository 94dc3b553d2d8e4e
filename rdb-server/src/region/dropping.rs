//! What a replica holds of a namespace, in all families: what goes when the namespace is deleted.
//!
//! Owns the list. Knows nothing of why a namespace goes, or of what is kept in memory.
//!
//! Invariants: nothing of another namespace, or of another region, lies in the ranges; each has an end.

use super::layout;
use super::state::RegionState;
use crate::eventual::{layout as own, state::load_ids};
use rdb_proto::raft::RegionDescriptor;
use rdb_storage::{Family, KeyRange, StorageError, View};
use rdb_types::{GlobalKey, NamespaceId, RegionId};

/// Everything, but for the row that says what the namespace is in the region.
///
/// # Errors
/// Reading failed.
pub(super) fn ranges(
    view: &dyn View,
    state: &RegionState,
    namespace: NamespaceId,
) -> Result<Vec<(Family, KeyRange)>, StorageError> {
    let region = state.id();
    let mut ranges = own_ranges(view, region, namespace)?;
    ranges.push((Family::Data, data(&state.descriptor, namespace)));
    let index = layout::region_namespace(region, namespace);
    ranges.push((Family::Expiry, KeyRange::prefix(&index)));
    for generation in state.ids.remembered() {
        let prefix = layout::request_id(region, generation, namespace, &[]);
        ranges.push((Family::RequestIds, KeyRange::prefix(&prefix)));
    }
    Ok(ranges)
}

/// What a replica keeps for itself, beside what a snapshot brings: logs and conflicts, its vector, and
/// the answers that it gave.
///
/// # Errors
/// Reading failed.
pub(super) fn own_ranges(
    view: &dyn View,
    region: RegionId,
    namespace: NamespaceId,
) -> Result<Vec<(Family, KeyRange)>, StorageError> {
    let mut ranges = vec![
        (Family::OriginLog, own::all_entries(region, namespace)),
        (Family::Conflicts, own::all_conflicts(region, namespace)),
        (
            Family::Region,
            KeyRange::prefix(&own::state(region, namespace)),
        ),
    ];
    ranges.extend(answers(view, region, namespace)?);
    Ok(ranges)
}

/// Answers to requests of eventual times.
///
/// # Errors
/// Reading failed.
pub(super) fn answers(
    view: &dyn View,
    region: RegionId,
    namespace: NamespaceId,
) -> Result<Vec<(Family, KeyRange)>, StorageError> {
    let ids = load_ids(region, view)?;
    let range = |generation| {
        let prefix = layout::request_id(own::beside(region), generation, namespace, &[]);
        (Family::RequestIds, KeyRange::prefix(&prefix))
    };
    Ok(ids.remembered().map(range).collect())
}

fn data(descriptor: &RegionDescriptor, namespace: NamespaceId) -> KeyRange {
    let whole = KeyRange {
        start: GlobalKey::namespace_start(namespace),
        end: GlobalKey::namespace_end(namespace),
    };
    layout::intersect(descriptor, &whole)
}
