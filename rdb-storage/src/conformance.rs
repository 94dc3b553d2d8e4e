//! What every engine must do.
//!
//! Owns one suite of checks against the contract in [`crate::engine`]; both engines of this
//! crate run it, and any further one has to. Does not know which engine it checks.
//!
//! Each check is a function that gets a fresh engine and panics with what it found.

#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "this is test code that other crates' tests can run, so it cannot be behind cfg(test)"
)]

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;

use crate::{Engine, Family, KeyRange, View, WriteBatch};

/// An engine that is checked, with the means to open it again.
pub trait Subject {
    /// The engine, open.
    fn engine(&self) -> Arc<dyn Engine>;

    /// Closes the engine and opens what is on its disk. The suite has let go of the engine by
    /// then.
    fn reopen(&mut self);
}

/// A check; panics with what it found.
type Check = fn(&mut dyn Subject);

/// Makes a subject with an empty engine.
pub type MakeSubject<'a> = &'a dyn Fn() -> Box<dyn Subject>;

/// Runs every check, each on a fresh engine.
///
/// # Panics
/// The engine does not keep the contract.
pub fn run(make: MakeSubject<'_>) {
    let checks: [(&str, Check); 11] = [
        ("put, get, delete", puts_gets_deletes),
        ("families are apart", families_are_apart),
        ("order within a batch", the_later_operation_of_a_batch_wins),
        ("batches are atomic", batches_are_atomic),
        ("delete a range", deletes_ranges),
        ("scan", scans_both_ways_within_bounds),
        ("odd keys and values", odd_keys_and_values),
        ("snapshots are frozen", snapshots_are_frozen),
        ("a scan sees one moment", a_scan_sees_one_moment),
        ("synced data survives", what_was_synced_survives),
        ("counters", counters_grow),
    ];
    for (name, check) in checks {
        // Captured output names the check that failed.
        println!("conformance: {name}");
        check(make().as_mut());
    }
}

/// A batch that puts each pair into `Family::Data`.
fn puts(pairs: &[(&'static str, &'static str)]) -> WriteBatch {
    let mut batch = WriteBatch::new();
    for (key, value) in pairs {
        batch.put(Family::Data, *key, *value);
    }
    batch
}

fn write(engine: &dyn Engine, batch: &WriteBatch) {
    engine.write(batch).expect("writing does not fail");
}

fn get(view: &dyn View, family: Family, key: &[u8]) -> Option<Bytes> {
    view.get(family, key).expect("reading does not fail")
}

/// A scan of `Family::Data` as text, `key=value` with spaces between.
fn scan(view: &dyn View, range: &KeyRange, reverse: bool) -> String {
    view.scan(Family::Data, range, reverse)
        .map(|item| {
            let (key, value) = item.expect("scanning does not fail");
            format!(
                "{}={}",
                String::from_utf8_lossy(&key),
                String::from_utf8_lossy(&value)
            )
        })
        .collect::<Vec<_>>()
        .join(" ")
}

fn scan_all(view: &dyn View) -> String {
    scan(view, &KeyRange::all(), false)
}

fn puts_gets_deletes(subject: &mut dyn Subject) {
    let engine = subject.engine();
    assert_eq!(get(&*engine, Family::Data, b"a"), None);
    write(&*engine, &puts(&[("a", "1"), ("b", "2")]));
    assert_eq!(get(&*engine, Family::Data, b"a"), Some("1".into()));
    write(&*engine, &puts(&[("a", "3")]));
    assert_eq!(get(&*engine, Family::Data, b"a"), Some("3".into()));

    let mut batch = WriteBatch::new();
    batch.delete(Family::Data, "a");
    batch.delete(Family::Data, "never there");
    write(&*engine, &batch);
    assert_eq!(get(&*engine, Family::Data, b"a"), None);

    let keys = ["b", "a", "b", "c"].map(Bytes::from);
    for view in [&*engine as &dyn View, &*engine.snapshot()] {
        let found = view
            .multi_get(Family::Data, &keys)
            .expect("reading does not fail");
        assert_eq!(found, [Some("2".into()), None, Some("2".into()), None]);
        let none = view
            .multi_get(Family::Data, &[])
            .expect("reading nothing does not fail");
        assert!(none.is_empty());
    }
    write(&*engine, &WriteBatch::new());
    assert_eq!(scan_all(&*engine), "b=2");
}

fn families_are_apart(subject: &mut dyn Subject) {
    let engine = subject.engine();
    let mut batch = WriteBatch::new();
    for family in Family::ALL {
        batch.put(family, "key", family.name());
    }
    write(&*engine, &batch);
    for family in Family::ALL {
        assert_eq!(get(&*engine, family, b"key"), Some(family.name().into()));
    }
    let mut batch = WriteBatch::new();
    batch.delete_range(Family::RaftLog, "a", "z");
    write(&*engine, &batch);
    for family in Family::ALL {
        let expected = (family != Family::RaftLog).then(|| Bytes::from(family.name()));
        assert_eq!(get(&*engine, family, b"key"), expected);
    }
}

