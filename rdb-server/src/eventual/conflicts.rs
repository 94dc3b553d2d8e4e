//! The conflict log: writes that lost to one that their writer, or the winner's writer, had not seen.
//!
//! Owns the rows and their bound. Whether a write lost, and whether in sequence, [`super::fold`] knows.
//! Every replica merges every write and so finds the same conflicts by itself; a listing joins what the
//! replicas found.
//!
//! Invariant: a row by stamp has exactly one row by key, and the state counts both.

use super::layout;
use super::state::EventualState;
use bytes::Bytes;
use prost::Message;
use rdb_proto::raft::ConflictRow;
use rdb_storage::{Family, StorageError, View, WriteBatch};
use rdb_types::{Dot, NamespaceId, Record, RegionId, Stamp, StoreId};
use std::collections::BTreeMap;

/// Bytes that the log of a namespace in a region may take where its policies say nothing.
pub const DEFAULT_BYTES: u64 = 64 << 20;

/// Rows that the bound pushes out in one batch at most, beside those that the batch adds.
const DROPPED_PER_BATCH: usize = 256;

/// The number that a record's origin gave it; `None` for one that came through a log.
pub fn dot(record: &Record) -> Option<Dot> {
    let origin = record.stamp.store()?;
    (record.origin_sequence > 0).then_some(Dot {
        origin,
        sequence: record.origin_sequence,
    })
}

/// The row of a write that lost.
pub fn row(key: &Bytes, loser: &Record, winner: &Record, reason: &str) -> ConflictRow {
    let origin = |record: &Record| u32::from(record.stamp.store_bits());
    ConflictRow {
        key: key.clone(),
        stamp: loser.stamp.0,
        origin: origin(loser),
        sequence: loser.origin_sequence,
        value: loser.value.clone(),
        deletion: loser.tombstone,
        expires_at_ms: loser.expires_at_ms,
        winner_stamp: winner.stamp.0,
        winner_origin: origin(winner),
        winner_sequence: winner.origin_sequence,
        set_aside: false,
        reason: reason.to_owned(),
        // A record does not say what asked for it.
        request_id: Bytes::new(),
        epoch: loser.epoch.0,
    }
}

/// The write that a row holds.
pub fn loser(row: &ConflictRow) -> Option<Dot> {
    Some(Dot {
        origin: StoreId::new(u64::from(row.origin))?,
        sequence: row.sequence,
    })
}

/// The write that it lost to.
pub fn victor(row: &ConflictRow) -> Option<Dot> {
    Some(Dot {
        origin: StoreId::new(u64::from(row.winner_origin))?,
        sequence: row.winner_sequence,
    })
}

/// Changes to the logs of a region that are not on disk yet, over what is.
#[derive(Default)]
pub struct ConflictChanges {
    /// By (namespace, key, stamp); `None`: removed.
    rows: BTreeMap<(NamespaceId, Bytes, Stamp), Option<ConflictRow>>,
}

impl ConflictChanges {
    /// The rows of one key.
    pub fn of_key(
        &self,
        view: &dyn View,
        region: RegionId,
        namespace: NamespaceId,
        key: &Bytes,
    ) -> Result<Vec<ConflictRow>, StorageError> {
        let mut found = BTreeMap::new();
        let range = layout::conflicts_of_key(region, namespace, key);
        for item in view.scan(Family::Conflicts, &range, false) {
            let Some(stamp) = layout::stamp_of(&item?.0) else {
                continue;
            };
            if let Some(row) = read(view, region, namespace, stamp, key)? {
                found.insert(stamp, row);
            }
        }
        let first = (namespace, key.clone(), Stamp::ZERO);
        let last = (namespace, key.clone(), Stamp(u64::MAX));
        for ((_, _, stamp), change) in self.rows.range(first..=last) {
            match change {
                Some(row) => found.insert(*stamp, row.clone()),
                None => found.remove(stamp),
            };
        }
        Ok(found.into_values().collect())
    }

