//! Replicas that accept, bring each other entries, take copies, expire and forget, in any order: they end
//! with the same data, and it is the data of the newest writes.
//!
//! Every schedule is drawn by proptest; time is a number. What holds here holds for the rules alone; that
//! they are kept under crashes is the simulator's to show.

use super::*;
use crate::region::request_ids::IdTable;
use proptest::prelude::*;
use prost::Message;
use rdb_proto::raft::{OriginEntry, WriteOp, write_op};
use rdb_storage::{Engine, Family, KeyRange, MemoryEngine, View};
use rdb_types::stamp::EPOCH_UNIX_MS;
use rdb_types::{Epoch, GlobalKey, NamespaceId, Record, RegionId, Stamp, StoreId, VersionVector};
use std::collections::{BTreeMap, BTreeSet};
use tokio::time::Instant;

const REGION: RegionId = RegionId(2);
const NAMESPACE: NamespaceId = NamespaceId(5);
const REPLICAS: usize = 3;

fn store(number: usize) -> StoreId {
    StoreId::new(number as u64 + 1).unwrap()
}

#[derive(Clone, Debug)]
enum Step {
    /// A client writes or deletes one of four keys; a time to live of up to two steps.
    Write {
        at: usize,
        key: u8,
        delete: bool,
        ttl: u8,
    },
    /// Up to so many entries of an origin's log go from one replica to another.
    Push {
        from: usize,
        to: usize,
        origin: usize,
        count: u8,
    },
    /// A replica takes over all records of another.
    Copy { from: usize, to: usize },
    /// A replica hears what another holds.
    Report { from: usize, to: usize },
    /// A replica buries what has expired.
    Expire { at: usize },
    /// A replica forgets what it may.
    Forget { at: usize },
    /// A replica's logs are cut, whoever still needs them.
    Shorten { at: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let replica = || 0..REPLICAS;
    prop_oneof![
        6 => (replica(), 0u8..4, any::<bool>(), 0u8..3)
            .prop_map(|(at, key, delete, ttl)| Step::Write { at, key, delete, ttl }),
        8 => (replica(), replica(), replica(), 1u8..4)
            .prop_map(|(from, to, origin, count)| Step::Push { from, to, origin, count }),
        1 => (replica(), replica()).prop_map(|(from, to)| Step::Copy { from, to }),
        5 => (replica(), replica()).prop_map(|(from, to)| Step::Report { from, to }),
        2 => replica().prop_map(|at| Step::Expire { at }),
        3 => replica().prop_map(|at| Step::Forget { at }),
        1 => replica().prop_map(|at| Step::Shorten { at }),
    ]
}

struct Replica {
    me: StoreId,
    engine: MemoryEngine,
    state: EventualState,
    ids: IdTable,
    reports: Reports,
}

impl Replica {
    fn fold<T>(&mut self, run: impl FnOnce(&mut Fold<'_>) -> T) -> T {
        let mut fold = Fold::new(self.me, REGION, &self.engine, self.ids);
        let state = self.state.clone();
        fold.with(NAMESPACE, || state);
        let came = run(&mut fold);
        let folded = fold.finish();
        self.engine.write(&folded.batch).unwrap();
        if let Some(state) = folded.states.get(&NAMESPACE) {
            self.state = state.clone();
        }
        self.ids = folded.ids;
        came
    }

    fn report(&self) -> Report {
        Report {
            epoch: Epoch(1),
            vector: self.state.vector.clone(),
            digest: self.state.digest,
            expired_through_ms: self.state.expired_through_ms,
            partial: !self.state.partial.is_empty(),
            truncated: self.state.truncated.clone(),
        }
    }

    fn records(&self) -> BTreeMap<bytes::Bytes, Record> {
        self.engine
            .scan(Family::Data, &KeyRange::all(), false)
            .map(|item| {
                let (key, record) = item.unwrap();
                let key = GlobalKey::from_bytes(key).unwrap().user_key();
                (key, Record::decode(record).unwrap())
            })
            .collect()
    }

    fn live(&self) -> BTreeMap<bytes::Bytes, Record> {
        let mut records = self.records();
        records.retain(|_, record| self.state.is_live(record));
        records
    }

    fn entries(&self, origin: StoreId, first: u64) -> Vec<(OriginEntry, bytes::Bytes)> {
        let range = layout::entries(REGION, NAMESPACE, origin, first, u64::MAX - 1);
        self.engine
            .scan(Family::OriginLog, &range, false)
            .map(|item| {
                let encoded = item.unwrap().1;
                (OriginEntry::decode(encoded.clone()).unwrap(), encoded)
            })
            .collect()
    }
}

struct World {
    replicas: Vec<Replica>,
    now_ms: u64,
    began: Instant,
    /// Everything that was accepted, by key and stamp.
    accepted: BTreeMap<u8, BTreeMap<Stamp, OriginEntry>>,
}

impl World {
    fn new() -> World {
        let replica = |number| Replica {
            me: store(number),
            engine: MemoryEngine::new(),
            state: EventualState::default(),
            ids: IdTable::default(),
            reports: Reports::default(),
        };
        World {
            replicas: (0..REPLICAS).map(replica).collect(),
            now_ms: EPOCH_UNIX_MS + 1_000_000,
            began: Instant::now(),
            accepted: BTreeMap::new(),
        }
    }