fn the_later_operation_of_a_batch_wins(subject: &mut dyn Subject) {
    let engine = subject.engine();
    let mut batch = WriteBatch::new();
    batch.put(Family::Data, "a", "1");
    batch.put(Family::Data, "a", "2");
    batch.put(Family::Data, "b", "1");
    batch.delete(Family::Data, "b");
    batch.delete(Family::Data, "c");
    batch.put(Family::Data, "c", "1");
    batch.put(Family::Data, "d1", "1");
    batch.delete_range(Family::Data, "d", "e");
    batch.put(Family::Data, "d2", "2");
    write(&*engine, &batch);
    assert_eq!(scan_all(&*engine), "a=2 c=1 d2=2");
}

/// Readers see both keys of a batch or neither, while a writer goes on.
fn batches_are_atomic(subject: &mut dyn Subject) {
    let engine = subject.engine();
    let stop = AtomicBool::new(false);
    let reads = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0_u64;
            while !stop.load(Ordering::Relaxed) || reads == 0 {
                let moment = engine.snapshot();
                let left = get(&*moment, Family::Data, b"left");
                let right = get(&*moment, Family::Region, b"right");
                assert_eq!(left, right, "a batch was seen in part");
                reads += 1;
            }
            reads
        });
        for number in 0..500_u32 {
            let mut batch = WriteBatch::new();
            let value = Bytes::copy_from_slice(&number.to_be_bytes());
            batch.put(Family::Data, "left", value.clone());
            batch.put(Family::Region, "right", value);
            write(&*engine, &batch);
        }
        stop.store(true, Ordering::Relaxed);
        reader.join().expect("the reader saw whole batches only")
    });
    assert!(reads > 0);
}

fn deletes_ranges(subject: &mut dyn Subject) {
    let engine = subject.engine();
    let all = [("a", "1"), ("b", "2"), ("b\0", "3"), ("c", "4"), ("d", "5")];
    write(&*engine, &puts(&all));
    let before = engine.snapshot();

    let delete = |start: &'static str, end: &'static str| {
        let mut batch = WriteBatch::new();
        batch.delete_range(Family::Data, start, end);
        write(&*engine, &batch);
    };
    delete("c", "c");
    delete("d", "a");
    assert_eq!(scan_all(&*engine), scan_all(&*before));
    delete("b", "c");
    assert_eq!(scan_all(&*engine), "a=1 c=4 d=5");
    assert_eq!(get(&*engine, Family::Data, b"b\0"), None);
    assert_eq!(
        scan(&*engine, &KeyRange::from("b"), false),
        "c=4 d=5",
        "a scan passes over a deleted range"
    );
    assert_eq!(
        scan(&*engine, &KeyRange::new("", "c"), true),
        "a=1",
        "and back"
    );
    assert_eq!(get(&*before, Family::Data, b"b"), Some("2".into()));
    write(&*engine, &puts(&[("b", "6")]));
    assert_eq!(scan_all(&*engine), "a=1 b=6 c=4 d=5");
}

fn scans_both_ways_within_bounds(subject: &mut dyn Subject) {
    let engine = subject.engine();
    let all = [("a", "1"), ("b", "2"), ("ba", "3"), ("bb", "4"), ("c", "5")];
    write(&*engine, &puts(&all));
    let snapshot = engine.snapshot();
    for view in [&*engine as &dyn View, &*snapshot] {
        let check = |range: KeyRange, expected: &str| {
            assert_eq!(scan(view, &range, false), expected, "{range:?}");
            let mut reversed: Vec<_> = expected.split(' ').collect();
            reversed.reverse();
            assert_eq!(scan(view, &range, true), reversed.join(" "), "{range:?}");
        };
        check(KeyRange::all(), "a=1 b=2 ba=3 bb=4 c=5");
        check(KeyRange::new("b", "c"), "b=2 ba=3 bb=4");
        check(KeyRange::new("aa", "bab"), "b=2 ba=3");
        check(KeyRange::from("bb"), "bb=4 c=5");
        check(KeyRange::prefix(b"b"), "b=2 ba=3 bb=4");
        check(KeyRange::prefix(b"bb"), "bb=4");
        check(KeyRange::prefix(b"x"), "");
        check(KeyRange::new("b", "b"), "");
        check(KeyRange::new("c", "a"), "");
        check(KeyRange::new("ca", "cz"), "");
        let first = view.scan(Family::Data, &KeyRange::all(), false).next();
        let first = first.expect("five keys").expect("scanning does not fail");
        assert_eq!(first, ("a".into(), "1".into()));
    }
    // An iterator that has ended stays ended.
    let mut scan = engine.scan(Family::Data, &KeyRange::prefix(b"c"), false);
    assert!(scan.next().is_some());
    assert!(scan.next().is_none());
    assert!(scan.next().is_none());
}

