//! A state machine for tests: each command is a key, its value is the index at which it was applied.
//!
//! Keeps everything in the engine, in one batch per entry, as a real one does. Its snapshots are
//! frozen views of that.

use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use openraft::storage::{RaftSnapshotBuilder, RaftStateMachine};
use parking_lot::Mutex;
use prost::Message;
use rdb_proto::raft;
use rdb_server::raft::{
    EntryPayload, EntryResponder, FrozenSnapshot, LogId, Outcome, Snapshot, SnapshotData,
    SnapshotMeta, StoredMembership, TypeConfig, runtime, wire,
};
use rdb_storage::{Engine, Family, KeyRange, WriteBatch};
use rdb_types::RegionId;
use std::io;
use std::sync::Arc;

#[derive(Clone)]
pub(crate) struct TestMachine {
    region: RegionId,
    /// Makes the ids of snapshots differ between stores.
    store: u64,
    engine: Arc<dyn Engine>,
    /// Whether entries have to come without a gap. openraft's suite leaves some.
    strict: bool,
    built: Arc<Mutex<Built>>,
}

/// How many snapshots there were, and the last of them.
type Built = (u64, Option<(SnapshotMeta, FrozenSnapshot)>);

fn prefix(region: RegionId) -> [u8; 8] {
    region.0.to_be_bytes()
}

/// Every key that was applied, with the index at which it was.
pub(crate) fn contents(engine: &dyn Engine, region: RegionId) -> Vec<(Bytes, u64)> {
    engine
        .scan(Family::Data, &KeyRange::prefix(&prefix(region)), false)
        .map(|found| found.unwrap())
        .map(|(key, value)| {
            (
                key.slice(8..),
                u64::from_be_bytes(value[..8].try_into().unwrap()),
            )
        })
        .collect()
}

impl TestMachine {
    pub(crate) fn new(region: RegionId, store: u64, engine: Arc<dyn Engine>) -> TestMachine {
        TestMachine {
            region,
            store,
            engine,
            strict: true,
            built: Arc::default(),
        }
    }

    pub(crate) fn lenient(self) -> TestMachine {
        TestMachine {
            strict: false,
            ..self
        }
    }

    fn row_key(&self) -> Bytes {
        Bytes::copy_from_slice(&prefix(self.region))
    }

    fn row(&self) -> (Option<LogId>, StoredMembership) {
        let Some(row) = self.engine.get(Family::Region, &self.row_key()).unwrap() else {
            return Default::default();
        };
        let row = raft::RegionRow::decode(row).unwrap();
        let membership = row
            .membership
            .as_ref()
            .map(|wire| wire::stored_membership(wire).unwrap());
        (
            row.applied.as_ref().map(wire::log_id),
            membership.unwrap_or_default(),
        )
    }

    fn put_row(
        &self,
        batch: &mut WriteBatch,
        applied: Option<LogId>,
        membership: &StoredMembership,
    ) {
        let row = raft::RegionRow {
            applied: applied.as_ref().map(wire::log_id_to_wire),
            membership: Some(wire::stored_membership_to_wire(membership)),
            ..Default::default()
        };
        batch.put(Family::Region, self.row_key(), row.encode_to_vec());
    }

    fn ranges(&self) -> Vec<(Family, KeyRange)> {
        let prefix = KeyRange::prefix(&prefix(self.region));
        vec![(Family::Region, prefix.clone()), (Family::Data, prefix)]
    }
}

impl RaftStateMachine<TypeConfig> for TestMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = TestMachine;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok(self.row())
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder, io::Error>> + Unpin + Send,
    {
        let (mut applied, mut membership) = self.row();
        while let Some((entry, responder)) = entries.try_next().await? {
            assert!(
                applied < Some(entry.log_id),
                "{} is applied again",
                entry.log_id
            );
            let expected = applied.map_or(0, |id| id.index + 1);
            assert!(
                !self.strict || expected == entry.log_id.index,
                "{expected} is skipped"
            );
            applied = Some(entry.log_id);
            let mut batch = WriteBatch::new();
            match entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(command) => {
                    let key = [&prefix(self.region), &command.0[..]].concat();
                    // Some weight, so that snapshots have several pieces.
                    let mut value = entry.log_id.index.to_be_bytes().to_vec();
                    value.resize(64, 0);
                    batch.put(Family::Data, key, value);
                }
                EntryPayload::Membership(new) => membership = StoredMembership::new(applied, new),
            }
            self.put_row(&mut batch, applied, &membership);
            self.engine.write(&batch).map_err(io::Error::other)?;
            if let Some(responder) = responder {
                responder.send(Outcome::default());
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> TestMachine {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        let mut batch = WriteBatch::new();
        for (family, range) in self.ranges() {
            batch.delete_range(family, range.start, range.end.unwrap());
        }
        let items =
            runtime::blocking(move || snapshot.into_records().collect::<Result<Vec<_>, _>>())
                .await?;
        for item in items.map_err(io::Error::other)? {
            batch.put(item.family, item.key, item.value);
        }
        self.put_row(&mut batch, meta.last_log_id, &meta.last_membership);
        self.engine.write(&batch).map_err(io::Error::other)?;
        let frozen = FrozenSnapshot::new(self.next_id(), self.engine.snapshot(), self.ranges());
        self.built.lock().1 = Some((meta.clone(), frozen));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let current = self.built.lock().1.clone();
        Ok(current.map(|(meta, frozen)| Snapshot {
            meta,
            snapshot: SnapshotData::Frozen(frozen),
        }))
    }
}

impl TestMachine {
    fn next_id(&self) -> String {
        let mut built = self.built.lock();
        built.0 += 1;
        format!("{}-{}-{}", self.store, self.region, built.0)
    }
}

impl RaftSnapshotBuilder<TypeConfig> for TestMachine {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        // One moment for both: a replica may apply more while its snapshot is built.
        let view = self.engine.snapshot();
        let row = view
            .get(Family::Region, &self.row_key())
            .unwrap()
            .map(|row| raft::RegionRow::decode(row).unwrap());
        let row = row.unwrap_or_default();
        let membership = row
            .membership
            .as_ref()
            .map(|wire| wire::stored_membership(wire).unwrap());
        let meta = SnapshotMeta {
            last_log_id: row.applied.as_ref().map(wire::log_id),
            last_membership: membership.unwrap_or_default(),
        };
        let frozen = FrozenSnapshot::new(self.next_id(), view, self.ranges());
        self.built.lock().1 = Some((meta.clone(), frozen.clone()));
        Ok(Snapshot {
            meta,
            snapshot: SnapshotData::Frozen(frozen),
        })
    }
}