    fn instant(&self) -> Instant {
        let since = self.now_ms - EPOCH_UNIX_MS - 1_000_000;
        self.began + std::time::Duration::from_millis(since)
    }

    fn step(&mut self, step: &Step) {
        // Time passes with every step, so that stamps of different replicas interleave.
        self.now_ms += 100;
        match *step {
            Step::Write {
                at,
                key,
                delete,
                ttl,
            } => self.write(at, key, delete, ttl),
            Step::Push {
                from,
                to,
                origin,
                count,
            } => {
                self.push(from, to, store(origin), usize::from(count));
            }
            Step::Copy { from, to } => self.copy(from, to),
            Step::Report { from, to } => self.tell(from, to),
            Step::Expire { at } => {
                let now_ms = self.now_ms;
                self.replicas[at].fold(|fold| fold.expire(NAMESPACE, now_ms).unwrap());
            }
            Step::Forget { at } => self.forget(at),
            Step::Shorten { at } => self.replicas[at].fold(|fold| fold.shorten(NAMESPACE, 60)),
        }
    }

    fn write(&mut self, at: usize, key: u8, delete: bool, ttl: u8) {
        let replica = &mut self.replicas[at];
        let op = WriteOp {
            namespace_id: NAMESPACE.0,
            epoch: 1,
            kind: if delete {
                write_op::Kind::Delete as i32
            } else {
                write_op::Kind::Put as i32
            },
            key: vec![key].into(),
            value: format!("{}", self.now_ms).into(),
            ttl_ms: i64::from(ttl) * 150,
            ..Default::default()
        };
        let stamp = Stamp::pack(self.now_ms, 0, replica.me);
        let applied =
            replica.fold(|fold| fold.accept(&op, Epoch(1), stamp, false, 60_000).unwrap());
        assert_eq!(applied.unwrap().version, stamp.0);
        let (entry, _) = replica
            .entries(replica.me, replica.state.vector.get(replica.me))
            .remove(0);
        self.accepted.entry(key).or_default().insert(stamp, entry);
    }

    fn push(&mut self, from: usize, to: usize, origin: StoreId, count: usize) {
        let first = self.replicas[to].state.vector.get(origin) + 1;
        let entries = self.replicas[from].entries(origin, first);
        self.replicas[to].fold(|fold| {
            for (entry, encoded) in entries.into_iter().take(count) {
                let merged = fold
                    .merge(NAMESPACE, origin, &entry, encoded, 60_000)
                    .unwrap();
                if merged == Merged::Gap {
                    break;
                }
            }
        });
    }

    fn copy(&mut self, from: usize, to: usize) {
        let of = self.replicas[from].state.vector.clone();
        if from == to {
            return;
        }
        // Own writes that are missing at the other end survive, and what was forgotten here does not come back.
        let records = self.replicas[from].records();
        self.replicas[to].fold(|fold| {
            if fold.merge_copied(NAMESPACE, records, &of).unwrap() {
                fold.copied(NAMESPACE, &of);
            }
        });
    }

    fn tell(&mut self, from: usize, to: usize) {
        if from == to {
            return;
        }
        let (report, at) = (self.replicas[from].report(), self.instant());
        self.replicas[to]
            .reports
            .heard(NAMESPACE, store(from), report, 0, at);
    }

    fn forget(&mut self, at: usize) {
        let others: BTreeSet<StoreId> = (0..REPLICAS)
            .filter(|other| *other != at)
            .map(store)
            .collect();
        let replica = &mut self.replicas[at];
        let own = replica.report();
        let settled = replica.reports.settled(NAMESPACE, &own, 0, &others);
        if let Some(settled) = settled {
            replica.fold(|fold| fold.forget(NAMESPACE, &settled).unwrap());
        }
    }