fn odd_keys_and_values(subject: &mut dyn Subject) {
    let engine = subject.engine();
    let long = Bytes::from(vec![0xff; 3000]);
    let large = Bytes::from((0..1 << 20).map(|n: u32| n as u8).collect::<Vec<_>>());
    let mut batch = WriteBatch::new();
    batch.put(Family::Data, "", "the empty key");
    batch.put(Family::Data, "\0", "");
    batch.put(Family::Data, vec![0xff], "255");
    batch.put(Family::Data, long.clone(), large.clone());
    write(&*engine, &batch);
    engine.sync().expect("syncing does not fail");

    let found: Vec<(Bytes, Bytes)> = engine
        .scan(Family::Data, &KeyRange::all(), false)
        .map(|item| item.expect("scanning does not fail"))
        .collect();
    let expected: [(Bytes, Bytes); 4] = [
        ("".into(), "the empty key".into()),
        ("\0".into(), "".into()),
        (vec![0xff].into(), "255".into()),
        (long, large),
    ];
    assert_eq!(found, expected);
    for (key, value) in &expected {
        assert_eq!(get(&*engine, Family::Data, key).as_ref(), Some(value));
    }
    let last = engine
        .scan(Family::Data, &KeyRange::prefix(&[0xff]), true)
        .next();
    assert_eq!(
        last.map(|item| item.expect("scanning does not fail").0),
        Some(expected[3].0.clone())
    );
}

fn snapshots_are_frozen(subject: &mut dyn Subject) {
    let engine = subject.engine();
    write(&*engine, &puts(&[("a", "1"), ("b", "1")]));
    let first = engine.snapshot();
    let mut batch = puts(&[("a", "2"), ("c", "2")]);
    batch.delete(Family::Data, "b");
    write(&*engine, &batch);
    let second = engine.snapshot();
    let mut batch = WriteBatch::new();
    batch.delete_range(Family::Data, "a", "z");
    write(&*engine, &batch);

    assert_eq!(scan_all(&*first), "a=1 b=1");
    assert_eq!(get(&*first, Family::Data, b"c"), None);
    assert_eq!(scan_all(&*second), "a=2 c=2");
    assert_eq!(get(&*second, Family::Data, b"a"), Some("2".into()));
    assert_eq!(scan_all(&*engine), "");
    drop(first);
    assert_eq!(scan(&*second, &KeyRange::all(), true), "c=2 a=2");

    // A snapshot needs nobody to keep the engine for it.
    drop(engine);
    let read = std::thread::spawn(move || scan_all(&*second));
    assert_eq!(read.join().expect("the thread reads"), "a=2 c=2");
}

fn a_scan_sees_one_moment(subject: &mut dyn Subject) {
    let engine = subject.engine();
    write(&*engine, &puts(&[("a", "1"), ("b", "1"), ("c", "1")]));
    for reverse in [false, true] {
        let mut scan = engine.scan(Family::Data, &KeyRange::all(), reverse);
        let mut seen = vec![scan.next().expect("three").expect("scanning works").0];
        let mut batch = puts(&[("bb", "2")]);
        batch.delete(Family::Data, "b");
        write(&*engine, &batch);
        seen.extend(scan.map(|item| item.expect("scanning works").0));
        seen.sort();
        assert_eq!(seen, ["a", "b", "c"]);

        let mut batch = puts(&[("b", "1")]);
        batch.delete(Family::Data, "bb");
        write(&*engine, &batch);
    }
}

fn what_was_synced_survives(subject: &mut dyn Subject) {
    let engine = subject.engine();
    let mut batch = puts(&[("a", "1"), ("b", "1"), ("c", "1")]);
    for index in 0..100_u64 {
        let key = index.to_be_bytes().to_vec();
        batch.put(Family::RaftLog, key.clone(), key);
    }
    write(&*engine, &batch);
    let mut batch = WriteBatch::new();
    batch.delete(Family::Data, "b");
    batch.delete_range(
        Family::RaftLog,
        0_u64.to_be_bytes().to_vec(),
        90_u64.to_be_bytes().to_vec(),
    );
    write(&*engine, &batch);
    engine.sync().expect("syncing does not fail");
    drop(engine);

    for _ in 0..2 {
        subject.reopen();
        let engine = subject.engine();
        assert_eq!(scan_all(&*engine), "a=1 c=1");
        let entries: Vec<u64> = engine
            .scan(Family::RaftLog, &KeyRange::all(), false)
            .map(|item| {
                let (key, value) = item.expect("scanning does not fail");
                assert_eq!(key, value);
                u64::from_be_bytes(key[..].try_into().expect("eight bytes were written"))
            })
            .collect();
        assert_eq!(entries, (90..100).collect::<Vec<_>>());
    }
}

fn counters_grow(subject: &mut dyn Subject) {
    let engine = subject.engine();
    let before = engine.stats();
    let batch = puts(&[("a", "1"), ("b", "1")]);
    write(&*engine, &batch);
    write(&*engine, &puts(&[("c", "1")]));
    engine.sync().expect("syncing does not fail");
    let after = engine.stats();
    assert_eq!(after.writes - before.writes, 2);
    assert_eq!(after.syncs - before.syncs, 1);
    assert!(after.written_bytes - before.written_bytes > batch.size_bytes() as u64);
    assert_eq!(after.estimated_keys(Family::Data), 3);
    assert_eq!(after.background_errors, 0);
    assert!(after.memtable_bytes > 0);
}
