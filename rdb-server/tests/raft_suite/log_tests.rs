//! The log of a region: openraft's suite over both engines, and what the suite does not ask for.

use crate::machine::TestMachine;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage, RaftLogStorageExt};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::TypeConfigExt;
use openraft::{RaftTypeConfig, StorageError};
use prost::Message;
use rdb_server::raft::{
    Command, Entry, EntryPayload, LogId, LogStoreOptions, RaftLogStore, TypeConfig, Vote, log_id,
    wire,
};
use rdb_storage::{
    CommitDriver, Committer, Engine, Family, KeyRange, MemoryEngine, StorageError as EngineError,
    View, WriteBatch,
};
use rdb_types::RegionId;
use std::ops::Range;
use std::sync::Arc;
use std::task::Poll;

const REGION: RegionId = RegionId(7);

fn never_fatal() -> rdb_storage::committer::OnFatal {
    Box::new(|error| panic!("{error}"))
}

struct InMemory;

impl StoreBuilder<TypeConfig, RaftLogStore, TestMachine, ()> for InMemory {
    async fn build(&self) -> Result<((), RaftLogStore, TestMachine), StorageError<TypeConfig>> {
        let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::new());
        let committer = Committer::start(engine.clone(), never_fatal());
        let log = RaftLogStore::open(engine.clone(), committer, REGION).unwrap();
        Ok(((), log, TestMachine::new(REGION, 1, engine).lenient()))
    }
}

#[test]
fn openrafts_suite_passes_in_memory() {
    TypeConfig::run(Suite::test_all(InMemory)).unwrap();
}

/// As [`InMemory`], but nothing stays cached: every read comes from the disk as soon as it can.
struct Uncached;

impl StoreBuilder<TypeConfig, RaftLogStore, TestMachine, ()> for Uncached {
    async fn build(&self) -> Result<((), RaftLogStore, TestMachine), StorageError<TypeConfig>> {
        let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::new());
        let committer = Committer::start(engine.clone(), never_fatal());
        let options = LogStoreOptions {
            cache_bytes: 0,
            read_bytes: 1,
        };
        let log = RaftLogStore::open_with(engine.clone(), committer, REGION, options).unwrap();
        Ok(((), log, TestMachine::new(REGION, 1, engine).lenient()))
    }
}

#[test]
fn openrafts_suite_passes_without_a_cache() {
    TypeConfig::run(Suite::test_all(Uncached)).unwrap();
}

/// A log over a disk that does what it is told, and when.
struct Bench {
    engine: Arc<MemoryEngine>,
    committer: Committer,
    driver: CommitDriver,
    log: RaftLogStore,
}

impl Bench {
    fn new() -> Bench {
        Bench::over(Arc::new(MemoryEngine::new()))
    }

    fn over(engine: Arc<MemoryEngine>) -> Bench {
        let (committer, driver) = Committer::manual(engine.clone(), Box::new(|_| ()));
        let log = RaftLogStore::open(engine.clone(), committer.clone(), REGION).unwrap();
        Bench {
            engine,
            committer,
            driver,
            log,
        }
    }

    /// Power is lost; of what was written and not synced, `keep` batches survive.
    fn crash(self, keep: usize) -> Bench {
        self.engine.crash(keep);
        Bench::over(self.engine)
    }

    /// The disk does all it has been asked for.
    fn run_disk(&mut self) {
        while let Some(group) = self.driver.try_group() {
            self.driver.run(group);
        }
    }

    /// The disk writes what it has been asked for, as one batch, and does not come to the sync.
    fn write_only(&mut self) {
        let group = self.driver.try_group().expect("something waits");
        drop(self.driver.write(group).expect("nothing is broken"));
    }

    /// Hands an append over without waiting for the disk. The answer comes once it is done.
    async fn append(&mut self, term: u64, indexes: Range<u64>) -> Flushed {
        append(&mut self.log, term, indexes).await
    }

    async fn indexes(&mut self) -> Vec<(u64, u64)> {
        ids(&self.log.try_get_log_entries(..).await.unwrap())
    }