    /// Everybody hears everything, by log where there is one, else by copy.
    fn heal(&mut self) {
        self.now_ms += 10_000;
        for _ in 0..3 {
            for from in 0..REPLICAS {
                for to in 0..REPLICAS {
                    for origin in 0..REPLICAS {
                        self.push(from, to, store(origin), usize::MAX);
                    }
                    let ahead = &self.replicas[from].state.vector;
                    if self.replicas[to].state.vector.missing(ahead) > 0 {
                        self.copy(from, to);
                    }
                }
            }
        }
        for at in 0..REPLICAS {
            self.step(&Step::Expire { at });
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn replicas_converge_to_the_newest_writes(steps in prop::collection::vec(step(), 1..80)) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
        world.heal();
        let first = &world.replicas[0];
        for replica in &world.replicas {
            prop_assert_eq!(&replica.state.vector, &first.state.vector);
            prop_assert_eq!(replica.state.digest, first.state.digest);
            prop_assert_eq!(replica.live(), first.live());
            prop_assert!(replica.state.partial.is_empty());
            // The counts are those of the data.
            let mut digest = rdb_types::Digest::default();
            let live = replica.live();
            for (key, record) in &live {
                digest.add(key, record);
            }
            prop_assert_eq!(digest, replica.state.digest);
            prop_assert_eq!(live.len() as u64, replica.state.keys);
        }
        for (key, writes) in &world.accepted {
            let (stamp, newest) = writes.last_key_value().unwrap();
            let here = first.live();
            let here = here.get(&[*key][..]).map(|record| record.stamp);
            let dead = newest.deletion || newest.expires_at_ms > 0;
            prop_assert_eq!(here, (!dead).then_some(*stamp));
        }
    }

    /// Reloaded from its rows, a replica is what it was.
    #[test]
    fn the_rows_say_all(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
        for replica in &world.replicas {
            let stored = EventualState::load(REGION, NAMESPACE, &replica.engine).unwrap();
            prop_assert_eq!(&stored, &replica.state);
            let range = layout::conflicts(REGION, NAMESPACE);
            let rows = replica.engine.scan(Family::Conflicts, &range, false).count();
            prop_assert_eq!(rows as u64, replica.state.conflicts);
        }
    }

    /// Where everything is brought before the next write, nothing is concurrent, and nothing conflicts.
    #[test]
    fn writes_in_sequence_never_conflict(writes in prop::collection::vec((0..REPLICAS, 0u8..2, any::<bool>()), 1..20)) {
        let mut world = World::new();
        for (at, key, delete) in writes {
            world.step(&Step::Write { at, key, delete, ttl: 0 });
            for to in 0..REPLICAS {
                for origin in 0..REPLICAS {
                    world.push(at, to, store(origin), usize::MAX);
                }
            }
        }
        for replica in &world.replicas {
            prop_assert_eq!(replica.state.conflicts, 0);
        }
    }

    /// Two sides that write the same key without hearing of each other: of the side that loses exactly its
    /// last write is listed, in whatever order the entries arrive.
    #[test]
    fn the_last_write_of_the_losing_side_is_listed(
        ours in 1u64..5, theirs in 1u64..5, order in prop::collection::vec(any::<bool>(), 12),
    ) {
        let mut world = World::new();
        for _ in 0..ours {
            world.step(&Step::Write { at: 0, key: 1, delete: false, ttl: 0 });
        }
        for _ in 0..theirs {
            world.step(&Step::Write { at: 1, key: 1, delete: false, ttl: 0 });
        }
        for first in order {
            let from = usize::from(first);
            world.push(from, 2, store(from), 1);
        }
        world.heal();
        let lost = *world.accepted[&1].range(..Stamp::pack(u64::MAX, 0, store(0))).rev().nth(theirs as usize).unwrap().0;
        for replica in &world.replicas {
            let range = layout::conflicts(REGION, NAMESPACE);
            let rows: Vec<_> = replica
                .engine
                .scan(Family::Conflicts, &range, false)
                .map(|item| conflicts::decode(REGION, item.unwrap().1).unwrap().stamp)
                .collect();
            prop_assert_eq!(rows, vec![lost.0]);
        }
    }
}

#[test]
fn a_vector_that_was_never_written_is_empty() {
    assert_eq!(EventualState::default().vector, VersionVector::new());
}
