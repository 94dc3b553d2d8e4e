//! What is known about a region's data, in memory and as rows.
//!
//! [`RegionState`] belongs to the state machine alone. [`Summary`] is the part that readers need; it
//! is replaced after the batch that it describes was written.

use super::layout;
use super::meta::MetaState;
use super::request_ids::IdTable;
use crate::raft::wire;
use crate::raft::{LogId, StoredMembership};
use bytes::Bytes;
use prost::Message;
use rdb_proto::convert;
use rdb_proto::raft::{self, RegionDescriptor};
use rdb_storage::{Family, KeyRange, StorageError, View, WriteBatch};
use rdb_types::{Digest, Epoch, Mode, NamespaceId, RegionId, Stamp};
use std::collections::BTreeMap;
use std::sync::Arc;

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
}

impl NamespaceState {
    /// A namespace that was just installed.
    pub fn new(mode: Mode) -> NamespaceState {
        NamespaceState {
            mode,
            epoch: Epoch::FIRST,
            digest: Digest::default(),
            keys: 0,
            bytes: 0,
        }
    }

    /// The stored form.
    pub fn to_row(&self) -> raft::RegionNamespaceRow {
        raft::RegionNamespaceRow {
            mode: convert::mode_to_wire(self.mode),
            epoch: self.epoch.0,
            digest: Bytes::copy_from_slice(&self.digest.to_bytes()),
            keys: self.keys,
            bytes: self.bytes,
        }
    }

    /// Reads the stored form; `None` where it makes no sense.
    pub fn from_row(row: &raft::RegionNamespaceRow) -> Option<NamespaceState> {
        Some(NamespaceState {
            mode: convert::mode(row.mode)?,
            epoch: Epoch(row.epoch),
            digest: Digest::from_bytes(&row.digest)?,
            keys: row.keys,
            bytes: row.bytes,
        })
    }
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
    /// Every namespace that was installed here.
    pub namespaces: BTreeMap<NamespaceId, NamespaceState>,
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
            meta: is_meta.then(Arc::default),
        }
    }

    /// The region's id.
    pub fn id(&self) -> RegionId {
        RegionId(self.descriptor.id)
    }

    /// The namespaces whose records are not the log's, in the order of their ids.
    pub fn eventual(&self) -> Vec<NamespaceId> {
        self.namespaces
            .iter()
            .filter(|(_, state)| state.mode == Mode::Eventual)
            .map(|(namespace, _)| *namespace)
            .collect()
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
                    let namespace_state = NamespaceState::from_row(&row).ok_or_else(|| {
                        damaged(
                            "a namespace",
                            format!("namespace {namespace} has no mode or digest"),
                        )
                    })?;
                    state.namespaces.insert(namespace, namespace_state);
                }
            }
        }
        if region == RegionId::META {
            state.meta = Some(Arc::new(MetaState::load(view)?));
        }
        Ok(state)
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
            last_stamp: self.last_stamp,
            revision: self.revision,
            namespaces: self.namespaces.clone(),
            meta: self.meta.clone(),
            installs: 0,
        }
    }
}

/// What readers of a region need to know about its data.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Index of the last entry applied; 0: none.
    pub applied_index: u64,
    /// The region's time.
    pub last_stamp: Stamp,
    /// Count of strong writes that took effect.
    pub revision: u64,
    /// Every namespace that was installed here.
    pub namespaces: BTreeMap<NamespaceId, NamespaceState>,
    /// In the meta region, what its rows say.
    pub meta: Option<Arc<MetaState>>,
    /// Grows when a snapshot begins to replace the data, and again when it has: odd in between. Rows that
    /// were read are to be believed only if this was even before and is the same after.
    pub installs: u64,
}
