//! Filling a region, and a crash after each of its batches.

use super::*;
use crate::raft::{FrozenSnapshot, LogId, MemorySpool, log_id};
use crate::region::RegionMachine;
use bytes::Bytes;
use openraft::storage::RaftStateMachine;
use rdb_storage::{Engine, KeyRange, MemoryEngine, View};
use rdb_types::{GlobalKey, NamespaceId, StoreId};

fn descriptor() -> RegionDescriptor {
    RegionDescriptor {
        id: 2,
        start: GlobalKey::namespace_start(NamespaceId::DEFAULT),
        end: Bytes::new(),
        generation: 1,
    }
}

type Rows = Vec<(Family, Bytes, Bytes)>;

/// Everything of the region, and its mark if there is one.
fn rows(view: &dyn View) -> Rows {
    let mut ranges = layout::replicated_ranges(&descriptor(), &BTreeSet::new());
    let mark = layout_store::installing(RegionId(2));
    ranges.push((Family::Region, KeyRange::prefix(&mark)));
    ranges
        .iter()
        .flat_map(|(family, range)| {
            view.scan(*family, range, false).map(|item| {
                let (key, value) = item.unwrap();
                (*family, key, value)
            })
        })
        .collect()
}

/// A region on its disk: so many records of 1 MiB, applied up to `last`.
fn region(records: u8, filled_with: u8, last: LogId) -> Arc<MemoryEngine> {
    let engine = Arc::new(MemoryEngine::new());
    let mut batch = WriteBatch::new();
    for number in 0..records {
        let key = GlobalKey::new(NamespaceId::DEFAULT, &[number, filled_with]);
        batch.put(
            Family::Data,
            key.as_bytes().clone(),
            vec![filled_with; 1 << 20],
        );
    }
    let row = raft::RegionRow {
        applied: Some(wire::log_id_to_wire(&last)),
        membership: Some(wire::stored_membership_to_wire(&Default::default())),
        ..Default::default()
    };
    batch.put(
        Family::Region,
        layout::region(RegionId(2)),
        row.encode_to_vec(),
    );
    engine.write(&batch).unwrap();
    engine.sync().unwrap();
    engine
}

fn meta(last: LogId) -> SnapshotMeta {
    SnapshotMeta {
        last_log_id: Some(last),
        last_membership: Default::default(),
    }
}

fn frozen(engine: &MemoryEngine) -> SnapshotData {
    let ranges = layout::replicated_ranges(&descriptor(), &BTreeSet::new());
    SnapshotData::Frozen(FrozenSnapshot::new("s", engine.snapshot(), ranges))
}

async fn open(engine: &Arc<MemoryEngine>, spool: &MemorySpool) -> io::Result<RegionMachine> {
    RegionMachine::open(
        StoreId::new(1).unwrap(),
        descriptor(),
        engine.clone(),
        Committer::start(engine.clone(), Box::new(|_| {})),
        Arc::new(spool.clone()),
        None,
    )
    .await
}

#[tokio::test]
async fn a_crash_at_any_moment_leaves_the_old_region_or_leads_to_the_new_one() {
    let source = region(10, b'n', log_id(2, 90));
    let (mut after_batches, mut interrupted) = (0, 0);
    loop {
        let engine = region(3, b'o', log_id(1, 7));
        let old = rows(engine.as_ref());
        let spool = MemorySpool::default();
        let mut machine = open(&engine, &spool).await.unwrap();
        // The last sync fails, so that nothing of the filling is safe; the crash keeps what it likes.
        engine.fail_next_sync();
        let installed = machine
            .install_snapshot(&meta(log_id(2, 90)), frozen(&source))
            .await;
        assert!(installed.is_err());
        assert_eq!(
            machine.cell().with(|summary| summary.installs) % 2,
            1,
            "half-filled, nobody reads"
        );
        drop(machine);
        let batches = engine.unsynced_batches();
        assert!(batches > 3, "some MiB at a time, and not {batches} batches");
        engine.crash(after_batches);
        let half = rows(engine.as_ref());
        interrupted += usize::from(half != old && half != rows(source.as_ref()));

        let machine = open(&engine, &spool).await.unwrap();
        let now = rows(engine.as_ref());
        let expected = if after_batches == 0 {
            (7, old)
        } else {
            (90, rows(source.as_ref()))
        };
        assert!(
            (machine.cell().applied_index(), now) == expected,
            "after {after_batches} of {batches} batches"
        );
        assert!(
            spool.finished(RegionId(2)).unwrap().is_none(),
            "it is not needed any more"
        );
        if after_batches == batches {
            break;
        }
        after_batches += 1;
    }
    assert!(interrupted > 2, "no crash was in the middle");
}