    /// Anything else that waits for the disk.
    async fn with_disk<T>(&mut self, work: impl Future<Output = T> + Send + 'static) -> T
    where
        T: Send + 'static,
    {
        let mut work = TypeConfig::spawn(work);
        loop {
            match futures::future::select(&mut work, Box::pin(tokio::task::yield_now())).await {
                futures::future::Either::Left((done, _)) => return done.unwrap(),
                futures::future::Either::Right(_) => self.run_disk(),
            }
        }
    }

    async fn save_vote(&mut self, vote: Vote) {
        let mut log = self.log.clone();
        self.with_disk(async move { log.save_vote(&vote).await.unwrap() })
            .await;
    }
}

type Flushed = <<<TypeConfig as RaftTypeConfig>::AsyncRuntime as openraft::AsyncRuntime>::Oneshot as openraft::async_runtime::Oneshot>::Receiver<
    Result<(), std::io::Error>,
>;

async fn append(log: &mut RaftLogStore, term: u64, indexes: Range<u64>) -> Flushed {
    let (sender, flushed) = TypeConfig::oneshot();
    let entries: Vec<Entry> = indexes.map(|index| entry(term, index)).collect();
    log.append(entries, IOFlushed::signal(sender))
        .await
        .unwrap();
    flushed
}

fn entry(term: u64, index: u64) -> Entry {
    let payload = match index {
        0 => EntryPayload::Blank,
        _ => EntryPayload::Normal(Command(vec![term as u8; 100].into())),
    };
    Entry {
        log_id: log_id(term, index),
        payload,
    }
}

fn ids(entries: &[Entry]) -> Vec<(u64, u64)> {
    entries
        .iter()
        .map(|entry| (entry.log_id.leader_id.term, entry.log_id.index))
        .collect()
}

fn id(term: u64, index: u64) -> Option<LogId> {
    Some(log_id(term, index))
}

#[tokio::test]
async fn entries_are_readable_before_they_are_synced_and_acknowledged_only_after() {
    let mut bench = Bench::new();
    let mut flushed = bench.append(1, 0..3).await;
    assert_eq!(bench.indexes().await, [(1, 0), (1, 1), (1, 2)]);
    assert_eq!(
        bench.log.get_log_state().await.unwrap().last_log_id,
        id(1, 2)
    );
    assert_eq!(bench.engine.stats().writes, 0);
    assert!(futures::poll!(&mut flushed).is_pending());
    bench.run_disk();
    assert_eq!(
        (bench.engine.stats().writes, bench.engine.stats().syncs),
        (1, 1)
    );
    flushed.await.unwrap().unwrap();
}

#[tokio::test]
async fn entries_and_votes_of_two_regions_share_one_sync() {
    let mut bench = Bench::new();
    let mut other =
        RaftLogStore::open(bench.engine.clone(), bench.committer.clone(), RegionId(8)).unwrap();
    let flushed = [
        bench.append(1, 0..5).await,
        append(&mut other, 3, 0..2).await,
    ];
    bench.run_disk();
    assert_eq!(bench.engine.stats().syncs, 1);
    for flushed in flushed {
        flushed.await.unwrap().unwrap();
    }
    assert_eq!(bench.indexes().await.len(), 5);
    assert_eq!(
        ids(&other.try_get_log_entries(..).await.unwrap()),
        [(3, 0), (3, 1)]
    );
}

#[tokio::test]
async fn a_power_loss_takes_nothing_that_was_acknowledged() {
    for keep in 0..3 {
        let mut bench = Bench::new();
        let vote = Vote::new_committed(1, 1);
        bench.save_vote(vote).await;
        let acknowledged = bench.append(1, 0..4).await;
        bench.run_disk();
        acknowledged.await.unwrap().unwrap();

        // Written, but the power goes before the sync.
        let mut lost = bench.append(1, 4..6).await;
        bench.write_only();
        bench.log.truncate_after(id(1, 4)).await.unwrap();
        let mut lost_too = bench.append(2, 5..7).await;
        bench.write_only();
        for flushed in [&mut lost, &mut lost_too] {
            assert!(!matches!(futures::poll!(flushed), Poll::Ready(Ok(Ok(())))));
        }

        let mut bench = bench.crash(keep);
        assert_eq!(bench.log.read_vote().await.unwrap(), Some(vote));
        let survived = [
            &[(1, 0), (1, 1), (1, 2), (1, 3)][..],
            [&[][..], &[(1, 4), (1, 5)], &[(1, 4), (2, 5), (2, 6)]][keep],
        ];
        assert_eq!(bench.indexes().await, survived.concat());
    }
}

/// A replica that forgets a vote gives a second one in the same term.
#[tokio::test]
async fn a_vote_is_on_the_disk_when_the_call_returns_and_not_known_before() {
    let mut bench = Bench::new();
    bench.save_vote(Vote::new(1, 1)).await;
    bench = bench.crash(0);
    assert_eq!(bench.log.read_vote().await.unwrap(), Some(Vote::new(1, 1)));

    let mut log = bench.log.clone();
    let next = Vote::new(2, 3);
    let mut saving = Box::pin(log.save_vote(&next));
    assert!(futures::poll!(&mut saving).is_pending());
    bench.write_only();
    assert!(!matches!(futures::poll!(&mut saving), Poll::Ready(Ok(()))));
    assert_eq!(bench.log.read_vote().await.unwrap(), Some(Vote::new(1, 1)));
}

/// Truncation, commit index and purge wait for no sync. Whatever prefix of them survives is a log.
#[tokio::test]
async fn whatever_prefix_of_the_writes_survives_is_a_log() {
    for keep in 0..6 {
        let mut bench = Bench::new();
        drop(bench.append(1, 0..5).await);
        bench.write_only();
        bench.log.truncate_after(id(1, 2)).await.unwrap();
        bench.write_only();
        bench.log.save_committed(id(1, 2)).await.unwrap();
        bench.write_only();
        bench.log.purge(log_id(1, 1)).await.unwrap();
        bench.write_only();
        // A snapshot that covers more than the log has.
        bench.log.purge(log_id(3, 9)).await.unwrap();
        bench.write_only();

        let mut bench = bench.crash(keep);
        let state = bench.log.get_log_state().await.unwrap();
        let committed = bench.log.read_committed().await.unwrap();
        let found = bench.indexes().await;
        let all = [(1, 0), (1, 1), (1, 2), (1, 3), (1, 4)];
        let expected = match keep {
            0 => (&all[..0], None, None, None),
            1 => (&all[..], None, id(1, 4), None),
            2 => (&all[..3], None, id(1, 2), None),
            3 => (&all[..3], None, id(1, 2), id(1, 2)),
            4 => (&all[2..3], id(1, 1), id(1, 2), id(1, 2)),
            _ => (&all[..0], id(3, 9), id(3, 9), id(1, 2)),
        };
        assert_eq!(
            (
                &found[..],
                state.last_purged_log_id,
                state.last_log_id,
                committed
            ),
            expected,
            "{keep} writes"
        );

        // It goes on where it ends.
        let next = state.last_log_id.map_or(0, |last| last.index + 1);
        let flushed = bench.append(4, next..next + 2).await;
        bench.run_disk();
        flushed.await.unwrap().unwrap();
        assert_eq!(bench.indexes().await.last(), Some(&(4, next + 1)));
    }
}

#[tokio::test]
async fn a_full_disk_ends_the_log_and_leaves_no_gap_behind() {
    let mut bench = Bench::new();
    let good = bench.append(1, 0..3).await;
    bench.run_disk();
    good.await.unwrap().unwrap();

    let refused = bench.append(1, 3..5).await;
    let group = bench.driver.try_group().unwrap();
    // The next one is on its way already when the disk refuses the one before it, and there is room
    // again when its turn comes.
    let slipped_in = bench.append(1, 5..7).await;
    bench.engine.set_full(true);
    assert!(bench.driver.write(group).is_none());
    bench.engine.set_full(false);
    assert!(
        refused
            .await
            .unwrap()
            .unwrap_err()
            .to_string()
            .contains("full")
    );
    bench.run_disk();
    let _ = slipped_in.await;

    // Nothing is taken any more, and the first error is the reason.
    let (sender, after) = TypeConfig::oneshot();
    let error = bench
        .log
        .append(vec![entry(1, 7)], IOFlushed::signal(sender))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("full"));
    assert!(after.await.unwrap().is_err());
    assert!(bench.log.save_committed(id(1, 2)).await.is_err());
    assert!(bench.log.save_vote(&Vote::new(2, 2)).await.is_err());
    assert!(bench.log.truncate_after(None).await.is_err());
    assert!(bench.log.purge(log_id(1, 1)).await.is_err());

