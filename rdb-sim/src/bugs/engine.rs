//! An engine that does not keep its promises.

use super::Bug;
use bytes::Bytes;
use parking_lot::Mutex;
use rdb_storage::{
    Engine, EngineStats, Family, KeyRange, MemoryEngine, Op, Scan, StorageError, View, WriteBatch,
};
use rdb_types::StoreId;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Of so many records, one is forgotten.
const FORGOTTEN: u64 = 300;

/// Wraps the real engine of a store while one process of it runs.
pub(super) struct Lying {
    bug: Bug,
    store: StoreId,
    real: Arc<MemoryEngine>,
    unsynced: Arc<Mutex<BTreeMap<StoreId, Vec<WriteBatch>>>>,
    /// Votes that the disk never saw.
    votes: Mutex<BTreeMap<Bytes, Bytes>>,
    records: AtomicU64,
}

impl Lying {
    pub(super) fn new(
        bug: Bug,
        store: StoreId,
        real: Arc<MemoryEngine>,
        unsynced: Arc<Mutex<BTreeMap<StoreId, Vec<WriteBatch>>>>,
    ) -> Lying {
        Lying {
            bug,
            store,
            real,
            unsynced,
            votes: Mutex::default(),
            records: AtomicU64::new(0),
        }
    }

    /// Whether an operation reaches the disk.
    fn passes(&self, op: &Op) -> bool {
        match (self.bug, op) {
            (
                Bug::VoteNotPersisted,
                Op::Put {
                    family: Family::RaftState,
                    key,
                    value,
                },
            ) if key.ends_with(b"vote") => {
                self.votes.lock().insert(key.clone(), value.clone());
                false
            }
            (
                Bug::TruncationIgnored,
                Op::DeleteRange {
                    family: Family::RaftLog,
                    start,
                    ..
                },
            ) => !self.cuts_an_end(start),
            (
                Bug::RecordNotWritten,
                Op::Put {
                    family: Family::Data,
                    ..
                },
            ) => !(self.records.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(FORGOTTEN),
            (bug, op) => super::switching::passes(bug, op),
        }
    }

    /// Whether something of the same log stays before `start`: then it is the end that is cut off, and
    /// else the front.
    fn cuts_an_end(&self, start: &Bytes) -> bool {
        let region = start.slice(..8.min(start.len()));
        let before = KeyRange::new(region, start.clone());
        self.real
            .scan(Family::RaftLog, &before, false)
            .next()
            .is_some()
    }
}

impl View for Lying {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        if family == Family::RaftState
            && let Some(vote) = self.votes.lock().get(key)
        {
            return Ok(Some(vote.clone()));
        }
        self.real.get(family, key)
    }

    fn scan(&self, family: Family, range: &KeyRange, reverse: bool) -> Scan<'_> {
        let (all, bug) = (self.real.scan(family, range, reverse), self.bug);
        if bug != Bug::BeginForgottenAtRestart {
            return all;
        }
        Box::new(all.map(move |item| {
            let (key, value) = item?;
            let read = super::switching::read(bug, family, key.clone(), value);
            Ok((key, read))
        }))
    }
}

impl Engine for Lying {
    fn write(&self, batch: &WriteBatch) -> Result<(), StorageError> {
        let mut passed = WriteBatch::new();
        for op in batch.ops().filter(|op| self.passes(op)) {
            match op.clone() {
                Op::Put { family, key, value } => passed.put(family, key, value),
                Op::Delete { family, key } => passed.delete(family, key),
                Op::DeleteRange { family, start, end } => passed.delete_range(family, start, end),
            }
        }
        if let Some(rewritten) = super::eventual::rewrite(self.bug, self.store, &self.real, &passed)
        {
            passed = rewritten;
        }
        if let Some(rewritten) = super::switching::rewrite(self.bug, &passed) {
            passed = rewritten;
        }
        self.real.write(&passed)?;
        let mut unsynced = self.unsynced.lock();
        unsynced.entry(self.store).or_default().push(passed);
        Ok(())
    }

    fn sync(&self) -> Result<(), StorageError> {
        let skips = {
            let unsynced = self.unsynced.lock();
            let of_store = unsynced.get(&self.store).map(Vec::as_slice);
            let of_store = of_store.unwrap_or_default();
            super::eventual::skips_sync(self.bug, of_store)
                || super::switching::skips_sync(self.bug, of_store)
        };
        if self.bug == Bug::AcknowledgeBeforeSync || skips {
            return Ok(());
        }
        self.real.sync()?;
        self.unsynced.lock().remove(&self.store);
        Ok(())
    }

    fn snapshot(&self) -> Arc<dyn View> {
        let whole = self.real.snapshot();
        match self.bug {
            Bug::RequestIdsNotInSnapshot | Bug::SnapshotIncomplete => Arc::new(Gaps {
                bug: self.bug,
                whole,
            }),
            _ => whole,
        }
    }

    fn stats(&self) -> EngineStats {
        self.real.stats()
    }
}

/// A frozen moment that lacks something.
struct Gaps {
    bug: Bug,
    whole: Arc<dyn View>,
}

impl View for Gaps {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        self.whole.get(family, key)
    }

    fn scan(&self, family: Family, range: &KeyRange, reverse: bool) -> Scan<'_> {
        let all = self.whole.scan(family, range, reverse);
        match (self.bug, family) {
            (Bug::RequestIdsNotInSnapshot, Family::RequestIds) => Box::new(std::iter::empty()),
            (Bug::SnapshotIncomplete, Family::Data) => {
                let kept =
                    all.filter(|item| !matches!(item, Ok((key, _)) if key.last() == Some(&b'7')));
                Box::new(kept)
            }
            _ => all,
        }
    }
}
