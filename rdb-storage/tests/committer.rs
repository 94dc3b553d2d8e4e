//! The committer: who is called back when, how often the disk is synced, and what a failure
//! does to everyone.

#![allow(
    clippy::expect_used,
    reason = "helpers of tests may stop at what they did not expect"
)]

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

use rdb_storage::{
    CommitDriver, Committer, Durability, Engine, EngineStats, Family, KeyRange, MemoryEngine, Scan,
    StorageError, View, WriteBatch,
};

/// An engine whose syncs wait until the test lets them through, so that the test decides what
/// gathers meanwhile.
struct SlowEngine {
    memory: MemoryEngine,
    gate: Mutex<Gate>,
    changed: Condvar,
}

#[derive(Default)]
struct Gate {
    /// Syncs that may pass.
    open: usize,
    /// Syncs that have come to the gate.
    arrived: usize,
}

impl SlowEngine {
    fn new() -> Self {
        Self {
            memory: MemoryEngine::new(),
            gate: Mutex::new(Gate::default()),
            changed: Condvar::new(),
        }
    }

    fn let_syncs_pass(&self, count: usize) {
        self.gate.lock().expect("not poisoned").open += count;
        self.changed.notify_all();
    }

    fn wait_for_sync(&self, number: usize) {
        let mut gate = self.gate.lock().expect("not poisoned");
        while gate.arrived < number {
            gate = self.changed.wait(gate).expect("not poisoned");
        }
    }
}

impl View for SlowEngine {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<bytes::Bytes>, StorageError> {
        self.memory.get(family, key)
    }

    fn scan(&self, family: Family, range: &KeyRange, reverse: bool) -> Scan<'_> {
        self.memory.scan(family, range, reverse)
    }
}

impl Engine for SlowEngine {
    fn write(&self, batch: &WriteBatch) -> Result<(), StorageError> {
        self.memory.write(batch)
    }

    fn sync(&self) -> Result<(), StorageError> {
        let mut gate = self.gate.lock().expect("not poisoned");
        gate.arrived += 1;
        self.changed.notify_all();
        while gate.open == 0 {
            gate = self.changed.wait(gate).expect("not poisoned");
        }
        gate.open -= 1;
        drop(gate);
        self.memory.sync()
    }

    fn snapshot(&self) -> Arc<dyn View> {
        self.memory.snapshot()
    }

    fn stats(&self) -> EngineStats {
        self.memory.stats()
    }
}

/// Counts calls of `on_fatal` and keeps the first message.
#[derive(Clone, Default)]
struct Fatal(Arc<(AtomicUsize, Mutex<String>)>);

impl Fatal {
    fn hook(&self) -> Box<dyn Fn(&StorageError) + Send + Sync> {
        let this = self.clone();
        Box::new(move |error| {
            this.0.0.fetch_add(1, Ordering::SeqCst);
            *this.0.1.lock().expect("not poisoned") = error.to_string();
        })
    }

    fn calls(&self) -> usize {
        self.0.0.load(Ordering::SeqCst)
    }
}

fn put(key: impl Into<bytes::Bytes>) -> WriteBatch {
    let mut batch = WriteBatch::new();
    batch.put(Family::Data, key, "value");
    batch
}

/// More outcomes than any test here has, so that a callback never blocks on reporting one.
const OUTCOMES: usize = 10_000;

type Outcome = (&'static str, Result<(), StorageError>);

/// A callback that reports under a name.
fn report(
    to: &mpsc::SyncSender<Outcome>,
    name: &'static str,
) -> Box<dyn FnOnce(Result<(), StorageError>) + Send> {
    let to = to.clone();
    Box::new(move |result| {
        let _ = to.send((name, result));
    })
}

fn next(from: &mpsc::Receiver<Outcome>) -> Outcome {
    from.recv_timeout(Duration::from_secs(20))
        .expect("the committer calls everyone back")
}

fn next_ok(from: &mpsc::Receiver<Outcome>) -> &'static str {
    let (name, result) = next(from);
    result.expect("no fault ordered");
    name
}

