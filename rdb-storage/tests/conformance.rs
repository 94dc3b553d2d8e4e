//! Both engines keep the contract: the suite, and random histories against a `BTreeMap`.

#![allow(
    clippy::expect_used,
    reason = "helpers of tests may stop at what they did not expect"
)]

use std::{collections::BTreeMap, ops::Bound, sync::Arc};

use bytes::Bytes;
use proptest::prelude::*;
use rdb_storage::{
    Engine, Family, KeyRange, MemoryEngine, RocksEngine, RocksOptions, View, WriteBatch,
    conformance::{self, Subject},
};
use tempfile::TempDir;

struct Memory(Arc<MemoryEngine>);

impl Memory {
    fn new() -> Self {
        Self(Arc::new(MemoryEngine::new()))
    }
}

impl Subject for Memory {
    fn engine(&self) -> Arc<dyn Engine> {
        Arc::clone(&self.0) as Arc<dyn Engine>
    }

    fn reopen(&mut self) {
        // The hardest way to open again: everything unsynced is gone.
        self.0.crash(0);
    }
}

struct Rocks {
    /// Goes first: an engine that is dropped writes into its directory.
    engine: Option<Arc<RocksEngine>>,
    directory: TempDir,
}

impl Rocks {
    fn new() -> Self {
        let mut subject = Self {
            directory: tempfile::tempdir().expect("a temporary directory"),
            engine: None,
        };
        subject.reopen();
        subject
    }

    fn rocks(&self) -> &Arc<RocksEngine> {
        self.engine.as_ref().expect("open except within reopen")
    }
}

impl Subject for Rocks {
    fn engine(&self) -> Arc<dyn Engine> {
        Arc::clone(self.rocks()) as Arc<dyn Engine>
    }

    fn reopen(&mut self) {
        self.engine = None;
        let path = self.directory.path().join("db");
        let engine = RocksEngine::open(&path, RocksOptions::default()).expect("it opens");
        self.engine = Some(Arc::new(engine));
    }
}

/// Moves what is in memory to sorted files, where an engine has such.
trait Flush {
    fn flush(&self);
}

impl Flush for Memory {
    fn flush(&self) {}
}

impl Flush for Rocks {
    fn flush(&self) {
        self.rocks().flush().expect("flushing does not fail");
    }
}

#[test]
fn memory_engine_conforms() {
    conformance::run(&|| Box::new(Memory::new()));
}

#[test]
fn rocks_engine_conforms() {
    conformance::run(&|| Box::new(Rocks::new()));
}

#[test]
fn rocks_shows_what_it_takes_and_what_is_left() {
    let subject = Rocks::new();
    let before = subject.rocks().stats();
    let mut batch = WriteBatch::new();
    // Incompressible enough, and more than the files of an empty database.
    let value: Vec<u8> = (0..4_u32 << 20)
        .map(|n| (n.wrapping_mul(n) >> 7) as u8)
        .collect();
    batch.put(Family::Data, "key", value);
    subject.rocks().write(&batch).expect("there is room");
    let written = subject.rocks().stats();
    assert!(written.memtable_bytes >= 4 << 20, "{written:?}");
    assert!(
        written.disk_bytes >= before.disk_bytes + (4 << 20),
        "{written:?}"
    );
    assert!(
        written.free_disk_bytes.is_some_and(|bytes| bytes > 0),
        "{written:?}"
    );
    subject.flush();
    let read = subject.rocks().get(Family::Data, b"key");
    assert!(read.expect("reading does not fail").is_some());
    let flushed = subject.rocks().stats();
    assert!(flushed.memtable_bytes < 4 << 20, "{flushed:?}");
    assert!(flushed.cache_bytes > before.cache_bytes, "{flushed:?}");
}

#[test]
fn rocks_locks_its_directory() {
    let subject = Rocks::new();
    let path = subject.directory.path().join("db");
    let error = RocksEngine::open(&path, RocksOptions::default())
        .err()
        .expect("it is open already");
    assert!(
        matches!(error, rdb_storage::StorageError::Locked { .. }),
        "{error:?}"
    );
}

/// One step of a random history.
#[derive(Clone, Debug)]
enum Step {
    Write(Vec<Change>),
    Sync,
    /// Close and open after a sync (which is what both engines promise to survive).
    Reopen,
    /// Move to sorted files, where there are such.
    Flush,
    Scan(Vec<u8>, Option<Vec<u8>>, bool),
    Snapshot,
}

#[derive(Clone, Debug)]
enum Change {
    Put(Vec<u8>, Vec<u8>),
    Delete(Vec<u8>),
    DeleteRange(Vec<u8>, Vec<u8>),
}

/// Short keys over three letters, so that steps meet.
fn key() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(prop_oneof![Just(0_u8), Just(b'a'), Just(0xff)], 0..4)
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => (key(), proptest::collection::vec(any::<u8>(), 0..20))
            .prop_map(|(key, value)| Change::Put(key, value)),
        2 => key().prop_map(Change::Delete),
        1 => (key(), key()).prop_map(|(start, end)| Change::DeleteRange(start, end)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => proptest::collection::vec(change(), 1..6).prop_map(Step::Write),
        1 => Just(Step::Sync),
        1 => Just(Step::Reopen),
        1 => Just(Step::Flush),
        4 => (key(), proptest::option::of(key()), any::<bool>())
            .prop_map(|(start, end, reverse)| Step::Scan(start, end, reverse)),
        1 => Just(Step::Snapshot),
    ]
}

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

