//! A disk that comes back other than it was.

use super::Bug;
use bytes::Bytes;
use rdb_storage::{Engine, Family, KeyRange, MemoryEngine, Op, View, WriteBatch};

/// Spoils a disk after a crash. `next`: the first batch that was lost.
pub(super) fn spoil(bug: Bug, disk: &MemoryEngine, next: Option<&WriteBatch>) {
    let mut batch = WriteBatch::new();
    match bug {
        Bug::TornBatch => {
            let Some(next) = next else { return };
            for op in next.ops().take(next.ops().len() / 2) {
                match op.clone() {
                    Op::Put { family, key, value } => batch.put(family, key, value),
                    Op::Delete { family, key } => batch.delete(family, key),
                    Op::DeleteRange { family, start, end } => {
                        batch.delete_range(family, start, end);
                    }
                }
            }
        }
        Bug::TailCutAtRestart => {
            let mut last: Option<Bytes> = None;
            for (key, _) in disk
                .scan(Family::RaftLog, &KeyRange::all(), false)
                .flatten()
            {
                let ends_region = |last: &Bytes| last.get(..8) != key.get(..8);
                if let Some(last) = last.take_if(|last| ends_region(last)) {
                    batch.delete(Family::RaftLog, last);
                }
                last = Some(key);
            }
            if let Some(last) = last {
                batch.delete(Family::RaftLog, last);
            }
        }
        Bug::WipedDiskVotes => {
            for family in Family::ALL {
                for (key, _) in disk.scan(family, &KeyRange::all(), false).flatten() {
                    // What the store knows of itself and of its cluster stays.
                    if family != Family::Region || key.get(..8) != Some(&[0; 8]) {
                        batch.delete(family, key);
                    }
                }
            }
        }
        Bug::VectorLostOnRestart => super::eventual::forget_vectors(disk, &mut batch),
        _ => return,
    }
    // The simulated disk takes everything that it is given while it is not full.
    let _ = disk.write(&batch).and_then(|()| disk.sync());
}