/// Runs a future to its end on this thread: `commit` needs no runtime, and this proves it.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

#[test]
fn one_sync_serves_everyone_who_waited_for_the_one_before() {
    let engine = Arc::new(SlowEngine::new());
    let fatal = Fatal::default();
    let committer = Committer::start(Arc::clone(&engine) as _, fatal.hook());
    let (to, from) = mpsc::sync_channel(OUTCOMES);

    committer.submit(put("first"), Durability::Synced, report(&to, "first"));
    engine.wait_for_sync(1);
    for _ in 0..500 {
        committer.submit(put("many"), Durability::Synced, report(&to, "many"));
    }
    assert!(committer.queued_bytes() > 500 * 10);
    engine.let_syncs_pass(1);
    assert_eq!(next_ok(&from), "first");
    engine.wait_for_sync(2);
    assert!(from.try_recv().is_err(), "nobody is called before the sync");
    engine.let_syncs_pass(1);
    for _ in 0..500 {
        assert_eq!(next_ok(&from), "many");
    }
    let stats = engine.stats();
    assert_eq!((stats.writes, stats.syncs), (2, 2));
    let stats = committer.stats();
    assert_eq!((stats.submissions, stats.groups), (501, 2));
    assert_eq!(stats.queued_bytes, 0);
    committer.shutdown();
    assert_eq!(fatal.calls(), 0);
}

#[test]
fn written_is_called_back_while_the_sync_is_under_way() {
    let engine = Arc::new(SlowEngine::new());
    let committer = Committer::start(Arc::clone(&engine) as _, Fatal::default().hook());
    let (to, from) = mpsc::sync_channel(OUTCOMES);

    committer.submit_staged(put("log"), report(&to, "written"), report(&to, "synced"));
    assert_eq!(next_ok(&from), "written");
    assert!(engine.get(Family::Data, b"log").expect("memory").is_some());
    engine.wait_for_sync(1);
    assert!(from.try_recv().is_err());

    // Readable but not durable: a power loss now takes it.
    assert_eq!(engine.memory.unsynced_batches(), 1);
    engine.let_syncs_pass(1);
    assert_eq!(next_ok(&from), "synced");
    assert_eq!(engine.memory.unsynced_batches(), 0);

    // Nobody asks for a sync, so the closed gate is not reached.
    committer.submit(put("state"), Durability::Written, report(&to, "state"));
    assert_eq!(next_ok(&from), "state");
    committer.shutdown();
    assert_eq!(engine.stats().syncs, 1);
}

#[test]
fn who_waits_to_read_does_not_wait_for_a_sync_under_way_and_who_waits_for_the_disk_gathers() {
    let engine = Arc::new(SlowEngine::new());
    let committer = Committer::start(engine.clone(), Fatal::default().hook());
    let (to, outcomes) = mpsc::sync_channel(OUTCOMES);
    committer.submit(put("first"), Durability::Synced, report(&to, "first"));
    engine.wait_for_sync(1);

    // Nobody asks to read these: they are not written before the sync is over.
    for key in ["a", "b", "c"] {
        committer.submit(put(key), Durability::Synced, report(&to, key));
    }
    assert_eq!(engine.get(Family::Data, b"a").expect("memory"), None);
    // From here on somebody does.
    for name in ["read 1", "read 2"] {
        committer.submit(put(name), Durability::Written, report(&to, name));
        assert_eq!(next_ok(&outcomes), name);
    }
    assert!(engine.get(Family::Data, b"a").expect("memory").is_some());

    // The sync that was under way covers none of them; the next one covers all.
    engine.let_syncs_pass(1);
    assert_eq!(next_ok(&outcomes), "first");
    engine.wait_for_sync(2);
    assert!(outcomes.try_recv().is_err());
    engine.let_syncs_pass(1);
    for key in ["a", "b", "c"] {
        assert_eq!(next_ok(&outcomes), key);
    }
    committer.shutdown();
    assert_eq!(engine.stats().syncs, 2);
}

