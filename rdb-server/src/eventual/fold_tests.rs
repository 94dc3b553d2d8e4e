//! What searches and reading found in the fold, told with the fewest writes; each was a defect once.

use super::Fold;
use super::fold::Folded;
use super::state::EventualState;
use crate::region::request_ids::IdTable;
use bytes::Bytes;
use prost::Message;
use rdb_proto::raft::{OriginEntry, WriteOp, write_op::Kind};
use rdb_storage::{Engine, Family, KeyRange, MemoryEngine, View};
use rdb_types::{Digest, Epoch, GlobalKey, NamespaceId, Record, RegionId, Stamp, StoreId};

const REGION: RegionId = RegionId(2);
const NAMESPACE: NamespaceId = NamespaceId(3);
const NOW_MS: u64 = 2_000_000_000_000;
const RETENTION_MS: u64 = 60_000;

fn store(id: u64) -> StoreId {
    StoreId::new(id).unwrap()
}

/// One replica on its own disk.
struct Replica {
    me: StoreId,
    engine: MemoryEngine,
}

impl Replica {
    fn new(me: u64) -> Replica {
        Replica {
            me: store(me),
            engine: MemoryEngine::new(),
        }
    }

    fn state(&self) -> EventualState {
        EventualState::load(REGION, NAMESPACE, &self.engine).unwrap()
    }

    fn batch(&self, fill: impl FnOnce(&mut Fold<'_>)) -> Folded {
        let mut fold = Fold::new(self.me, REGION, &self.engine, IdTable::default());
        fold.with(NAMESPACE, || self.state());
        fill(&mut fold);
        let folded = fold.finish();
        self.engine.write(&folded.batch).unwrap();
        folded
    }

    fn record(&self, key: &str) -> Option<Record> {
        let global = GlobalKey::new(NAMESPACE, key.as_bytes());
        let stored = self.engine.get(Family::Data, global.as_bytes()).unwrap()?;
        Some(Record::decode(stored).unwrap())
    }

    /// The digest of what lies on the disk.
    fn computed(&self) -> Digest {
        let (state, mut digest) = (self.state(), Digest::default());
        for item in self.engine.scan(Family::Data, &KeyRange::all(), false) {
            let (key, value) = item.unwrap();
            let record = Record::decode(value).unwrap();
            if state.is_live(&record) {
                digest.add(&GlobalKey::from_bytes(key).unwrap().user_key(), &record);
            }
        }
        digest
    }
}

fn put(key: &'static str, ttl_ms: i64) -> WriteOp {
    WriteOp {
        namespace_id: NAMESPACE.0,
        key: Bytes::from_static(key.as_bytes()),
        value: Bytes::from_static(b"value"),
        kind: Kind::Put as i32,
        ttl_ms,
        ..WriteOp::default()
    }
}

fn stamp(ms: u64, of: u64) -> Stamp {
    Stamp::pack(NOW_MS + ms, 0, store(of))
}

fn accept(fold: &mut Fold<'_>, op: &WriteOp, stamp: Stamp) {
    let accepted = fold.accept(op, Epoch(1), stamp, false, RETENTION_MS);
    accepted.unwrap().unwrap();
}

fn merge(fold: &mut Fold<'_>, of: u64, sequence: u64, key: &'static str, ms: u64) {
    let entry = OriginEntry {
        sequence,
        stamp: stamp(ms, of).0,
        epoch: 1,
        key: Bytes::from_static(key.as_bytes()),
        ..OriginEntry::default()
    };
    let encoded = entry.encode_to_vec().into();
    let merged = fold.merge(NAMESPACE, store(of), &entry, encoded, RETENTION_MS);
    merged.unwrap();
}

/// A record was written and its time to live ended in one batch: it was taken for dead and its digest
/// stayed, for ever.
#[test]
fn what_expires_in_the_batch_that_brings_it_leaves_the_digest() {
    let replica = Replica::new(1);
    replica.batch(|fold| {
        accept(fold, &put("k", 50), stamp(0, 1));
        fold.expire(NAMESPACE, NOW_MS + 1_000).unwrap();
    });
    let state = replica.state();
    assert_eq!((state.digest, state.keys), (Digest::default(), 0));
    assert_eq!(state.digest, replica.computed());
    // Found once more, on disk: nothing is taken out twice.
    replica.batch(|fold| accept(fold, &put("l", 2_000), stamp(10, 1)));
    replica.batch(|fold| {
        accept(fold, &put("l", 3_000), stamp(20, 1));
        fold.expire(NAMESPACE, NOW_MS + 5_000).unwrap();
    });
    let state = replica.state();
    assert_eq!((state.digest, state.keys), (Digest::default(), 0));
}

/// Entries of another store and a client's write came in one batch. The write's stamp had been given out
/// before the entries were looked at, was older than theirs, and replaced the record all the same: here
/// only.
#[test]
fn a_write_that_is_stamped_below_what_is_here_does_not_replace_it() {
    let replica = Replica::new(1);
    replica.batch(|fold| {
        merge(fold, 2, 1, "k", 500);
        accept(fold, &put("k", 0), stamp(0, 1));
    });
    assert_eq!(replica.record("k").unwrap().stamp, stamp(500, 2));
    assert_eq!(replica.state().digest, replica.computed());
}

/// A store that had merged a write stamped ahead of its clock crashed, and stamped below it after its
/// restart: the bound of its clock on disk covers its own stamps only.
#[test]
fn the_largest_stamp_that_was_applied_is_on_disk() {
    let replica = Replica::new(1);
    let folded = replica.batch(|fold| merge(fold, 2, 1, "k", 700));
    assert_eq!(folded.largest, stamp(700, 2));
    assert_eq!(replica.state().last_stamp, stamp(700, 2));
    replica.batch(|fold| accept(fold, &put("k", 0), stamp(800, 1)));
    assert_eq!(replica.state().last_stamp, stamp(800, 1));
}

/// A copy was asked for, a tombstone was dropped here, and then the answer was merged: the floor had been looked
/// at when it arrived, with the drop already under way. What was deleted came back, here only.
#[test]
fn a_copy_from_before_a_tombstone_was_dropped_is_refused() {
    let vector = |parts: &[(u64, u64)]| parts.iter().map(|(id, n)| (store(*id), *n)).collect();
    let replica = Replica::new(1);
    replica.batch(|fold| merge(fold, 2, 1, "k", 0));
    let old = replica.record("k").unwrap();
    let delete = WriteOp {
        kind: Kind::Delete as i32,
        ..put("k", 0)
    };
    replica.batch(|fold| accept(fold, &delete, stamp(10, 1)));
    assert!(replica.record("k").unwrap().tombstone);
    let (before, all) = (vector(&[(2, 1)]), vector(&[(1, 1), (2, 1)]));
    replica.batch(|fold| {
        assert!(fold.forget(NAMESPACE, &all).unwrap());
        let copy = [(Bytes::from_static(b"k"), old)];
        assert!(!fold.merge_copied(NAMESPACE, copy, &before).unwrap());
        assert!(fold.merge_copied(NAMESPACE, [], &all).unwrap());
    });
    assert_eq!(replica.record("k"), None);
}
