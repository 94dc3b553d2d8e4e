//! What a replica keeps of an eventual namespace in a region, and its row.
//!
//! The mode and its epoch are the region's ([`crate::region::state`]), decided by its log. This is the
//! replica's own: two replicas differ in it while writes are under way.

use super::layout;
use crate::region::request_ids::IdTable;
use bytes::Bytes;
use prost::Message;
use rdb_proto::convert::{vector, vector_to_wire};
use rdb_proto::raft;
use rdb_storage::{Family, KeyRange, StorageError, View, WriteBatch};
use rdb_types::{Digest, Epoch, NamespaceId, Record, RegionId, Stamp, StoreId, VersionVector};
use std::collections::BTreeMap;

/// A namespace in a region, as this replica has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventualState {
    /// The epoch in which it was last written.
    pub epoch: Epoch,
    /// Of which eventual time this is: the epoch of the seal before it; 0: there was none.
    pub last_seal: Epoch,
    /// Up to which number all writes of each origin were applied.
    pub vector: VersionVector,
    /// Up to which number the log of each origin is gone.
    pub truncated: VersionVector,
    /// Of the live records.
    pub digest: Digest,
    /// Live records.
    pub keys: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// Records that expire up to this time (Unix) count as dead. Never goes back, so what is dead stays
    /// dead whatever a clock says.
    pub expired_through_ms: u64,
    /// The vector at which a tombstone was last dropped: who has not seen all this may not be merged
    /// from, since it may hold what the tombstone deleted.
    pub floor: VersionVector,
    /// Not empty: a copy is being taken, and records up to here may have been merged before the vector
    /// says so.
    pub partial: VersionVector,
    /// Own numbers below this may be acknowledged before they are synced; a restart goes on above it.
    pub sequence_bound: u64,
    /// Writes in the conflict log.
    pub conflicts: u64,
    /// Their bytes.
    pub conflict_bytes: u64,
    /// Writes that its bound pushed out.
    pub conflicts_dropped: u64,
    /// Bytes of all logs; an estimate once something was truncated.
    pub log_bytes: u64,
    /// The largest stamp applied: a restart gives out none below it, since what is written then claims
    /// to have seen all this.
    pub last_stamp: Stamp,
}

impl EventualState {
    /// Whether a record is alive as this replica counts.
    pub fn is_live(&self, record: &Record) -> bool {
        !record.tombstone
            && (record.expires_at_ms == 0 || record.expires_at_ms > self.expired_through_ms)
    }

    /// Whether a copy may be merged of which the vector says all: it has seen everything that was here when a
    /// tombstone was last dropped. Older ones may hold what that deleted.
    pub fn may_merge(&self, of: &VersionVector) -> bool {
        of.covers(&self.floor)
    }

    /// A tombstone goes: from here on nothing older than this may be merged.
    pub fn raise_floor(&mut self) {
        self.floor.join(&self.vector);
    }

    /// What a replica goes on with whose data comes from a donor, in the place of all that it had: the donor's
    /// words about the data, and its own numbers and list of conflicts.
    #[must_use]
    pub fn replaced_by(self, me: StoreId, donor: EventualState) -> EventualState {
        EventualState {
            // Logs do not come along.
            truncated: donor.vector.clone(),
            log_bytes: 0,
            // A number that was given out is never given out again.
            sequence_bound: self.sequence_bound.max(self.vector.get(me)),
            conflicts: self.conflicts,
            conflict_bytes: self.conflict_bytes,
            conflicts_dropped: self.conflicts_dropped,
            // What the donor dropped was stamped, too: what is written here from now on is newer.
            last_stamp: self.last_stamp.max(donor.last_stamp),
            ..donor
        }
    }

    /// Entries in all logs.
    pub fn log_entries(&self) -> u64 {
        self.truncated.missing(&self.vector)
    }

    /// Reads what is on disk; nothing there is a namespace that was never written here.
    pub fn load(
        region: RegionId,
        namespace: NamespaceId,
        view: &dyn View,
    ) -> Result<EventualState, StorageError> {
        let Some(row) = view.get(Family::Region, &layout::state(region, namespace))? else {
            return Ok(EventualState::default());
        };
        EventualState::decode(region, namespace, row)
    }

    /// Reads a stored row.
    ///
    /// # Errors
    /// It is damaged.
    pub fn decode(
        region: RegionId,
        namespace: NamespaceId,
        row: Bytes,
    ) -> Result<EventualState, StorageError> {
        let damaged = |why: &str| {
            StorageError::corruption(
                format!("the vector of namespace {namespace} in region {region}"),
                why,
            )
        };
        let row = raft::EventualRow::decode(row).map_err(|error| damaged(&error.to_string()))?;
        let read = |parts: &[raft::VectorPart]| {
            vector(parts).ok_or_else(|| damaged("it names a store that cannot be"))
        };
        Ok(EventualState {
            epoch: Epoch(row.epoch),
            last_seal: Epoch(row.last_seal),
            vector: read(&row.vector)?,
            truncated: read(&row.truncated)?,
            digest: Digest::from_bytes(&row.digest).ok_or_else(|| damaged("no digest"))?,
            keys: row.keys,
            bytes: row.bytes,
            expired_through_ms: row.expired_through_ms,
            floor: read(&row.floor)?,
            partial: read(&row.partial)?,
            sequence_bound: row.sequence_bound,
            conflicts: row.conflicts,
            conflict_bytes: row.conflict_bytes,
            conflicts_dropped: row.conflicts_dropped,
            log_bytes: row.log_bytes,
            last_stamp: Stamp(row.last_stamp),
        })
    }