#[test]
fn batches_take_effect_in_the_order_of_submission() {
    const PUTS: u32 = 2_000;
    let engine = Arc::new(MemoryEngine::new());
    let committer = Committer::start(Arc::clone(&engine) as _, Fatal::default().hook());
    let (to, from) = mpsc::sync_channel(OUTCOMES);
    // Each thread counts upwards in a key of its own; callbacks report what is visible then.
    thread::scope(|scope| {
        for writer in 0..4_u8 {
            let (committer, to, engine) = (committer.clone(), to.clone(), Arc::clone(&engine));
            scope.spawn(move || {
                for number in 0..PUTS {
                    let mut batch = WriteBatch::new();
                    batch.put(Family::Data, vec![writer], number.to_be_bytes().to_vec());
                    let (to, engine) = (to.clone(), Arc::clone(&engine));
                    let durability = match number % 3 {
                        0 => Durability::Synced,
                        _ => Durability::Written,
                    };
                    committer.submit(
                        batch,
                        durability,
                        Box::new(move |result| {
                            let seen = engine.get(Family::Data, &[writer]);
                            let _ = to.send((writer, number, durability, result, seen));
                        }),
                    );
                }
            });
        }
    });
    drop(to);
    committer.shutdown();

    // The last number that was called back, by writer and durability, and the last one seen.
    let mut called = std::collections::BTreeMap::new();
    let mut visible = [0; 4];
    let mut outcomes = 0;
    for (writer, number, durability, result, seen) in from.try_iter() {
        result.expect("no fault ordered");
        let seen = seen.expect("memory").expect("at least this one");
        let seen = u32::from_be_bytes(seen[..].try_into().expect("four bytes were written"));
        assert!(seen >= number, "{number} was called back and is not there");
        let last_seen = &mut visible[usize::from(writer)];
        assert!(
            seen >= *last_seen,
            "{seen} became visible after {last_seen}"
        );
        *last_seen = seen;
        let last = called.insert((writer, durability == Durability::Synced), number);
        assert!(
            last.is_none_or(|last| last < number),
            "{number} after {last:?}"
        );
        outcomes += 1;
    }
    assert_eq!(outcomes, 4 * PUTS);
    assert_eq!(visible, [PUTS - 1; 4]);
}

#[test]
fn a_failed_sync_is_final() {
    let engine = Arc::new(SlowEngine::new());
    let fatal = Fatal::default();
    let committer = Committer::start(Arc::clone(&engine) as _, fatal.hook());
    let (to, from) = mpsc::sync_channel(OUTCOMES);

    committer.submit_staged(put("a"), report(&to, "a written"), report(&to, "a synced"));
    assert_eq!(next_ok(&from), "a written");
    engine.wait_for_sync(1);
    committer.submit(put("b"), Durability::Synced, report(&to, "b"));
    // Waits for the disk as well: who waits to read only would be answered meanwhile.
    committer.submit(put("c"), Durability::Synced, report(&to, "c"));
    engine.memory.fail_next_sync();
    engine.let_syncs_pass(10);

    for expected in ["a synced", "b", "c"] {
        let (name, result) = next(&from);
        assert_eq!(name, expected);
        assert!(matches!(result, Err(StorageError::Io { .. })), "{result:?}");
    }
    // Everyone who comes later learns the same, at once.
    committer.submit(put("d"), Durability::Written, report(&to, "d"));
    let (name, result) = from.try_recv().expect("called on this thread");
    assert_eq!(name, "d");
    assert!(matches!(result, Err(StorageError::Io { .. })), "{result:?}");
    let late = block_on(committer.commit(put("e"), Durability::Synced));
    assert!(matches!(late, Err(StorageError::Io { .. })), "{late:?}");

    committer.shutdown();
    assert_eq!(fatal.calls(), 1);
    assert_eq!(engine.stats().syncs, 1, "a failed sync is not tried again");
    assert_eq!(engine.get(Family::Data, b"b").expect("memory"), None);
    assert_eq!(committer.queued_bytes(), 0);
}

