//! What is known about a region's data, in memory and as rows.
//!
//! [`RegionState`] belongs to the state machine alone. [`Summary`] is the part that readers need; it
//! is replaced after the batch that it describes was written.

use super::layout;
use super::meta::MetaState;
use super::request_ids::IdTable;
use super::switching::Members;
use crate::raft::wire;
use crate::raft::{LogId, StoredMembership};
use bytes::Bytes;
use prost::Message;
use rdb_proto::convert;
use rdb_proto::raft::{self, RegionDescriptor};
use rdb_storage::{Family, KeyRange, StorageError, View, WriteBatch};
use rdb_types::{
    Digest, Epoch, Mode, NamespaceId, Record, RegionId, Stamp, StoreId, VersionVector,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// A namespace within a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceState {
    /// How it is served here.
    pub mode: Mode,
    /// Grows with every step of a mode change.
    pub epoch: Epoch,
    /// Of its live records in this region.
    pub digest: Digest,
    /// Records.
    pub keys: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// The highest attempt of a switch that the region was told: steps of a lower one do nothing.
    pub attempt: u64,
    /// While it is being sealed: eventual, and taking no writes.
    pub sealing: Option<Sealing>,
    /// The last seals, oldest first.
    pub fences: Vec<Fence>,
    /// Records that expire up to this time (Unix), and tombstones, are left from an eventual time: they count as absent, also
    /// where they still stand on a disk.
    pub buried_through_ms: u64,
    /// Why the last seal was given up; empty: none was since the last change of mode.
    pub last_abort: String,
    /// The last epoch in which a record was, or may have been, removed with nothing left in its place.
    pub removed_in: Epoch,
}

/// A seal that was begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealing {
    /// The replicas that have to promise.
    pub participants: BTreeSet<StoreId>,
}

/// What an eventual time ended with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The epoch that the seal began.
    pub epoch: Epoch,
    /// All writes up to here were taken along, and none beyond.
    pub vector: VersionVector,
}

/// Fences that are remembered, for sessions that slept through a seal.
pub const FENCES_KEPT: usize = 8;

impl NamespaceState {
    /// A namespace that was just installed, under the first epoch that its name has there.
    pub fn installed(mode: Mode, first_epoch: u64) -> NamespaceState {
        NamespaceState {
            epoch: Epoch(first_epoch).max(Epoch::FIRST),
            ..NamespaceState::new(mode)
        }
    }

    /// A namespace whose name was never used before.
    pub fn new(mode: Mode) -> NamespaceState {
        NamespaceState {
            mode,
            epoch: Epoch::FIRST,
            digest: Digest::default(),
            keys: 0,
            bytes: 0,
            attempt: 0,
            sealing: None,
            fences: Vec::new(),
            buried_through_ms: 0,
            last_abort: String::new(),
            removed_in: Epoch(0),
        }
    }

    /// The epoch of the last seal; 0: there was none. Two replicas that are not strong and agree in it hold
    /// parts of one eventual time.
    pub fn last_seal(&self) -> Epoch {
        self.fences.last().map_or(Epoch(0), |fence| fence.epoch)
    }

    /// Whether a key was, or may have been, written to since the seal that left out a write of `epoch`, with `standing`
    /// under it by now. `removed_through`: of an eventual namespace, what may be under tombstones that this replica has
    /// dropped.
    pub fn is_touched_since(
        &self,
        epoch: Epoch,
        standing: Option<&Record>,
        removed_through: &VersionVector,
    ) -> bool {
        let seal = self.fences.iter().find(|fence| fence.epoch > epoch);
        // Of a seal that is not remembered any more nobody knows.
        let seal = seal.map_or(Epoch(epoch.0 + 1), |fence| fence.epoch);
        let Some(record) = standing else {
            // An eventual time begins with the fence before it as what is removed: nothing beyond is.
            let fence = self.fences.last().map(|fence| &fence.vector);
            let dropped = self.mode == Mode::Eventual && fence != Some(removed_through);
            return dropped || self.removed_in >= seal;
        };
        record.epoch >= seal
    }

    /// Whether a strong namespace counts this record, in its digest and for those who ask.
    pub fn counts(&self, record: &Record) -> bool {
        !record.tombstone
            && (record.expires_at_ms == 0 || record.expires_at_ms > self.buried_through_ms)
    }

    /// The stored form.
    pub fn to_row(&self) -> raft::RegionNamespaceRow {
        raft::RegionNamespaceRow {
            mode: convert::mode_to_wire(self.mode),
            epoch: self.epoch.0,
            digest: Bytes::copy_from_slice(&self.digest.to_bytes()),
            keys: self.keys,
            bytes: self.bytes,
            attempt: self.attempt,
            sealing: self.sealing.as_ref().map(|sealing| raft::Sealing {
                participants: stores_to_wire(&sealing.participants),
            }),
            fences: self
                .fences
                .iter()
                .map(|fence| raft::Fence {
                    epoch: fence.epoch.0,
                    vector: convert::vector_to_wire(&fence.vector),
                })
                .collect(),
            buried_through_ms: self.buried_through_ms,
            last_abort: self.last_abort.clone(),
            dropped: false,
            removed_in: self.removed_in.0,
        }
    }

