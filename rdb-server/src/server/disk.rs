//! A store's disk as it is found at the start.
//!
//! Owns opening it. Knows nothing of what runs on it, and does not judge what it holds.

use super::StartError;
use crate::config::{Config, EngineKind};
use crate::raft::{FileSpool, MemorySpool};
use crate::room::kept_bytes;
use crate::store::Disk;
use crate::store::room::make_room_to_start;
use rdb_storage::{
    Boundless, Committer, DataDir, Engine, MemoryEngine, OnFatal, Reserve, ReserveFile,
    RocksEngine, RocksOptions,
};
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
                reserve: Arc::new(Boundless),
                incarnation: rand::random(),
                data_dir: None,
            })
        }
        EngineKind::Rocksdb => {
            let path: &PathBuf = &config.store.data_dir;
            let data_dir = DataDir::open(path, u32::from(config.store.id))?;
            let reserve = ReserveFile::new(path);
            let reserve_bytes = config.storage.reserve.as_bytes();
            make_room_to_start(&reserve, reserve_bytes).map_err(|error| {
                StartError::Disk(format!(
                    "the disk is full, and its reserve cannot be given up: {error}"
                ))
            })?;
            let options = fitting(&reserve, reserve_bytes);
            let engine: Arc<dyn Engine> =
                Arc::new(RocksEngine::open(&data_dir.db_path(), options)?);
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
                reserve: Arc::new(reserve),
                incarnation: rand::random(),
                data_dir: Some(data_dir),
            })
        }
    }
}

/// All buffers together are at most this part of the reserve.
const PART_OF_RESERVE: u64 = 8;
/// The least that writes in memory are given: with less, files would be many and small.
const SMALLEST_BUFFERS_BYTES: u64 = 4 << 20;

/// Memory budgets with which everything that is in memory can be written out within the reserve, and a compaction (a
/// file is as large as half of the buffers, and rewritten with the ten below it) fits in beside it.
fn fitting(reserve: &dyn Reserve, reserve_bytes: u64) -> RocksOptions {
    let mut options = RocksOptions::default();
    let kept = reserve
        .space()
        .map(|space| kept_bytes(reserve_bytes, space.total_bytes));
    if let Some(kept) = kept.filter(|kept| *kept > 0) {
        let fits = (kept / PART_OF_RESERVE).max(SMALLEST_BUFFERS_BYTES);
        options.write_buffer_bytes = options.write_buffer_bytes.min(fits as usize);
    }
    options
}