#[test]
fn a_full_disk_makes_everybody_wait_and_nobody_fail() {
    let engine = Arc::new(MemoryEngine::new());
    let fatal = Fatal::default();
    let committer = Committer::start(Arc::clone(&engine) as _, fatal.hook());
    block_on(committer.commit(put("a"), Durability::Synced)).expect("no fault ordered");
    let (to, from) = mpsc::sync_channel(OUTCOMES);
    engine.set_full(true);
    committer.submit(put("b"), Durability::Synced, report(&to, "b"));
    while !committer.is_stalled() {
        thread::sleep(Duration::from_millis(1));
    }
    committer.submit(put("c"), Durability::Written, report(&to, "c"));
    thread::sleep(Duration::from_millis(250));
    assert!(from.try_recv().is_err(), "there is no room yet");
    engine.set_full(false);
    assert_eq!(next_ok(&from), "b");
    assert_eq!(next_ok(&from), "c");
    assert!(!committer.is_stalled());

    // Who leaves does not wait for room.
    engine.set_full(true);
    committer.submit(put("d"), Durability::Synced, report(&to, "d"));
    committer.shutdown();
    let (name, result) = next(&from);
    assert_eq!(name, "d");
    assert!(matches!(result, Err(StorageError::NoSpace { .. })));
    assert_eq!(committer.queued_bytes(), 0);
    assert_eq!(fatal.calls(), 0);
    engine.crash(usize::MAX);
    let found: Vec<bool> = [b"a", b"b", b"c", b"d"]
        .into_iter()
        .map(|key| engine.get(Family::Data, key).expect("memory").is_some())
        .collect();
    assert_eq!(found, [true, true, true, false]);
}

#[test]
fn shutdown_finishes_what_is_queued_and_calls_everyone() {
    let engine = Arc::new(SlowEngine::new());
    let committer = Committer::start(Arc::clone(&engine) as _, Fatal::default().hook());
    let (to, from) = mpsc::sync_channel(OUTCOMES);
    committer.submit(put("first"), Durability::Synced, report(&to, "first"));
    engine.wait_for_sync(1);
    for _ in 0..100 {
        committer.submit(put("queued"), Durability::Synced, report(&to, "queued"));
    }
    engine.let_syncs_pass(100);
    committer.shutdown();
    // All were called before `shutdown` returned.
    assert_eq!(
        from.try_iter().filter(|(_, result)| result.is_ok()).count(),
        101
    );

    committer.submit(put("late"), Durability::Synced, report(&to, "late"));
    let (name, result) = from.try_recv().expect("called on this thread");
    assert_eq!(name, "late");
    assert!(matches!(result, Err(StorageError::Closed)));
    assert_eq!(engine.get(Family::Data, b"late").expect("memory"), None);
    committer.clone().shutdown();
    assert_eq!(Arc::strong_count(&engine), 1, "the engine is let go of");
}

