//! An engine in memory that can lose power on purpose.
//!
//! Owns the state of a pretended disk: what is durable, what is only written, and which
//! faults are ordered. Tests and the simulator use it in place of RocksDB. Does not know
//! who orders the faults or when.
//!
//! # Invariants
//!
//! - `current` is `durable` with all of `unsynced` applied, in order (until a sync failed).
//! - [`MemoryEngine::crash`] keeps a prefix of the unsynced batches and all synced ones.
//! - After a failed sync nothing becomes durable any more, whatever later syncs report: the
//!   kernel drops the pages that it could not write and reports the next sync as good. Who
//!   tries again loses acknowledged writes at the next crash, where a simulation sees it.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::Arc,
};

use bytes::Bytes;
// Not the standard library's lock: a test that panics while it holds the lock should fail with
// its own message, not with a poisoned lock elsewhere.
use parking_lot::RwLock;

use crate::{
    Engine, EngineStats, Family, KeyRange, Op, StorageError, View, WriteBatch, engine::Scan,
};

/// One family. Shared with the snapshots that were taken of it; the first write after a
/// snapshot copies it, which is fine for the sizes that tests and simulations have.
type Map = Arc<BTreeMap<Bytes, Cell>>;

/// What lies under a key.
#[derive(Clone, Debug)]
struct Cell {
    value: Bytes,
    /// Its checksum is wrong: reading it is an error, overwriting it mends it.
    damaged: bool,
}

impl Cell {
    fn read(&self, family: Family, key: &[u8]) -> Result<Bytes, StorageError> {
        if self.damaged {
            let at = format!("{} in {}", key.escape_ascii(), family.name());
            return Err(StorageError::corruption(
                at,
                "the memory engine was told to damage it",
            ));
        }
        Ok(self.value.clone())
    }
}

/// All families at one moment.
#[derive(Clone, Debug, Default)]
struct Families([Map; Family::ALL.len()]);

impl Families {
    fn map(&self, family: Family) -> &Map {
        &self.0[family.index()]
    }

    fn apply(&mut self, batch: &WriteBatch) {
        for op in batch.ops() {
            match op {
                Op::Put { family, key, value } => {
                    let (value, damaged) = (value.clone(), false);
                    let cell = Cell { value, damaged };
                    self.map_mut(*family).insert(key.clone(), cell);
                }
                Op::Delete { family, key } => {
                    self.map_mut(*family).remove(key);
                }
                Op::DeleteRange { family, start, end } => {
                    let doomed: Vec<Bytes> = self
                        .map(*family)
                        .range::<Bytes, _>(start..end)
                        .map(|(key, _)| key.clone())
                        .collect();
                    let map = self.map_mut(*family);
                    for key in doomed {
                        map.remove(&key);
                    }
                }
            }
        }
    }

    fn map_mut(&mut self, family: Family) -> &mut BTreeMap<Bytes, Cell> {
        Arc::make_mut(&mut self.0[family.index()])
    }
}

impl View for Families {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        let cell = self.map(family).get(key);
        cell.map(|cell| cell.read(family, key)).transpose()
    }

    fn scan(&self, family: Family, range: &KeyRange, reverse: bool) -> Scan<'_> {
        Box::new(Cursor::new(
            family,
            Arc::clone(self.map(family)),
            range.clone(),
            reverse,
        ))
    }
}

/// A scan that owns the moment it reads. It finds its place anew for each key, because an
/// iterator that borrows from an `Arc` beside it cannot be written without unsafe code.
struct Cursor {
    family: Family,
    map: Map,
    start: Bound<Bytes>,
    end: Bound<Bytes>,
    reverse: bool,
    done: bool,
}

impl Cursor {
    fn new(family: Family, map: Map, range: KeyRange, reverse: bool) -> Self {
        Self {
            family,
            map,
            done: range.is_empty(),
            start: Bound::Included(range.start),
            end: range.end.map_or(Bound::Unbounded, Bound::Excluded),
            reverse,
        }
    }
}

impl Iterator for Cursor {
    type Item = Result<(Bytes, Bytes), StorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let mut rest = self
            .map
            .range::<Bytes, _>((self.start.as_ref(), self.end.as_ref()))
            .map(|(key, cell)| (key, cell.read(self.family, key)));
        let found = if self.reverse {
            rest.next_back()
        } else {
            rest.next()
        };
        let Some((key, value)) = found.map(|(key, value)| (key.clone(), value)) else {
            self.done = true;
            return None;
        };
        let value = match value {
            Ok(value) => value,
            Err(error) => {
                self.done = true;
                return Some(Err(error));
            }
        };
        let passed = Bound::Excluded(key.clone());
        if self.reverse {
            self.end = passed;
        } else {
            // `(Excluded(k), Excluded(k))` would panic in `range`, but `end` is beyond every
            // key that was inside.
            self.start = passed;
        }
        Some(Ok((key, value)))
    }
}