#[tokio::test]
async fn a_snapshot_that_is_none_of_this_region_changes_nothing() {
    let engine = region(2, b'o', log_id(1, 7));
    let old = rows(engine.as_ref());
    let source = region(2, b'n', log_id(2, 90));
    let spool = MemorySpool::default();
    let mut machine = open(&engine, &spool).await.unwrap();
    // It says that it ends elsewhere.
    let wrong_end = machine
        .install_snapshot(&meta(log_id(2, 91)), frozen(&source))
        .await;
    assert!(wrong_end.is_err());
    assert!(rows(engine.as_ref()) == old);
    // It holds a row of another region.
    let ranges = vec![(Family::RaftLog, KeyRange::all())];
    source
        .write(&{
            let mut batch = WriteBatch::new();
            batch.put(Family::RaftLog, Bytes::from_static(b"x"), vec![1]);
            batch
        })
        .unwrap();
    let foreign = SnapshotData::Frozen(FrozenSnapshot::new("f", source.snapshot(), ranges));
    assert!(
        machine
            .install_snapshot(&meta(log_id(2, 90)), foreign)
            .await
            .is_err()
    );
    assert!(rows(engine.as_ref()) == old);
}

/// Also after a crash in the middle.
#[tokio::test]
async fn what_this_replica_held_of_a_namespace_that_was_deleted_goes_with_it() {
    let namespace = NamespaceId::DEFAULT;
    let row = |row: raft::RegionNamespaceRow| {
        let mut batch = WriteBatch::new();
        let key = layout::region_namespace(RegionId(2), namespace);
        batch.put(Family::Region, key, row.encode_to_vec());
        batch
    };
    let source = region(0, b'n', log_id(2, 90));
    let dropped = raft::RegionNamespaceRow {
        epoch: 4,
        dropped: true,
        ..Default::default()
    };
    source.write(&row(dropped)).unwrap();
    let here = || {
        let engine = region(2, b'o', log_id(1, 7));
        let mut batch = row(NamespaceState::new(Mode::Eventual).to_row());
        let own_rows = [
            (
                Family::OriginLog,
                own::all_entries(RegionId(2), namespace).start,
            ),
            (
                Family::Conflicts,
                own::all_conflicts(RegionId(2), namespace).start,
            ),
            (
                Family::RequestIds,
                layout::request_id(own::beside(RegionId(2)), 0, namespace, b"id"),
            ),
        ];
        for (family, key) in own_rows {
            batch.put(family, [&key[..], b"row"].concat(), &b"x"[..]);
        }
        let state = own::state(RegionId(2), namespace);
        batch.put(
            Family::Region,
            state,
            EventualState::default().to_row().encode_to_vec(),
        );
        engine.write(&batch).unwrap();
        engine.sync().unwrap();
        engine
    };
    for crash in [false, true] {
        let engine = here();
        let spool = MemorySpool::default();
        let mut machine = open(&engine, &spool).await.unwrap();
        if crash {
            engine.fail_next_sync();
        }
        let installed = machine
            .install_snapshot(&meta(log_id(2, 90)), frozen(&source))
            .await;
        assert_eq!(installed.is_err(), crash);
        if crash {
            drop(machine);
            // The first batch is safe, and no other.
            engine.crash(1);
            machine = open(&engine, &spool).await.unwrap();
        }
        let known = machine.cell().with(|summary| summary.dropped.clone());
        assert_eq!(known, BTreeMap::from([(namespace, rdb_types::Epoch(4))]));
        let whole = KeyRange {
            start: Bytes::new(),
            end: None,
        };
        for family in [
            Family::Data,
            Family::OriginLog,
            Family::Conflicts,
            Family::RequestIds,
        ] {
            let left = engine.scan(family, &whole, false).count();
            assert_eq!(left, 0, "{family}");
        }
        let state = own::state(RegionId(2), namespace);
        assert_eq!(engine.get(Family::Region, &state).unwrap(), None);
    }
}

#[tokio::test]
async fn a_half_filled_region_whose_snapshot_is_gone_does_not_open() {
    let engine = region(1, b'o', log_id(1, 7));
    let mut batch = WriteBatch::new();
    let row = raft::InstallMark {
        meta: Some(wire::snapshot_meta_to_wire(&meta(log_id(2, 90)), "")),
        slot: 2,
        ..Default::default()
    };
    batch.put(
        Family::Region,
        layout_store::installing(RegionId(2)),
        row.encode_to_vec(),
    );
    engine.write(&batch).unwrap();
    let Err(error) = open(&engine, &MemorySpool::default()).await else {
        panic!("it opened")
    };
    assert!(
        error.to_string().contains("Never use an older copy"),
        "{error}"
    );
}