#[test]
fn the_thread_ends_with_the_last_committer() {
    let engine = Arc::new(MemoryEngine::new());
    let committer = Committer::start(Arc::clone(&engine) as _, Fatal::default().hook());
    let (to, from) = mpsc::sync_channel(OUTCOMES);
    let other = committer.clone();
    drop(committer);
    other.submit(put("a"), Durability::Synced, report(&to, "a"));
    drop(other);
    assert_eq!(next_ok(&from), "a");
    let mut waited = 0;
    while Arc::strong_count(&engine) > 1 {
        waited += 1;
        assert!(waited < 2_000, "the thread does not end");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn shutdown_from_a_callback_does_not_wait_for_itself() {
    let engine = Arc::new(MemoryEngine::new());
    let committer = Committer::start(Arc::clone(&engine) as _, Fatal::default().hook());
    let (to, from) = mpsc::sync_channel(OUTCOMES);
    let inner = committer.clone();
    committer.submit(
        put("a"),
        Durability::Written,
        Box::new(move |result| {
            inner.shutdown();
            let _ = to.send(("a", result));
        }),
    );
    assert_eq!(next_ok(&from), "a");
    committer.shutdown();
    assert_eq!(Arc::strong_count(&engine), 1);
}

#[test]
fn a_panic_in_a_callback_does_not_leave_others_waiting() {
    let fatal = Fatal::default();
    let committer = Committer::start(Arc::new(MemoryEngine::new()), fatal.hook());
    committer.submit(
        put("a"),
        Durability::Written,
        Box::new(|_| panic!("a bug in a callback, planted by this test")),
    );
    let late = block_on(committer.commit(put("b"), Durability::Synced));
    assert!(
        matches!(late, Err(StorageError::Internal { .. })),
        "{late:?}"
    );
    committer.shutdown();
    assert_eq!(fatal.calls(), 1);
}

/// What the simulator does: the same steps, at moments that it chooses.
#[test]
fn a_driver_can_be_run_by_hand() {
    let engine = Arc::new(MemoryEngine::new());
    let (committer, mut driver) =
        Committer::manual(Arc::clone(&engine) as _, Fatal::default().hook());
    let (to, from) = mpsc::sync_channel(OUTCOMES);
    assert!(driver.try_group().is_none());

    committer.submit_staged(put("a"), report(&to, "written"), report(&to, "synced"));
    let group = block_on(driver.next_group()).expect("one waits");
    assert!(from.try_recv().is_err());
    let written = driver.write(group).expect("no fault ordered");
    assert_eq!(next_ok(&from), "written");
    assert!(from.try_recv().is_err());
    driver.sync(written);
    assert_eq!(next_ok(&from), "synced");

    // A wake-up is not lost between two looks, and a close ends the waiting.
    let other = committer.clone();
    let submitter = thread::spawn(move || {
        thread::sleep(Duration::from_millis(20));
        other.submit(put("b"), Durability::Written, Box::new(|_| {}));
        thread::sleep(Duration::from_millis(20));
        other.shutdown();
    });
    let group = block_on(driver.next_group()).expect("one comes");
    driver.run(group);
    assert!(block_on(driver.next_group()).is_none());
    submitter.join().expect("it only submits");

    // Power loss: the driver goes, and whoever waits is told.
    let (committer, driver): (_, CommitDriver) = Committer::manual(engine, Fatal::default().hook());
    committer.submit(put("c"), Durability::Synced, report(&to, "c"));
    drop(driver);
    assert_eq!(committer.queued_bytes(), 0);
    let (name, result) = from.try_recv().expect("told when the driver went");
    assert_eq!(name, "c");
    assert!(matches!(result, Err(StorageError::Closed)));
    committer.submit(put("d"), Durability::Synced, report(&to, "d"));
    assert!(matches!(
        from.try_recv(),
        Ok(("d", Err(StorageError::Closed)))
    ));
}

#[test]
fn a_driver_that_failed_does_nothing_more() {
    let engine = Arc::new(MemoryEngine::new());
    let fatal = Fatal::default();
    let (committer, mut driver) = Committer::manual(Arc::clone(&engine) as _, fatal.hook());
    let (to, from) = mpsc::sync_channel(OUTCOMES);
    let mut take = |name| {
        committer.submit(put(name), Durability::Synced, report(&to, name));
        driver.try_group().expect("one waits")
    };
    let (first, second, third) = (take("first"), take("second"), take("third"));
    let first = driver.write(first).expect("no fault ordered yet");
    let second = driver.write(second).expect("no fault ordered yet");
    engine.fail_next_sync();
    driver.sync(first);
    driver.sync(second);
    assert!(driver.write(third).is_none());
    for expected in ["first", "second", "third"] {
        let (name, result) = next(&from);
        assert_eq!(name, expected);
        assert!(matches!(result, Err(StorageError::Io { .. })), "{result:?}");
    }
    assert_eq!(fatal.calls(), 1);
    assert_eq!((engine.stats().writes, engine.stats().syncs), (2, 1));
    assert_eq!(committer.queued_bytes(), 0);
}
