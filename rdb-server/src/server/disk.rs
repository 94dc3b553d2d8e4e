//! A store's disk as it is found at the start.
//!
//! Owns opening it. Knows nothing of what runs on it, and does not judge what it holds.

use super::StartError;
use crate::config::{Config, EngineKind};
use crate::raft::{FileSpool, MemorySpool};
use crate::store::Disk;
use rdb_storage::{Committer, DataDir, Engine, MemoryEngine, OnFatal, RocksEngine, RocksOptions};
use std::path::PathBuf;
use std::sync::Arc;

pub(super) fn open_disk(config: &Config, on_fatal: OnFatal) -> Result<Disk, StartError> {
    match config.store.engine {
        EngineKind::Memory => {
            let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::new());
            Ok(Disk {
                committer: Committer::start(engine.clone(), on_fatal),
                engine,
                spool: Arc::new(MemorySpool::default()),
                store_uuid: uuid::Uuid::new_v4().to_string(),
                incarnation: rand::random(),
                data_dir: None,
            })
        }
        EngineKind::Rocksdb => {
            let path: &PathBuf = &config.store.data_dir;
            let data_dir = DataDir::open(path, u32::from(config.store.id))?;
            let engine: Arc<dyn Engine> = Arc::new(RocksEngine::open(
                &data_dir.db_path(),
                RocksOptions::default(),
            )?);
            data_dir.mark_initialised()?;
            let spool = FileSpool::new(path.join("snapshots")).map_err(|error| {
                StartError::Disk(format!(
                    "cannot use {}: {error}",
                    path.join("snapshots").display()
                ))
            })?;
            let store_uuid = data_dir.identity().store_uuid.to_string();
            Ok(Disk {
                committer: Committer::start(engine.clone(), on_fatal),
                engine,
                spool: Arc::new(spool),
                store_uuid,
                incarnation: rand::random(),
                data_dir: Some(data_dir),
            })
        }
    }
}