    /// Reads what is on disk of all namespaces of a region.
    ///
    /// # Errors
    /// Reading failed, or a row is damaged.
    pub fn load_all(
        region: RegionId,
        view: &dyn View,
    ) -> Result<BTreeMap<NamespaceId, EventualState>, StorageError> {
        let range = KeyRange::prefix(&layout::states(region));
        view.scan(Family::Region, &range, false)
            .map(|item| {
                let (key, _) = item?;
                let namespace = layout::namespace_of(&key).ok_or_else(|| {
                    StorageError::corruption(
                        format!("a vector of region {region}"),
                        "its key is too short",
                    )
                })?;
                Ok((namespace, EventualState::load(region, namespace, view)?))
            })
            .collect()
    }

    /// Adds the row to the batch that made it true.
    pub fn write_row(&self, region: RegionId, namespace: NamespaceId, batch: &mut WriteBatch) {
        let key = layout::state(region, namespace);
        batch.put(Family::Region, key, self.to_row().encode_to_vec());
    }

    /// The stored form.
    pub fn to_row(&self) -> raft::EventualRow {
        raft::EventualRow {
            epoch: self.epoch.0,
            vector: vector_to_wire(&self.vector),
            truncated: vector_to_wire(&self.truncated),
            digest: Bytes::copy_from_slice(&self.digest.to_bytes()),
            keys: self.keys,
            bytes: self.bytes,
            expired_through_ms: self.expired_through_ms,
            floor: vector_to_wire(&self.floor),
            partial: vector_to_wire(&self.partial),
            sequence_bound: self.sequence_bound,
            conflicts: self.conflicts,
            conflict_bytes: self.conflict_bytes,
            conflicts_dropped: self.conflicts_dropped,
            log_bytes: self.log_bytes,
            last_stamp: self.last_stamp.0,
            last_seal: self.last_seal.0,
        }
    }
}

/// Reads where the table of request ids stands.
pub fn load_ids(region: RegionId, view: &dyn View) -> Result<IdTable, StorageError> {
    let Some(row) = view.get(Family::Region, &layout::ids(region))? else {
        return Ok(IdTable::default());
    };
    let row = raft::EventualIdsRow::decode(row).map_err(|error| {
        StorageError::corruption(
            format!("the request ids of region {region}"),
            error.to_string(),
        )
    })?;
    Ok(IdTable {
        generation: row.generation,
        started_ms: row.started_ms,
        count: row.count,
        forgotten_through_ms: row.forgotten_through_ms,
    })
}

/// Adds the row of the table of request ids to the batch that made it true.
pub fn write_ids(ids: &IdTable, region: RegionId, batch: &mut WriteBatch) {
    let row = raft::EventualIdsRow {
        generation: ids.generation,
        started_ms: ids.started_ms,
        count: ids.count,
        forgotten_through_ms: ids.forgotten_through_ms,
    };
    batch.put(Family::Region, layout::ids(region), row.encode_to_vec());
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdb_storage::{Engine, MemoryEngine};

    #[test]
    fn a_row_comes_back_whole() {
        let one = StoreId::new(1).unwrap();
        let at = |sequence| [(one, sequence)].into_iter().collect::<VersionVector>();
        let state = EventualState {
            epoch: Epoch(3),
            last_seal: Epoch(2),
            vector: at(9),
            truncated: at(4),
            digest: Digest(77),
            keys: 2,
            bytes: 30,
            expired_through_ms: 5,
            floor: at(3),
            partial: at(12),
            sequence_bound: 100,
            conflicts: 6,
            conflict_bytes: 60,
            conflicts_dropped: 1,
            log_bytes: 500,
            last_stamp: Stamp(12_345),
        };
        let (engine, mut batch) = (MemoryEngine::new(), WriteBatch::new());
        state.write_row(RegionId(2), NamespaceId(3), &mut batch);
        engine.write(&batch).unwrap();
        let load = |namespace| EventualState::load(RegionId(2), NamespaceId(namespace), &engine);
        assert_eq!(load(3).unwrap(), state);
        assert_eq!(load(4).unwrap(), EventualState::default());
        let all = EventualState::load_all(RegionId(2), &engine).unwrap();
        assert_eq!(all, BTreeMap::from([(NamespaceId(3), state.clone())]));
        assert_eq!(state.log_entries(), 5);
    }
}