    let mut bench = Bench::over(bench.engine);
    assert_eq!(bench.indexes().await, [(1, 0), (1, 1), (1, 2)]);
    let flushed = bench.append(2, 3..4).await;
    bench.run_disk();
    flushed.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_failed_sync_acknowledges_nothing() {
    let mut bench = Bench::new();
    let flushed = bench.append(1, 0..3).await;
    bench.engine.fail_next_sync();
    bench.run_disk();
    assert!(flushed.await.unwrap().is_err());
    let mut bench = bench.crash(0);
    assert_eq!(bench.indexes().await, []);
}

fn entry_key(index: u64) -> Vec<u8> {
    [REGION.0.to_be_bytes(), index.to_be_bytes()].concat()
}

#[tokio::test]
async fn what_is_missing_or_damaged_is_named_and_never_skipped() {
    let damaged = async |inflict: &dyn Fn(&mut WriteBatch)| {
        let mut bench = Bench::new();
        let flushed = bench.append(1, 0..5).await;
        bench.run_disk();
        flushed.await.unwrap().unwrap();
        bench.log.purge(log_id(1, 0)).await.unwrap();
        bench.run_disk();
        let mut damage = WriteBatch::new();
        inflict(&mut damage);
        bench.engine.write(&damage).unwrap();
        let (committer, _driver) = Committer::manual(bench.engine.clone(), Box::new(|_| ()));
        match RaftLogStore::open(bench.engine.clone(), committer, REGION) {
            Ok(mut log) => log
                .try_get_log_entries(..)
                .await
                .map(|_| ())
                .map_err(|error| error.to_string()),
            Err(error @ EngineError::Corruption { .. }) => Err(error.to_string()),
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(damaged(&|_| ()).await, Ok(()));
    let says = |result: Result<(), String>, words: &[&str]| {
        let message = result.unwrap_err();
        for word in words {
            assert!(message.contains(word), "{message}");
        }
    };
    says(
        damaged(&|batch| batch.delete(Family::RaftLog, entry_key(2))).await,
        &["entry 2", "region 7"],
    );
    says(
        damaged(&|batch| batch.delete(Family::RaftLog, entry_key(1))).await,
        &["region 7", "2"],
    );
    says(
        damaged(&|batch| batch.put(Family::RaftLog, entry_key(3), "\u{7f}")).await,
        &["entry 3", "region 7"],
    );
    says(
        damaged(&|batch| batch.put(Family::RaftLog, entry_key(4), "\u{7f}")).await,
        &["entry 4", "region 7"],
    );
    let other = || wire::entry_to_wire(&entry(1, 9)).encode_to_vec();
    says(
        damaged(&|batch| batch.put(Family::RaftLog, entry_key(3), other())).await,
        &["entry 3", "1.9"],
    );
    let vote = [&REGION.0.to_be_bytes()[..], b"vote"].concat();
    says(
        damaged(&|batch| batch.put(Family::RaftState, vote.clone(), "\u{7f}")).await,
        &["vote", "region 7"],
    );
}

#[tokio::test]
async fn reads_for_a_follower_are_bounded_and_the_cache_is() {
    let mut bench = Bench::new();
    let one = wire::entry_to_wire(&entry(1, 5)).encoded_len();
    let options = LogStoreOptions {
        cache_bytes: 1000,
        read_bytes: 3 * one,
    };
    bench.log = RaftLogStore::open_with(
        bench.engine.clone(),
        bench.committer.clone(),
        REGION,
        options,
    )
    .unwrap();

    // What is not on the disk is held, whatever the bound.
    let flushed = bench.append(1, 0..100).await;
    assert!(bench.log.cached_bytes() > 100 * 100);
    let expected: Vec<_> = (0..100).map(|index| (1, index)).collect();
    assert_eq!(bench.indexes().await, expected);
    bench.run_disk();
    flushed.await.unwrap().unwrap();
    assert!(bench.log.cached_bytes() <= 1000);
    // Partly from the disk now, and the same.
    assert_eq!(bench.indexes().await, expected);

    let mut log = bench.log.clone();
    let mut limited =
        async |start, end| ids(&log.limited_get_log_entries(start, end).await.unwrap());
    assert_eq!(limited(10, 100).await, [(1, 10), (1, 11), (1, 12)]);
    assert_eq!(limited(10, 12).await, [(1, 10), (1, 11)]);
    // From the last ones on the disk into the cached ones, and within those.
    for start in 85..98 {
        assert_eq!(
            limited(start, 100).await,
            [(1, start), (1, start + 1), (1, start + 2)]
        );
    }
    assert_eq!(limited(99, 100).await, [(1, 99)]);

    use futures::TryStreamExt;
    let stream = log.entries_stream(5..).await;
    let streamed: Vec<Entry> = stream.try_collect().await.unwrap();
    assert_eq!(ids(&streamed), expected[5..]);
}

#[tokio::test]
async fn a_log_is_found_again_after_a_restart() {
    let mut bench = Bench::new();
    bench.save_vote(Vote::new(3, 2)).await;
    drop(bench.append(3, 0..10).await);
    bench.log.save_committed(id(3, 8)).await.unwrap();
    bench.log.purge(log_id(3, 4)).await.unwrap();
    bench.run_disk();
    let before = bench.log.get_log_state().await.unwrap();
    let mut bench = Bench::over(bench.engine);
    assert_eq!(bench.log.get_log_state().await.unwrap(), before);
    assert_eq!(
        (before.last_purged_log_id, before.last_log_id),
        (id(3, 4), id(3, 9))
    );
    assert_eq!(bench.log.read_vote().await.unwrap(), Some(Vote::new(3, 2)));
    assert_eq!(bench.log.read_committed().await.unwrap(), id(3, 8));
    assert_eq!(
        bench.indexes().await,
        (5..10).map(|index| (3, index)).collect::<Vec<_>>()
    );
    let all = bench
        .engine
        .scan(Family::RaftLog, &KeyRange::all(), false)
        .count();
    assert_eq!(all, 5);
}

/// A leader never asks for it, unless a store has lost what it acknowledged.
#[tokio::test]
async fn what_is_committed_is_not_cut_off() {
    let mut bench = Bench::new();
    drop(bench.append(1, 0..6).await);
    bench.log.save_committed(id(1, 3)).await.unwrap();
    bench.log.truncate_after(id(1, 4)).await.unwrap();
    bench.log.truncate_after(id(1, 3)).await.unwrap();
    assert_eq!(bench.log.contradicted(), None);
    let before = bench.indexes().await;
    assert_eq!(before.len(), 4);
    let error = bench.log.truncate_after(id(1, 2)).await.unwrap_err();
    assert!(error.to_string().contains("entry 3"), "{error}");
    let why = bench.log.contradicted().unwrap();
    assert!(why.contains("region 7 has stopped"), "{why}");
    assert_eq!(bench.indexes().await, before);
    assert!(bench.log.truncate_after(None).await.is_err());
    // After a restart, too.
    bench.run_disk();
    let mut bench = Bench::over(bench.engine);
    assert!(bench.log.truncate_after(id(1, 2)).await.is_err());
}

/// What openraft does not look at: it takes an entry up to the committed one for the one that it has.
#[tokio::test]
async fn a_leader_whose_log_contradicts_what_is_committed_is_noticed() {
    let cases = [
        // Term of the leader, term and index of what it sends, whether that can be.
        (3, (2, 4), true, "the committed entry"),
        (3, (2, 3), true, "one before it"),
        (3, (3, 5), true, "one that is not committed here"),
        (
            3,
            (3, 4),
            false,
            "another one in the place of the committed one",
        ),
        (3, (1, 4), false, "an older one in that place"),
        (3, (3, 3), false, "one of a later term before it"),
        (1, (1, 4), true, "the leader was deposed long ago"),
    ];
    for (leader, (term, index), agrees, what) in cases {
        let mut bench = Bench::new();
        bench.save_vote(Vote::new(2, 1)).await;
        drop(bench.append(2, 0..6).await);
        bench.log.save_committed(id(2, 4)).await.unwrap();
        let sent = Some(wire::log_id_to_wire(&log_id(term, index)));
        let vote = Some(wire::vote_to_wire(&Vote::new_committed(leader, 3)));
        let as_prev = rdb_proto::raft::AppendRequest {
            vote,
            prev: sent,
            ..Default::default()
        };
        let entry = rdb_proto::raft::Entry {
            log_id: sent,
            ..Default::default()
        };
        let as_entry = rdb_proto::raft::AppendRequest {
            vote,
            entries: vec![entry],
            ..Default::default()
        };
        assert_eq!(bench.log.contradicted(), None);
        assert_eq!(bench.log.agrees(&as_prev), agrees, "{what}");
        assert_eq!(bench.log.contradicted().is_none(), agrees, "{what}");
        assert_eq!(bench.log.agrees(&as_entry), agrees, "{what}");
    }
}

#[tokio::test]
async fn an_append_that_waits_is_answered_when_the_store_shuts_down() {
    let mut bench = Bench::new();
    let flushed = bench.append(1, 0..3).await;
    bench.committer.shutdown();
    bench.run_disk();
    flushed.await.unwrap().unwrap();
    let after = bench.append(1, 3..4).await;
    assert!(
        after
            .await
            .unwrap()
            .unwrap_err()
            .to_string()
            .contains("shutting down")
    );
    assert!(bench.log.blocking_append([entry(1, 4)]).await.is_err());
}