fn model_scan(model: &Model, range: &KeyRange, reverse: bool) -> Vec<(Vec<u8>, Vec<u8>)> {
    if range.is_empty() {
        return Vec::new();
    }
    let end = match &range.end {
        Some(end) => Bound::Excluded(end.to_vec()),
        None => Bound::Unbounded,
    };
    let mut found: Vec<_> = model
        .range((Bound::Included(range.start.to_vec()), end))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    if reverse {
        found.reverse();
    }
    found
}

fn view_scan(view: &dyn View, range: &KeyRange, reverse: bool) -> Vec<(Vec<u8>, Vec<u8>)> {
    view.scan(Family::Data, range, reverse)
        .map(|item| {
            let (key, value) = item.expect("scanning does not fail");
            (key.to_vec(), value.to_vec())
        })
        .collect()
}

fn play<S: Subject + Flush>(subject: &mut S, steps: &[Step]) {
    let mut model = Model::new();
    let mut frozen: Vec<(Model, Arc<dyn View>)> = Vec::new();
    for step in steps {
        let engine = subject.engine();
        match step {
            Step::Write(changes) => {
                let mut batch = WriteBatch::new();
                for change in changes {
                    match change.clone() {
                        Change::Put(key, value) => {
                            batch.put(Family::Data, key.clone(), value.clone());
                            model.insert(key, value);
                        }
                        Change::Delete(key) => {
                            batch.delete(Family::Data, key.clone());
                            model.remove(&key);
                        }
                        Change::DeleteRange(start, end) => {
                            batch.delete_range(Family::Data, start.clone(), end.clone());
                            model.retain(|key, _| *key < start || *key >= end);
                        }
                    }
                }
                engine.write(&batch).expect("writing does not fail");
            }
            Step::Sync => engine.sync().expect("syncing does not fail"),
            Step::Reopen => {
                engine.sync().expect("syncing does not fail");
                // A snapshot keeps its engine open, which could then not be opened again.
                frozen.clear();
                drop(engine);
                subject.reopen();
            }
            Step::Flush => subject.flush(),
            Step::Scan(start, end, reverse) => {
                let range = KeyRange {
                    start: start.clone().into(),
                    end: end.clone().map(Bytes::from),
                };
                assert_eq!(
                    view_scan(&*engine, &range, *reverse),
                    model_scan(&model, &range, *reverse),
                    "{range:?} reverse {reverse}"
                );
            }
            Step::Snapshot => frozen.push((model.clone(), engine.snapshot())),
        }
    }
    frozen.push((model, subject.engine().snapshot()));
    for (model, view) in &frozen {
        for reverse in [false, true] {
            let all = KeyRange::all();
            assert_eq!(
                view_scan(&**view, &all, reverse),
                model_scan(model, &all, reverse)
            );
        }
        let keys: Vec<Bytes> = model.keys().map(|key| Bytes::from(key.clone())).collect();
        let values = view
            .multi_get(Family::Data, &keys)
            .expect("reading does not fail");
        let expected: Vec<_> = model
            .values()
            .map(|value| Some(Bytes::from(value.clone())))
            .collect();
        assert_eq!(values, expected);
        for (key, value) in model {
            let found = view.get(Family::Data, key).expect("reading does not fail");
            assert_eq!(found.as_deref(), Some(&value[..]));
        }
    }
}

/// What a crash leaves of a random history in memory: everything up to the last sync and a
/// prefix of what came after, as whole batches.
fn play_crash(steps: &[Step], keep: usize) {
    let engine = MemoryEngine::new();
    // The states after each batch since the last sync; the first is that of the sync.
    let mut states = vec![Model::new()];
    for step in steps {
        match step {
            Step::Write(changes) => {
                let mut model = states.last().cloned().unwrap_or_default();
                let mut batch = WriteBatch::new();
                for change in changes.clone() {
                    match change {
                        Change::Put(key, value) => {
                            batch.put(Family::Data, key.clone(), value.clone());
                            model.insert(key, value);
                        }
                        Change::Delete(key) => {
                            batch.delete(Family::Data, key.clone());
                            model.remove(&key);
                        }
                        Change::DeleteRange(start, end) => {
                            batch.delete_range(Family::Data, start.clone(), end.clone());
                            model.retain(|key, _| *key < start || *key >= end);
                        }
                    }
                }
                engine.write(&batch).expect("writing does not fail");
                states.push(model);
            }
            Step::Sync => {
                engine.sync().expect("no fault ordered");
                states.drain(..states.len() - 1);
            }
            _ => {}
        }
    }
    assert_eq!(engine.unsynced_batches(), states.len() - 1);
    engine.crash(keep);
    let expected = &states[keep.min(states.len() - 1)];
    let all = KeyRange::all();
    assert_eq!(
        view_scan(&engine, &all, false),
        model_scan(expected, &all, false)
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn memory_matches_a_map(steps in proptest::collection::vec(step(), 1..60)) {
        play(&mut Memory::new(), &steps);
    }

    #[test]
    fn a_crash_in_memory_keeps_a_prefix(
        steps in proptest::collection::vec(step(), 1..40),
        keep in 0_usize..12,
    ) {
        play_crash(&steps, keep);
    }
}

proptest! {
    // Each case opens a database, and some open it several times.
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn rocks_matches_a_map(steps in proptest::collection::vec(step(), 1..60)) {
        play(&mut Rocks::new(), &steps);
    }
}