#[derive(Debug, Default)]
struct State {
    current: Families,
    durable: Families,
    unsynced: VecDeque<WriteBatch>,
    fail_next_sync: bool,
    sync_failed: bool,
    full: bool,
    writes: u64,
    written_bytes: u64,
    syncs: u64,
}

/// An engine in memory; see the [module](self) for the faults it can play.
#[derive(Debug, Default)]
pub struct MemoryEngine {
    state: RwLock<State>,
}

impl MemoryEngine {
    /// An empty engine.
    pub fn new() -> Self {
        Self::default()
    }

    /// Loses power and comes back: of the batches that were written but not synced, the first
    /// `keep` survive (all of them if there are fewer), as a log that reached the disk up to
    /// some point. Ordered sync faults are forgotten; a full disk stays full. Snapshots taken
    /// before keep what they show.
    pub fn crash(&self, keep: usize) {
        let mut state = self.state.write();
        let state = &mut *state;
        for batch in state.unsynced.drain(..).take(keep) {
            state.durable.apply(&batch);
        }
        state.current = state.durable.clone();
        state.fail_next_sync = false;
        state.sync_failed = false;
    }

    /// How many batches a crash could lose now.
    pub fn unsynced_batches(&self) -> usize {
        self.state.read().unsynced.len()
    }

    /// What a crash that keeps nothing unsynced would leave, as it is now.
    pub fn durable(&self) -> Arc<dyn View> {
        Arc::new(self.state.read().durable.clone())
    }

    /// Makes the next sync fail. Afterwards syncs succeed again but make nothing durable, until
    /// the next [`MemoryEngine::crash`].
    pub fn fail_next_sync(&self) {
        self.state.write().fail_next_sync = true;
    }

    /// Whether a sync was ordered to fail, or has failed since the last crash.
    pub fn is_failing(&self) -> bool {
        let state = self.state.read();
        state.fail_next_sync || state.sync_failed
    }

    /// Flips a bit of the value that is the `nth` of a family (round and round): reading it is an
    /// error from now on, also in snapshots that are taken later, until it is overwritten. False
    /// where the family holds nothing.
    pub fn damage(&self, family: Family, nth: usize) -> bool {
        let mut state = self.state.write();
        let count = state.current.map(family).len();
        if count == 0 {
            return false;
        }
        let key = state.current.map(family).keys().nth(nth % count).cloned();
        let State {
            current, durable, ..
        } = &mut *state;
        for families in [current, durable] {
            if let Some(cell) = key
                .as_ref()
                .and_then(|key| families.map_mut(family).get_mut(key))
            {
                cell.damaged = true;
            }
        }
        true
    }

    /// Flips every bit back.
    pub fn mend(&self) {
        let mut state = self.state.write();
        let State {
            current, durable, ..
        } = &mut *state;
        for families in [current, durable] {
            for family in Family::ALL {
                for cell in families.map_mut(family).values_mut() {
                    cell.damaged = false;
                }
            }
        }
    }

    /// While `full`, every write is refused with [`StorageError::NoSpace`] and changes nothing.
    pub fn set_full(&self, full: bool) {
        self.state.write().full = full;
    }

    /// Whether it is.
    pub fn is_full(&self) -> bool {
        self.state.read().full
    }
}

impl View for MemoryEngine {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        self.state.read().current.get(family, key)
    }

    fn multi_get(
        &self,
        family: Family,
        keys: &[Bytes],
    ) -> Result<Vec<Option<Bytes>>, StorageError> {
        self.state.read().current.multi_get(family, keys)
    }

    fn scan(&self, family: Family, range: &KeyRange, reverse: bool) -> Scan<'_> {
        let map = Arc::clone(self.state.read().current.map(family));
        Box::new(Cursor::new(family, map, range.clone(), reverse))
    }
}

impl Engine for MemoryEngine {
    fn write(&self, batch: &WriteBatch) -> Result<(), StorageError> {
        let mut state = self.state.write();
        if state.full {
            return Err(StorageError::NoSpace {
                doing: "writing a batch",
                detail: "the memory engine was told to be full".into(),
            });
        }
        state.current.apply(batch);
        state.unsynced.push_back(batch.clone());
        state.writes += 1;
        state.written_bytes += batch.size_bytes() as u64;
        Ok(())
    }

