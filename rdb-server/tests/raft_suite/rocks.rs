//! The log of a region over RocksDB.

use crate::machine::TestMachine;
use openraft::StorageError;
use openraft::storage::{RaftLogReader, RaftLogStorage, RaftLogStorageExt};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::TypeConfigExt;
use rdb_server::raft::{Command, Entry, EntryPayload, RaftLogStore, TypeConfig, Vote, log_id};
use rdb_storage::{Committer, Engine, RocksEngine, RocksOptions};
use rdb_types::RegionId;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

const REGION: RegionId = RegionId(7);

struct OnDisk;

fn open(dir: &Path) -> (Arc<dyn Engine>, Committer, RaftLogStore) {
    let engine: Arc<dyn Engine> =
        Arc::new(RocksEngine::open(dir, RocksOptions::default()).unwrap());
    let committer = Committer::start(engine.clone(), Box::new(|error| panic!("{error}")));
    let log = RaftLogStore::open(engine.clone(), committer.clone(), REGION).unwrap();
    (engine, committer, log)
}

/// A directory, and the threads that write into it until they are told to end.
struct Held {
    committer: Committer,
    _dir: TempDir,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.committer.shutdown();
    }
}

impl StoreBuilder<TypeConfig, RaftLogStore, TestMachine, Held> for OnDisk {
    async fn build(&self) -> Result<(Held, RaftLogStore, TestMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let (engine, committer, log) = open(dir.path());
        let held = Held {
            committer,
            _dir: dir,
        };
        Ok((held, log, TestMachine::new(REGION, 1, engine).lenient()))
    }
}

#[test]
fn openrafts_suite_passes_over_rocksdb() {
    TypeConfig::run(Suite::test_all(OnDisk)).unwrap();
}

#[tokio::test]
async fn a_log_is_found_again_when_the_database_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let entry = |index| {
        let payload = EntryPayload::Normal(Command(format!("command {index}").into()));
        Entry {
            log_id: log_id(2, index),
            payload,
        }
    };
    let (engine, committer, mut log) = open(dir.path());
    log.save_vote(&Vote::new_committed(2, 1)).await.unwrap();
    log.blocking_append((0..1000).map(entry)).await.unwrap();
    log.purge(log_id(2, 99)).await.unwrap();
    log.truncate_after(Some(log_id(2, 949))).await.unwrap();
    log.blocking_append([entry(950)]).await.unwrap();
    committer.shutdown();
    drop((engine, committer, log));

    let (_engine, committer, mut log) = open(dir.path());
    assert_eq!(
        log.read_vote().await.unwrap(),
        Some(Vote::new_committed(2, 1))
    );
    let entries = log.try_get_log_entries(..).await.unwrap();
    assert_eq!(entries, (100..=950).map(entry).collect::<Vec<_>>());
    committer.shutdown();
}