    /// Adds a row, unless it is there.
    pub fn add(
        &mut self,
        view: &dyn View,
        region: RegionId,
        namespace: NamespaceId,
        row: ConflictRow,
        state: &mut EventualState,
        batch: &mut WriteBatch,
    ) -> Result<(), StorageError> {
        let (stamp, key) = (Stamp(row.stamp), row.key.clone());
        let at = (namespace, key.clone(), stamp);
        let there = match self.rows.get(&at) {
            Some(change) => change.is_some(),
            None => read(view, region, namespace, stamp, &key)?.is_some(),
        };
        if there {
            return Ok(());
        }
        let encoded = row.encode_to_vec();
        state.conflicts += 1;
        state.conflict_bytes += encoded.len() as u64;
        batch.put(
            Family::Conflicts,
            layout::conflict(region, namespace, stamp, &key),
            encoded,
        );
        batch.put(
            Family::Conflicts,
            layout::conflict_of_key(region, namespace, &key, stamp),
            Bytes::new(),
        );
        self.rows.insert(at, Some(row));
        Ok(())
    }

    /// Removes a row that is there.
    pub fn remove(
        &mut self,
        region: RegionId,
        namespace: NamespaceId,
        row: &ConflictRow,
        state: &mut EventualState,
        batch: &mut WriteBatch,
    ) {
        let (stamp, key) = (Stamp(row.stamp), row.key.clone());
        state.conflicts = state.conflicts.saturating_sub(1);
        state.conflict_bytes = state
            .conflict_bytes
            .saturating_sub(row.encoded_len() as u64);
        batch.delete(
            Family::Conflicts,
            layout::conflict(region, namespace, stamp, &key),
        );
        batch.delete(
            Family::Conflicts,
            layout::conflict_of_key(region, namespace, &key, stamp),
        );
        self.rows.insert((namespace, key, stamp), None);
    }

    /// Pushes out the oldest rows until the log is within its bound.
    pub fn bound(
        &mut self,
        view: &dyn View,
        region: RegionId,
        namespace: NamespaceId,
        bound_bytes: u64,
        state: &mut EventualState,
        batch: &mut WriteBatch,
    ) -> Result<(), StorageError> {
        if state.conflict_bytes <= bound_bytes {
            return Ok(());
        }
        // What this batch adds may be older than what is there, and nothing may come after it for long.
        let mut oldest = BTreeMap::new();
        for ((of, key, stamp), row) in &self.rows {
            if let (true, Some(row)) = (*of == namespace, row) {
                oldest.insert((*stamp, key.clone()), row.clone());
            }
        }
        let range = layout::conflicts(region, namespace);
        let stored = view.scan(Family::Conflicts, &range, false);
        for item in stored.take(DROPPED_PER_BATCH) {
            let row = decode(region, item?.1)?;
            let (stamp, key) = (Stamp(row.stamp), row.key.clone());
            let at = (namespace, key, stamp);
            if !self.rows.contains_key(&at) {
                oldest.insert((stamp, at.1), row);
            }
        }
        for row in oldest.into_values() {
            if state.conflict_bytes <= bound_bytes {
                break;
            }
            self.remove(region, namespace, &row, state, batch);
            state.conflicts_dropped += 1;
        }
        Ok(())
    }
}

/// One row as it is on disk.
pub fn read(
    view: &dyn View,
    region: RegionId,
    namespace: NamespaceId,
    stamp: Stamp,
    key: &[u8],
) -> Result<Option<ConflictRow>, StorageError> {
    view.get(
        Family::Conflicts,
        &layout::conflict(region, namespace, stamp, key),
    )?
    .map(|stored| decode(region, stored))
    .transpose()
}

/// Reads a stored row.
pub fn decode(region: RegionId, stored: Bytes) -> Result<ConflictRow, StorageError> {
    ConflictRow::decode(stored).map_err(|error| {
        StorageError::corruption(
            format!("the conflict log of region {region}"),
            error.to_string(),
        )
    })
}
