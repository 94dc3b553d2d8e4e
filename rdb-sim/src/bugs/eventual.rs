//! Broken rules of eventual namespaces: in what is written, in what is sent, in what a restart finds.

use super::Bug;
use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use rdb_proto::convert::{vector, vector_to_wire};
use rdb_proto::raft::{EventualRow, OriginEntry, PushOrigins, VectorPart};
use rdb_server::eventual::layout;
use rdb_storage::{Family, KeyRange, MemoryEngine, Op, View, WriteBatch};
use rdb_types::{NamespaceId, Record, RegionId, Stamp, StoreId, VersionVector};
use std::collections::BTreeMap;

/// Of so many numbers, one is stamped far ahead.
const FAR_AHEAD: u64 = 50;
/// How far: an hour, in a stamp's own units.
const HOUR: u64 = 3_600_000 << 22;

/// What a batch becomes on its way to the disk of `store`; `None`: what it was.
pub(super) fn rewrite(
    bug: Bug,
    store: StoreId,
    real: &MemoryEngine,
    batch: &WriteBatch,
) -> Option<WriteBatch> {
    match bug {
        Bug::TombstoneDroppedEarly => Some(map(batch, |op| match op {
            Op::Put {
                family: Family::Data,
                key,
                value,
            } if is_eventual(&value, |record| record.tombstone) => Op::Delete {
                family: Family::Data,
                key,
            },
            op => op,
        })),
        Bug::FarFutureStampMerged => Some(map(batch, |op| far_ahead(store, op))),
        Bug::CopyWipesOwnWrites => {
            // What puts a copy or a snapshot in place removes a whole range first.
            let replaces = batch.ops().any(|op| match op {
                Op::DeleteRange {
                    family: Family::Data,
                    ..
                } => true,
                Op::DeleteRange {
                    family: Family::OriginLog,
                    start,
                    ..
                } => layout::sequence_of(start) == Some(0),
                _ => false,
            });
            if !replaces {
                return None;
            }
            let mut wiped = WriteBatch::new();
            for (key, value) in real.scan(Family::Data, &KeyRange::all(), false).flatten() {
                if is_eventual(&value, |record| record.stamp.store() == Some(store)) {
                    wiped.delete(Family::Data, key);
                }
            }
            wiped.append(&mut map(batch, |op| op));
            Some(wiped)
        }
        _ => None,
    }
}

/// Whether a record of an eventual namespace is such a one.
fn is_eventual(value: &Bytes, is_such: impl Fn(&Record) -> bool) -> bool {
    Record::decode(value.clone()).is_ok_and(|record| record.origin_sequence > 0 && is_such(&record))
}

fn far_ahead(store: StoreId, op: Op) -> Op {
    let others = |stamp: u64| Stamp(stamp).store().is_some_and(|origin| origin != store);
    match op {
        Op::Put {
            family: Family::OriginLog,
            key,
            value,
        } => {
            let value = match OriginEntry::decode(value.clone()) {
                Ok(mut entry)
                    if entry.sequence.is_multiple_of(FAR_AHEAD) && others(entry.stamp) =>
                {
                    entry.stamp += HOUR;
                    entry.encode_to_vec().into()
                }
                _ => value,
            };
            Op::Put {
                family: Family::OriginLog,
                key,
                value,
            }
        }
        Op::Put {
            family: Family::Data,
            key,
            value,
        } => {
            let value = match Record::decode(value.clone()) {
                Ok(mut record)
                    if record.origin_sequence > 0
                        && record.origin_sequence.is_multiple_of(FAR_AHEAD)
                        && others(record.stamp.0) =>
                {
                    record.stamp.0 += HOUR;
                    record.encode()
                }
                _ => value,
            };
            Op::Put {
                family: Family::Data,
                key,
                value,
            }
        }
        op => op,
    }
}

fn map(batch: &WriteBatch, change: impl Fn(Op) -> Op) -> WriteBatch {
    let mut mapped = WriteBatch::new();
    for op in batch.ops() {
        match change(op.clone()) {
            Op::Put { family, key, value } => mapped.put(family, key, value),
            Op::Delete { family, key } => mapped.delete(family, key),
            Op::DeleteRange { family, start, end } => mapped.delete_range(family, start, end),
        }
    }
    mapped
}

/// Whether a sync of these batches is left out: entries of origin logs, and nothing of Raft's.
pub(super) fn skips_sync(bug: Bug, unsynced: &[WriteBatch]) -> bool {
    let touches = |wanted: &[Family]| {
        let mut ops = unsynced.iter().flat_map(WriteBatch::ops);
        ops.any(|op| {
            let (Op::Put { family, .. }
            | Op::Delete { family, .. }
            | Op::DeleteRange { family, .. }) = op;
            wanted.contains(family)
        })
    };
    bug == Bug::UnsyncedEntrySent
        && touches(&[Family::OriginLog])
        && !touches(&[Family::RaftLog, Family::RaftState])
}

/// What a restart finds: some vectors ends a little before the truth.
pub(super) fn forget_vectors(disk: &MemoryEngine, batch: &mut WriteBatch) {
    for (key, value) in disk.scan(Family::Region, &KeyRange::all(), false).flatten() {
        if !key
            .get(8..)
            .is_some_and(|rest| rest.starts_with(b"eventual/"))
        {
            continue;
        }
        if let Ok(mut row) = EventualRow::decode(value) {
            for part in &mut row.vector {
                part.sequence = part.sequence.saturating_sub(3);
            }
            batch.put(Family::Region, key, row.encode_to_vec());
        }
    }
}

/// Changes entries on their way: `now_and_then` says whether this is a time to.
pub(super) fn forge_push(bug: Bug, from: StoreId, push: &mut PushOrigins, now_and_then: bool) {
    for run in &mut push.runs {
        let relayed = u64::from(run.origin) != u64::from(from.get());
        for entry in &mut run.entries {
            let Ok(mut decoded) = OriginEntry::decode(entry.clone()) else {
                continue;
            };
            match bug {
                Bug::RestampOnRelay if relayed && decoded.stamp > 0 => {
                    decoded.stamp = Stamp(decoded.stamp).next().0;
                }
                // The receiver takes what comes behind it as if nothing were missing.
                Bug::GapAccepted if now_and_then && decoded.filler_from == 0 => {
                    decoded = OriginEntry {
                        sequence: decoded.sequence,
                        filler_from: decoded.sequence,
                        ..OriginEntry::default()
                    };
                }
                _ => continue,
            }
            *entry = decoded.encode_to_vec().into();
            if bug == Bug::GapAccepted {
                return;
            }
        }
    }
}

/// What each replica said last that it has.
#[derive(Default)]
pub(super) struct LastTold(Mutex<BTreeMap<(StoreId, RegionId, NamespaceId), VersionVector>>);

impl LastTold {
    /// Leaves out of a report what whoever asked does not have itself: so a tombstone that all have seen
    /// is dropped whatever is still under way.
    pub(super) fn trim(
        &self,
        region: RegionId,
        namespace: NamespaceId,
        (told_by, told_to): (StoreId, StoreId),
        parts: &mut Vec<VectorPart>,
    ) {
        let Some(told) = vector(parts) else { return };
        let mut last = self.0.lock();
        last.insert((told_by, region, namespace), told.clone());
        let own = last.get(&(told_to, region, namespace));
        *parts = vector_to_wire(&told.meet(own.unwrap_or(&VersionVector::new())));
    }
}
