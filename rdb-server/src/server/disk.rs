//! A store's disk as it is found at the start.
//!
//! Owns opening it, and the refusal of what belongs to another cluster. Knows nothing of what runs on it.

use super::StartError;
use crate::config::{Config, EngineKind};
use crate::layout_store as layout;
use crate::raft::{FileSpool, MemorySpool, SnapshotSpool};
use prost::Message;
use rdb_proto::raft::ClusterPlan;
use rdb_storage::{DataDir, Engine, Family, MemoryEngine, RocksEngine, RocksOptions, StorageError};
use rdb_types::StoreId;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

/// What was opened.
pub(super) struct Disk {
    pub(super) data_dir: Option<DataDir>,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) spool: Arc<dyn SnapshotSpool>,
    pub(super) store_uuid: String,
}

pub(super) fn open_disk(config: &Config) -> Result<Disk, StartError> {
    match config.store.engine {
        EngineKind::Memory => Ok(Disk {
            data_dir: None,
            engine: Arc::new(MemoryEngine::new()),
            spool: Arc::new(MemorySpool::default()),
            store_uuid: uuid::Uuid::new_v4().to_string(),
        }),
        EngineKind::Rocksdb => {
            let path: &PathBuf = &config.store.data_dir;
            let data_dir = DataDir::open(path, u32::from(config.store.id))?;
            let engine = RocksEngine::open(&data_dir.db_path(), RocksOptions::default())?;
            data_dir.mark_initialised()?;
            let spool = FileSpool::new(path.join("snapshots")).map_err(|error| {
                StartError::Disk(format!(
                    "cannot use {}: {error}",
                    path.join("snapshots").display()
                ))
            })?;
            let store_uuid = data_dir.identity().store_uuid.to_string();
            Ok(Disk {
                data_dir: Some(data_dir),
                engine: Arc::new(engine),
                spool: Arc::new(spool),
                store_uuid,
            })
        }
    }
}

pub(super) fn stored_plan(engine: &dyn Engine) -> Result<Option<ClusterPlan>, StorageError> {
    match engine.get(Family::Region, &layout::row("plan"))? {
        None => Ok(None),
        Some(stored) => ClusterPlan::decode(stored)
            .map(Some)
            .map_err(|error| StorageError::corruption("the cluster's plan", error.to_string())),
    }
}

/// A directory of another cluster under the same store id must not be served as if it were this one's:
/// where `--peer` names the members, they are the members of the plan.
pub(super) fn same_members(
    plan: &ClusterPlan,
    me: StoreId,
    peers: &BTreeMap<StoreId, String>,
) -> Result<(), StartError> {
    if peers.is_empty() {
        return Ok(());
    }
    let ids = |stores: &mut dyn Iterator<Item = u32>| stores.collect::<BTreeSet<u32>>();
    let listed = ids(&mut peers
        .keys()
        .chain([&me])
        .map(|store| u32::from(store.get())));
    let members = ids(&mut plan.members.iter().map(|member| member.store_id));
    if listed == members {
        return Ok(());
    }
    Err(StartError::Disk(format!(
        "the data directory belongs to cluster {} with the members {members:?}, but --peer lists {listed:?}: use the directory of this cluster, or the --peer list of that one",
        plan.cluster_id
    )))
}
