//! Writes that may no longer be merged: they go to the conflict log before a fresh copy takes their place.
//!
//! Owns finding them: everything that a replica holds of an eventual time beyond the fence that ended it,
//! of whatever origin, in its logs or, where those were shortened, in its records. What the fresh copy holds all the same
//! is found out when the others are told ([`super::apply`]).
//!
//! Invariant: reads only; the rows come as batches that the caller writes and syncs before anything goes.

use super::layout as rows;
use crate::eventual::conflicts::{self, ConflictChanges};
use crate::eventual::{EventualState, layout, state::load_ids};
use bytes::Bytes;
use prost::Message;
use rdb_proto::raft::{ConflictRow, OriginEntry, RegionDescriptor};
use rdb_storage::{Family, KeyRange, StorageError, View, WriteBatch};
use rdb_types::{GlobalKey, NamespaceId, Record, RegionId, Stamp, StoreId, VersionVector};

/// Bytes of rows in one batch, at most one row more.
const BATCH_BYTES: usize = 4 << 20;

/// Why a write is in the list.
const REASON: &str = "it was not exchanged before the namespace became strong without this store";

struct SetAside<'v> {
    view: &'v dyn View,
    descriptor: &'v RegionDescriptor,
    region: RegionId,
    namespace: NamespaceId,
    batches: Vec<WriteBatch>,
    batch: WriteBatch,
    bytes: usize,
    changes: ConflictChanges,
}

/// Puts everything beyond the fence on the list, marked to be told to the other replicas. `own` counts the
/// rows from then on.
///
/// # Errors
/// Reading failed, or what was read is damaged.
pub(super) fn all_beyond(
    view: &dyn View,
    descriptor: &RegionDescriptor,
    namespace: NamespaceId,
    fence: &VersionVector,
    own: &mut EventualState,
) -> Result<Vec<WriteBatch>, StorageError> {
    let mut found = SetAside {
        view,
        descriptor,
        region: RegionId(descriptor.id),
        namespace,
        batches: Vec::new(),
        batch: WriteBatch::new(),
        bytes: 0,
        changes: ConflictChanges::default(),
    };
    let mut held = own.vector.clone();
    held.join(&own.partial);
    for (origin, last) in held
        .iter()
        .filter(|(origin, last)| *last > fence.get(*origin))
    {
        found.entries(origin, fence.get(origin) + 1, last, own)?;
    }
    // Where a log is shorter than that, or a copy brought records without one, the records tell the rest.
    let gone = held.iter().any(|(origin, last)| {
        last > fence.get(origin) && own.truncated.get(origin) > fence.get(origin)
    });
    if gone || !own.partial.is_empty() {
        found.records(fence, own)?;
    }
    if !found.batch.is_empty() {
        found.batches.push(found.batch);
    }
    Ok(found.batches)
}

impl SetAside<'_> {
    fn entries(
        &mut self,
        origin: StoreId,
        first: u64,
        last: u64,
        own: &mut EventualState,
    ) -> Result<(), StorageError> {
        let range = layout::entries(self.region, self.namespace, origin, first, last);
        for item in self.view.scan(Family::OriginLog, &range, false) {
            let entry = OriginEntry::decode(item?.1).map_err(|error| {
                StorageError::corruption(
                    format!("an entry of a log in region {}", self.region),
                    error.to_string(),
                )
            })?;
            if entry.filler_from == 0 {
                self.add(
                    ConflictRow {
                        key: entry.key,
                        stamp: entry.stamp,
                        origin: u32::from(origin.get()),
                        sequence: entry.sequence,
                        value: entry.value,
                        deletion: entry.deletion,
                        expires_at_ms: entry.expires_at_ms,
                        request_id: entry.request_id,
                        ..ConflictRow::default()
                    },
                    own,
                )?;
            }
        }
        Ok(())
    }

    fn records(
        &mut self,
        fence: &VersionVector,
        own: &mut EventualState,
    ) -> Result<(), StorageError> {
        let whole = KeyRange {
            start: GlobalKey::namespace_start(self.namespace),
            end: GlobalKey::namespace_end(self.namespace),
        };
        // Numbers of another region's logs say nothing here.
        let range = rows::intersect(self.descriptor, &whole);
        for item in self.view.scan(Family::Data, &range, false) {
            let (key, stored) = item?;
            let record = Record::decode(stored).map_err(|error| {
                StorageError::corruption(
                    format!("record in region {}", self.region),
                    error.to_string(),
                )
            })?;
            let beyond = conflicts::dot(&record).is_some_and(|dot| !fence.has(dot));
            if let Some(global) = GlobalKey::from_bytes(key).filter(|_| beyond) {
                let none = Record::default();
                self.add(conflicts::row(&global.user_key(), &record, &none, ""), own)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, row: ConflictRow, own: &mut EventualState) -> Result<(), StorageError> {
        let (region, namespace) = (self.region, self.namespace);
        let row = ConflictRow {
            set_aside: true,
            reason: REASON.to_owned(),
            ..row
        };
        self.bytes += row.encoded_len();
        let (stamp, key) = (Stamp(row.stamp), row.key.clone());
        self.batch.put(
            Family::Conflicts,
            layout::untold(region, namespace, stamp, &key),
            Bytes::new(),
        );
        self.changes
            .add(self.view, region, namespace, row, own, &mut self.batch)?;
        if self.bytes >= BATCH_BYTES {
            self.bytes = 0;
            self.batches.push(std::mem::take(&mut self.batch));
        }
        Ok(())
    }
}

/// Forgets the answers to requests of an eventual time whose writes may have been set aside: a repeat of one
/// is a new write.
///
/// # Errors
/// Reading failed.
pub(super) fn forget_answers(
    view: &dyn View,
    region: RegionId,
    namespace: NamespaceId,
    batch: &mut WriteBatch,
) -> Result<(), StorageError> {
    for generation in load_ids(region, view)?.remembered() {
        let prefix = rows::request_id(layout::beside(region), generation, namespace, &[]);
        let range = KeyRange::prefix(&prefix);
        if let Some(end) = range.end {
            batch.delete_range(Family::RequestIds, range.start, end);
        }
    }
    Ok(())
}