    /// Reads the stored form; `None` where it makes no sense.
    pub fn from_row(row: &raft::RegionNamespaceRow) -> Option<NamespaceState> {
        let sealing = match &row.sealing {
            None => None,
            Some(sealing) => Some(Sealing {
                participants: stores_from_wire(&sealing.participants)?,
            }),
        };
        let fences = row.fences.iter().map(|fence| {
            Some(Fence {
                epoch: Epoch(fence.epoch),
                vector: convert::vector(&fence.vector)?,
            })
        });
        Some(NamespaceState {
            mode: convert::mode(row.mode)?,
            epoch: Epoch(row.epoch),
            digest: Digest::from_bytes(&row.digest)?,
            keys: row.keys,
            bytes: row.bytes,
            attempt: row.attempt,
            sealing,
            fences: fences.collect::<Option<_>>()?,
            buried_through_ms: row.buried_through_ms,
            last_abort: row.last_abort.clone(),
            removed_in: Epoch(row.removed_in),
        })
    }
}

/// Stores as they go out.
pub fn stores_to_wire(stores: &BTreeSet<StoreId>) -> Vec<u32> {
    stores.iter().map(|store| u32::from(store.get())).collect()
}

/// Stores that came in; `None`: one of them cannot be.
pub fn stores_from_wire(stores: &[u32]) -> Option<BTreeSet<StoreId>> {
    let stores = stores.iter();
    stores.map(|id| StoreId::new(u64::from(*id))).collect()
}

/// The state that describes a region's data.
#[derive(Clone, Debug)]
pub struct RegionState {
    /// Range and id.
    pub descriptor: RegionDescriptor,
    /// The last entry that was applied.
    pub applied: Option<LogId>,
    /// The members as of the last membership entry applied.
    pub membership: StoredMembership,
    /// The largest stamp applied: the region's time, by which expiry is judged.
    pub last_stamp: Stamp,
    /// Count of strong writes that took effect.
    pub revision: u64,
    /// The table of request ids.
    pub ids: IdTable,
    /// Every namespace that was installed here, and not dropped.
    pub namespaces: BTreeMap<NamespaceId, NamespaceState>,
    /// Those that were deleted, with their last epochs; 0: it was never installed. Ids are never used again,
    /// so nothing of them ever is.
    pub dropped: BTreeMap<NamespaceId, Epoch>,
    /// Strong namespaces of which the dead of their last eventual time may still stand here. This replica's
    /// own affair: nobody sees them.
    pub unswept: BTreeSet<NamespaceId>,
    /// In the meta region, what its rows say.
    pub meta: Option<Arc<MetaState>>,
}

impl RegionState {
    /// Before the first entry.
    pub fn empty(descriptor: RegionDescriptor) -> RegionState {
        let is_meta = descriptor.id == RegionId::META.0;
        RegionState {
            descriptor,
            applied: None,
            membership: StoredMembership::default(),
            last_stamp: Stamp::ZERO,
            revision: 0,
            ids: IdTable::default(),
            namespaces: if is_meta {
                BTreeMap::from([(NamespaceId::META, NamespaceState::new(Mode::Strong))])
            } else {
                BTreeMap::new()
            },
            dropped: BTreeMap::new(),
            unswept: BTreeSet::new(),
            meta: is_meta.then(Arc::default),
        }
    }

    /// The region's id.
    pub fn id(&self) -> RegionId {
        RegionId(self.descriptor.id)
    }

    /// Who replicates the region, as of the last membership applied.
    pub fn members(&self) -> Members {
        members(&self.membership)
    }

    /// Whether a namespace's records are the log's.
    pub fn is_strong(&self, namespace: NamespaceId) -> bool {
        let state = self.namespaces.get(&namespace);
        state.is_some_and(|state| state.mode == Mode::Strong)
    }

