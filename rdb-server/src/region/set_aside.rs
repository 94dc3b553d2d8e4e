//! Writes that may no longer be merged: they go to the conflict log before a fresh copy takes their place.
//!
//! Owns finding them: everything that a replica holds of an eventual time beyond the fence that ended it,
//! of whatever origin, in its logs or, where those were shortened, in its records. What the fresh copy holds all the same
//! is found out when the others are told ([`super::apply`]).
//!
//! Invariants:
//! - Reads only; the rows come as batches that the caller writes and syncs before anything goes.
//! - A batch counts the rows that it brings, so a crash between two leaves a list that is counted right, and
//!   the walk, begun anew, passes over what is on it.

use super::layout as rows;
use crate::eventual::conflicts::{self, ConflictChanges};
use crate::eventual::{EventualState, layout};
use bytes::Bytes;
use prost::Message;
use rdb_proto::raft::{ConflictRow, OriginEntry, RegionDescriptor};
use rdb_storage::{Family, KeyRange, StorageError, View, WriteBatch};
use rdb_types::{GlobalKey, NamespaceId, Record, RegionId, Stamp, VersionVector};

/// Bytes of rows in one batch, at most one row more.
const BATCH_BYTES: usize = 4 << 20;

/// Why a write is in the list.
const REASON: &str = "it was not exchanged before the namespace became strong without this store";

/// The walk over everything beyond a fence, a batch at a time.
pub(super) struct Beyond {
    region: RegionId,
    namespace: NamespaceId,
    fence: VersionVector,
    own: EventualState,
    /// What is still to be looked through: entries of logs, and records. The last one first.
    left: Vec<(Family, KeyRange)>,
}

impl Beyond {
    /// A walk at its beginning. `own` is the namespace as it is on disk.
    pub(super) fn new(
        descriptor: &RegionDescriptor,
        namespace: NamespaceId,
        fence: VersionVector,
        own: EventualState,
    ) -> Beyond {
        let region = RegionId(descriptor.id);
        let mut held = own.vector.clone();
        held.join(&own.partial);
        let beyond = || {
            held.iter()
                .filter(|(origin, last)| *last > fence.get(*origin))
        };
        let mut left = Vec::new();
        // Where a log is shorter than that, or a copy brought records without one, the records tell the rest.
        if beyond().any(|(origin, _)| own.truncated.get(origin) > fence.get(origin))
            || !own.partial.is_empty()
        {
            let whole = KeyRange {
                start: GlobalKey::namespace_start(namespace),
                end: GlobalKey::namespace_end(namespace),
            };
            // Numbers of another region's logs say nothing here.
            left.push((Family::Data, rows::intersect(descriptor, &whole)));
        }
        left.extend(beyond().map(|(origin, last)| {
            let first = fence.get(origin) + 1;
            let range = layout::entries(region, namespace, origin, first, last);
            (Family::OriginLog, range)
        }));
        Beyond {
            region,
            namespace,
            fence,
            own,
            left,
        }
    }

    /// The next rows for the list, marked to be told to the other replicas; `None` behind the last one. The
    /// batch before has to be written, so that `view` shows it.
    ///
    /// # Errors
    /// Reading failed, or what was read is damaged.
    pub(super) fn next_batch(
        &mut self,
        view: &dyn View,
    ) -> Result<Option<WriteBatch>, StorageError> {
        let (mut batch, mut bytes) = (WriteBatch::new(), 0);
        let mut changes = ConflictChanges::default();
        'full: while let Some((family, mut range)) = self.left.pop() {
            for item in view.scan(family, &range, false) {
                let (key, value) = item?;
                let row = match family {
                    Family::OriginLog => self.entry(&key, value)?,
                    _ => self.record(&key, value)?,
                };
                let Some(row) = row else { continue };
                bytes += row.encoded_len();
                self.add(view, row, &mut changes, &mut batch)?;
                if bytes >= BATCH_BYTES {
                    // The next key there can be.
                    range.start = [&key[..], &[0]].concat().into();
                    self.left.push((family, range));
                    break 'full;
                }
            }
        }
        if batch.is_empty() {
            return Ok(None);
        }
        batch.put(
            Family::Region,
            layout::state(self.region, self.namespace),
            self.own.to_row().encode_to_vec(),
        );
        Ok(Some(batch))
    }

    /// The namespace with all rows counted that the walk has brought.
    pub(super) fn into_own(self) -> EventualState {
        self.own
    }

    fn entry(&self, key: &[u8], stored: Bytes) -> Result<Option<ConflictRow>, StorageError> {
        let wrong = |why: String| {
            StorageError::corruption(format!("an entry of a log in region {}", self.region), why)
        };
        let (_, _, dot) =
            layout::entry_of(key).ok_or_else(|| wrong("its key is too short".into()))?;
        let entry = OriginEntry::decode(stored).map_err(|error| wrong(error.to_string()))?;
        Ok((entry.filler_from == 0).then(|| ConflictRow {
            key: entry.key,
            stamp: entry.stamp,
            origin: u32::from(dot.origin.get()),
            sequence: entry.sequence,
            value: entry.value,
            deletion: entry.deletion,
            expires_at_ms: entry.expires_at_ms,
            request_id: entry.request_id,
            epoch: entry.epoch,
            ..ConflictRow::default()
        }))
    }

    fn record(&self, key: &Bytes, stored: Bytes) -> Result<Option<ConflictRow>, StorageError> {
        let record = Record::decode(stored).map_err(|error| {
            StorageError::corruption(
                format!("record in region {}", self.region),
                error.to_string(),
            )
        })?;
        let beyond = conflicts::dot(&record).is_some_and(|dot| !self.fence.has(dot));
        let global = GlobalKey::from_bytes(key.clone()).filter(|_| beyond);
        let none = Record::default();
        Ok(global.map(|global| conflicts::row(&global.user_key(), &record, &none, "")))
    }

    fn add(
        &mut self,
        view: &dyn View,
        row: ConflictRow,
        changes: &mut ConflictChanges,
        batch: &mut WriteBatch,
    ) -> Result<(), StorageError> {
        let (region, namespace) = (self.region, self.namespace);
        let row = ConflictRow {
            set_aside: true,
            reason: REASON.to_owned(),
            ..row
        };
        batch.put(
            Family::Conflicts,
            layout::untold(region, namespace, Stamp(row.stamp), &row.key),
            Bytes::new(),
        );
        changes.add(view, region, namespace, row, &mut self.own, batch)
    }
}

#[cfg(test)]
#[path = "set_aside_tests.rs"]
mod tests;