    fn sync(&self) -> Result<(), StorageError> {
        let mut state = self.state.write();
        let state = &mut *state;
        state.syncs += 1;
        if std::mem::take(&mut state.fail_next_sync) {
            state.sync_failed = true;
            return Err(StorageError::Io {
                doing: "syncing",
                detail: "the memory engine was told to fail this sync".into(),
            });
        }
        if !state.sync_failed {
            for batch in state.unsynced.drain(..) {
                state.durable.apply(&batch);
            }
        }
        Ok(())
    }

    fn snapshot(&self) -> Arc<dyn View> {
        Arc::new(self.state.read().current.clone())
    }

    fn stats(&self) -> EngineStats {
        let state = self.state.read();
        let map_bytes = |map: &Map| -> usize {
            let pairs = map.iter().map(|(key, cell)| key.len() + cell.value.len());
            pairs.sum()
        };
        EngineStats {
            memtable_bytes: state.current.0.iter().map(map_bytes).sum::<usize>() as u64,
            estimated_keys: Family::ALL.map(|family| state.current.map(family).len() as u64),
            writes: state.writes,
            written_bytes: state.written_bytes,
            syncs: state.syncs,
            ..EngineStats::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flipped_bit_is_an_error_until_it_is_overwritten_or_mended() {
        let engine = MemoryEngine::new();
        assert!(!engine.damage(Family::Data, 0));
        put(&engine, "a");
        put(&engine, "b");
        engine.sync().expect("not told to fail");
        assert!(engine.damage(Family::Data, 1));
        assert!(engine.get(Family::Data, b"a").is_ok());
        assert!(engine.get(Family::Data, b"b").is_err());
        let scanned: Vec<_> = engine
            .snapshot()
            .scan(Family::Data, &KeyRange::all(), false)
            .map(|item| item.is_ok())
            .collect();
        assert_eq!(scanned, [true, false]);
        engine.crash(0);
        assert!(engine.get(Family::Data, b"b").is_err());
        put(&engine, "b");
        assert!(engine.get(Family::Data, b"b").is_ok());
        assert!(engine.damage(Family::Data, 1));
        engine.mend();
        assert!(engine.get(Family::Data, b"b").is_ok());
    }

    fn put(engine: &MemoryEngine, key: &'static str) {
        let mut batch = WriteBatch::new();
        batch.put(Family::Data, key, "v");
        engine.write(&batch).expect("not full");
    }

    fn keys(engine: &MemoryEngine) -> Vec<Bytes> {
        engine
            .scan(Family::Data, &KeyRange::all(), false)
            .map(|item| item.expect("memory does not fail").0)
            .collect()
    }

    #[test]
    fn a_crash_keeps_what_was_synced_and_a_prefix_of_the_rest() {
        for keep in 0..4 {
            let engine = MemoryEngine::new();
            put(&engine, "a");
            engine.sync().expect("no fault ordered");
            put(&engine, "b");
            put(&engine, "c");
            assert_eq!(engine.unsynced_batches(), 2);
            engine.crash(keep);
            assert_eq!(engine.unsynced_batches(), 0);
            assert_eq!(keys(&engine), ["a", "b", "c"][..1 + keep.min(2)]);
            // What survived is on the disk: another crash takes nothing more.
            engine.crash(0);
            assert_eq!(keys(&engine).len(), 1 + keep.min(2));
        }
    }

    #[test]
    fn a_sync_after_a_failed_one_reports_success_and_saves_nothing() {
        let engine = MemoryEngine::new();
        put(&engine, "a");
        engine.fail_next_sync();
        engine.sync().expect_err("the fault was ordered");
        engine.sync().expect("the kernel says so");
        put(&engine, "b");
        engine.sync().expect("the kernel says so");
        engine.crash(0);
        assert_eq!(keys(&engine), Vec::<Bytes>::new());
        put(&engine, "c");
        engine.sync().expect("a new process, a new disk state");
        engine.crash(0);
        assert_eq!(keys(&engine), ["c"]);
    }

    #[test]
    fn a_full_disk_refuses_whole_batches_and_reads_go_on() {
        let engine = MemoryEngine::new();
        put(&engine, "a");
        engine.set_full(true);
        let mut batch = WriteBatch::new();
        batch.put(Family::Data, "b", "v");
        assert!(
            engine
                .write(&batch)
                .expect_err("the disk is full")
                .is_no_space()
        );
        assert_eq!(keys(&engine), ["a"]);
        engine.sync().expect("syncing needs no room");
        engine.set_full(false);
        engine.write(&batch).expect("there is room again");
        assert_eq!(keys(&engine), ["a", "b"]);
    }
}