    /// Reads what is on disk.
    pub fn load(
        descriptor: RegionDescriptor,
        view: &dyn View,
    ) -> Result<RegionState, StorageError> {
        let region = RegionId(descriptor.id);
        let damaged = |what: &str, why: String| {
            StorageError::corruption(format!("{what} of region {region}"), why)
        };
        let mut state = RegionState::empty(descriptor);
        for item in view.scan(
            Family::Region,
            &KeyRange::prefix(&layout::region(region)),
            false,
        ) {
            let (key, value) = item?;
            match layout::namespace_of(&key) {
                None => {
                    let row = raft::RegionRow::decode(value)
                        .map_err(|error| damaged("state", error.to_string()))?;
                    state.applied = row.applied.as_ref().map(wire::log_id);
                    state.membership =
                        wire::stored_membership(&row.membership.clone().unwrap_or_default())
                            .map_err(|error| damaged("membership", error.to_string()))?;
                    state.last_stamp = Stamp(row.last_stamp);
                    state.revision = row.revision;
                    state.ids = IdTable {
                        generation: row.id_generation,
                        started_ms: row.id_generation_started_ms,
                        count: row.id_generation_count,
                        forgotten_through_ms: row.ids_forgotten_through_ms,
                    };
                }
                Some(namespace) => {
                    let row = raft::RegionNamespaceRow::decode(value)
                        .map_err(|error| damaged("a namespace", error.to_string()))?;
                    if row.dropped {
                        state.dropped.insert(namespace, Epoch(row.epoch));
                        continue;
                    }
                    let namespace_state = NamespaceState::from_row(&row).ok_or_else(|| {
                        damaged(
                            "a namespace",
                            format!("namespace {namespace} has no mode or digest"),
                        )
                    })?;
                    if namespace_state.mode == Mode::Strong && !namespace_state.fences.is_empty() {
                        state.unswept.insert(namespace);
                    }
                    state.namespaces.insert(namespace, namespace_state);
                }
            }
        }
        if region == RegionId::META {
            state.meta = Some(Arc::new(MetaState::load(view)?));
        }
        Ok(state)
    }

    /// Adds the row of a namespace to the batch that made it true.
    pub fn write_namespace_row(&self, namespace: NamespaceId, batch: &mut WriteBatch) {
        let dropped = || {
            let epoch = self.dropped.get(&namespace)?.0;
            Some(raft::RegionNamespaceRow {
                epoch,
                dropped: true,
                ..Default::default()
            })
        };
        let state = self.namespaces.get(&namespace);
        if let Some(row) = state.map(NamespaceState::to_row).or_else(dropped) {
            let key = layout::region_namespace(self.id(), namespace);
            batch.put(Family::Region, key, row.encode_to_vec());
        }
    }

    /// Adds the region's own row to the batch that made it true.
    pub fn write_row(&self, batch: &mut WriteBatch) {
        let row = raft::RegionRow {
            applied: self.applied.as_ref().map(wire::log_id_to_wire),
            membership: Some(wire::stored_membership_to_wire(&self.membership)),
            last_stamp: self.last_stamp.0,
            revision: self.revision,
            id_generation: self.ids.generation,
            id_generation_started_ms: self.ids.started_ms,
            id_generation_count: self.ids.count,
            ids_forgotten_through_ms: self.ids.forgotten_through_ms,
        };
        batch.put(
            Family::Region,
            layout::region(self.id()),
            row.encode_to_vec(),
        );
    }

    /// What readers need.
    pub fn summary(&self) -> Summary {
        Summary {
            applied_index: self.applied.map_or(0, |id| id.index),
            membership: self.membership.clone(),
            last_stamp: self.last_stamp,
            revision: self.revision,
            namespaces: self.namespaces.clone(),
            dropped: self.dropped.clone(),
            ids: self.ids,
            unswept: !self.unswept.is_empty(),
            meta: self.meta.clone(),
            installs: 0,
            replacing: BTreeSet::new(),
            fresh_copy: None,
            pauses: BTreeMap::new(),
        }
    }
}

fn members(stored: &StoredMembership) -> Members {
    let membership = stored.membership();
    let store = |id: u64| StoreId::new(id);
    Members {
        voters: membership.voter_ids().filter_map(store).collect(),
        all: membership
            .nodes()
            .filter_map(|(id, _)| store(*id))
            .collect(),
    }
}

/// What readers of a region need to know about its data.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Index of the last entry applied; 0: none.
    pub applied_index: u64,
    /// The members as of that entry.
    pub membership: StoredMembership,
    /// The region's time.
    pub last_stamp: Stamp,
    /// Count of strong writes that took effect.
    pub revision: u64,
    /// Every namespace that was installed here, and not dropped.
    pub namespaces: BTreeMap<NamespaceId, NamespaceState>,
    /// Those that were deleted, with their last epochs.
    pub dropped: BTreeMap<NamespaceId, Epoch>,
    /// Where the table of request ids stands.
    pub ids: IdTable,
    /// Whether the dead of an eventual time may still stand here, in a namespace that is strong by now.
    pub unswept: bool,
    /// In the meta region, what its rows say.
    pub meta: Option<Arc<MetaState>>,
    /// Grows when a snapshot begins to replace the data, and again when it has: odd in between. Rows that
    /// were read are to be believed only if this was even before and is the same after.
    pub installs: u64,
    /// Eventual namespaces whose own data is being replaced, too: nobody reads or writes them.
    pub replacing: BTreeSet<NamespaceId>,
    /// Why this replica waits for a fresh copy of the region: until it has one it serves nothing.
    pub fresh_copy: Option<String>,
    /// How long the last change of mode kept writes out here.
    pub pauses: BTreeMap<NamespaceId, Pause>,
}

impl Summary {
    /// Who replicates the region, as of the last entry applied.
    pub fn members(&self) -> Members {
        members(&self.membership)
    }
}

/// How long writes were refused here for a change of mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pause {
    /// Since when they are; `None`: they are not.
    pub since: Option<Instant>,
    /// How long they were the last time.
    pub last: Duration,
}
