//! The walk over what a fence left out, and a crash after each of its batches.

use super::*;
use rdb_storage::{Engine, MemoryEngine};
use rdb_types::{Dot, StoreId};
use std::collections::BTreeSet;

const REGION: RegionId = RegionId(2);
const NAMESPACE: NamespaceId = NamespaceId(7);
const FENCE: u64 = 3;
const WRITES: u64 = 40;
/// The log begins behind this one; what was before is in the records alone.
const TRUNCATED: u64 = 10;
const VALUE: usize = 512 << 10;

fn origin() -> StoreId {
    StoreId::new(3).unwrap()
}

fn descriptor() -> RegionDescriptor {
    RegionDescriptor {
        id: REGION.0,
        start: GlobalKey::namespace_start(NAMESPACE),
        end: Bytes::new(),
        generation: 1,
    }
}

fn stamp(sequence: u64) -> Stamp {
    Stamp(sequence << 10 | u64::from(origin().get()))
}

/// A replica that holds so many writes of one origin, each of a key of its own.
fn replica() -> MemoryEngine {
    let engine = MemoryEngine::new();
    let mut batch = WriteBatch::new();
    for sequence in 1..=WRITES {
        let key = Bytes::from(format!("key {sequence:02}"));
        let value = Bytes::from(vec![b'v'; VALUE]);
        let record = Record {
            value: value.clone(),
            stamp: stamp(sequence),
            origin_sequence: sequence,
            ..Record::default()
        };
        let global = GlobalKey::new(NAMESPACE, &key);
        batch.put(Family::Data, global.as_bytes().clone(), record.encode());
        if sequence > TRUNCATED {
            let entry = OriginEntry {
                sequence,
                stamp: record.stamp.0,
                key,
                value,
                ..OriginEntry::default()
            };
            let dot = Dot {
                origin: origin(),
                sequence,
            };
            batch.put(
                Family::OriginLog,
                layout::entry(REGION, NAMESPACE, dot),
                entry.encode_to_vec(),
            );
        }
    }
    let mut state = EventualState::default();
    state.vector.raise(origin(), WRITES);
    state.truncated.raise(origin(), TRUNCATED);
    batch.put(
        Family::Region,
        layout::state(REGION, NAMESPACE),
        state.to_row().encode_to_vec(),
    );
    engine.write(&batch).unwrap();
    engine.sync().unwrap();
    engine
}

fn walk(engine: &MemoryEngine) -> Beyond {
    let mut fence = VersionVector::default();
    fence.raise(origin(), FENCE);
    let own = EventualState::load(REGION, NAMESPACE, engine).unwrap();
    Beyond::new(&descriptor(), NAMESPACE, fence, own)
}

/// Walks on and gives how many batches it took.
fn finish(mut beyond: Beyond, engine: &MemoryEngine) -> (usize, EventualState) {
    let mut batches = 0;
    while let Some(batch) = beyond.next_batch(engine).unwrap() {
        assert!(batch.size_bytes() < BATCH_BYTES + VALUE + (64 << 10));
        engine.write(&batch).unwrap();
        batches += 1;
    }
    (batches, beyond.into_own())
}

#[test]
fn what_is_set_aside_comes_in_bounded_batches_and_is_counted_right_after_a_crash_between_any_two() {
    let engine = replica();
    let (batches, _) = finish(walk(&engine), &engine);
    assert!(batches > 3, "{batches} batches");
    for safe in 0..=batches {
        let engine = replica();
        let mut beyond = walk(&engine);
        for _ in 0..safe {
            let batch = beyond.next_batch(&engine).unwrap().unwrap();
            engine.write(&batch).unwrap();
            engine.sync().unwrap();
        }
        let (_, own) = finish(walk(&engine), &engine);

        let (mut bytes, mut listed) = (0, BTreeSet::new());
        for item in engine.scan(
            Family::Conflicts,
            &layout::conflicts(REGION, NAMESPACE),
            false,
        ) {
            let (_, stored) = item.unwrap();
            bytes += stored.len() as u64;
            let row = conflicts::decode(REGION, stored).unwrap();
            assert!(row.set_aside);
            assert_eq!(row.value.len(), VALUE);
            listed.insert(row.sequence);
        }
        assert_eq!(listed, (FENCE + 1..=WRITES).collect());
        assert_eq!((own.conflicts, own.conflict_bytes), (WRITES - FENCE, bytes));
        let untold = layout::all_untold(REGION, NAMESPACE);
        let untold = engine.scan(Family::Conflicts, &untold, false).count() as u64;
        assert_eq!(untold, WRITES - FENCE);
    }
}
