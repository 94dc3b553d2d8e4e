//! Apply against a memory engine, and against a plain model.

use super::*;
use proptest::prelude::*;
use rdb_storage::{Engine, KeyRange, MemoryEngine};
use rdb_types::{Digest, Epoch, Mode, StoreId};

const RETENTION_MS: u64 = 60_000;
const T0: u64 = rdb_types::stamp::EPOCH_UNIX_MS + 1_000_000;

struct Region {
    engine: MemoryEngine,
    state: RegionState,
}

impl Region {
    fn new() -> Region {
        let descriptor = raft::RegionDescriptor {
            id: 2,
            start: GlobalKey::namespace_start(NamespaceId::DEFAULT),
            end: Bytes::new(),
            generation: 1,
        };
        let mut region = Region {
            engine: MemoryEngine::new(),
            state: RegionState::empty(descriptor),
        };
        region.run(command::Kind::InstallNamespace(raft::InstallNamespace {
            namespace_id: 1,
            mode: 1,
            first_epoch: 0,
        }));
        region
    }

    fn run(&mut self, kind: command::Kind) -> Answer {
        let mut applier = Applier::new(StoreId::new(1).unwrap(), &mut self.state, &self.engine);
        let outcome = applier
            .command(&raft::Command { kind: Some(kind) })
            .unwrap();
        let (batch, _) = applier.finish().unwrap();
        self.engine.write(&batch).unwrap();
        outcome.outcome.unwrap()
    }

    fn writes(&mut self, at_ms: u64, ops: Vec<WriteOp>) -> Vec<Result<Applied, Error>> {
        let writes = raft::WriteBatch {
            stamp: stamp(at_ms).0,
            request_id_retention_ms: RETENTION_MS,
            ops,
        };
        match self.run(command::Kind::Writes(writes)) {
            Answer::Writes(reply) => reply
                .results
                .into_iter()
                .map(|result| match result.outcome.unwrap() {
                    write_result::Outcome::Applied(applied) => Ok(applied),
                    write_result::Outcome::Error(error) => Err(Error::from_wire(error)),
                })
                .collect(),
            other => panic!("{other:?}"),
        }
    }

    fn write(&mut self, at_ms: u64, op: WriteOp) -> Result<Applied, Error> {
        self.writes(at_ms, vec![op]).remove(0)
    }

    fn get(&self, key: &[u8]) -> Option<Record> {
        let global = GlobalKey::new(NamespaceId::DEFAULT, key);
        let stored = self.engine.get(Family::Data, global.as_bytes()).unwrap()?;
        Some(Record::decode(stored).unwrap())
            .filter(|record| !record.is_expired(self.state.last_stamp))
    }

    /// Counts and digest, computed afresh from the rows.
    fn recount(&self) -> (u64, u64, Digest) {
        let (mut keys, mut bytes, mut digest) = (0, 0, Digest::default());
        let range = KeyRange {
            start: GlobalKey::namespace_start(NamespaceId::DEFAULT),
            end: None,
        };
        for item in self.engine.scan(Family::Data, &range, false) {
            let (key, value) = item.unwrap();
            let user_key = GlobalKey::from_bytes(key).unwrap().user_key();
            let record = Record::decode(value).unwrap();
            keys += 1;
            bytes += record.size_bytes(&user_key);
            digest.add(&user_key, &record);
        }
        (keys, bytes, digest)
    }

    fn expiry_rows(&self) -> usize {
        self.engine
            .scan(Family::Expiry, &KeyRange::all(), false)
            .count()
    }
}

fn stamp(at_ms: u64) -> Stamp {
    Stamp::pack(T0 + at_ms, 0, StoreId::new(1).unwrap())
}

fn op(kind: Kind, key: &[u8], value: &[u8]) -> WriteOp {
    WriteOp {
        namespace_id: 1,
        epoch: 1,
        kind: kind as i32,
        key: Bytes::copy_from_slice(key),
        value: Bytes::copy_from_slice(value),
        ..WriteOp::default()
    }
}

fn put(key: &[u8], value: &[u8]) -> WriteOp {
    op(Kind::Put, key, value)
}

fn with_id(op: WriteOp, id: &[u8]) -> WriteOp {
    WriteOp {
        request_id: Bytes::copy_from_slice(id),
        ..op
    }
}

/// A UUID of version 7, made at the given time.
fn uuid_v7(at_ms: u64, salt: u8) -> Vec<u8> {
    let mut id = vec![salt; 16];
    id[..6].copy_from_slice(&(T0 + at_ms).to_be_bytes()[2..]);
    id[6] = 0x70;
    id[8] = 0x80;
    id
}

#[test]
fn a_write_grows_the_revision_and_keeps_the_create_revision() {
    let mut region = Region::new();
    let first = region.write(0, put(b"k", b"1")).unwrap();
    let second = region.write(1, put(b"k", b"2")).unwrap();
    assert_eq!(
        (first.revision, second.revision, second.existed),
        (1, 2, true)
    );
    assert!(second.version > first.version);
    let record = region.get(b"k").unwrap();
    assert_eq!(
        (record.revision, record.create_revision, &record.value[..]),
        (2, 1, &b"2"[..])
    );
}

#[test]
fn stamps_follow_log_order_even_if_the_new_leaders_clock_is_behind() {
    let mut region = Region::new();
    let ahead = region.write(5000, put(b"k", b"1")).unwrap();
    let behind = region.write(0, put(b"k", b"2")).unwrap();
    assert!(behind.version > ahead.version);
}

#[test]
fn compare_and_swap_takes_the_version_and_answers_what_was_there() {
    let mut region = Region::new();
    let swap = |expected, value: &[u8]| WriteOp {
        expected_version: expected,
        ..op(Kind::CasPut, b"k", value)
    };
    let created = region.write(0, swap(0, b"a")).unwrap();
    assert!(created.swapped);
    let lost = region.write(1, swap(0, b"b")).unwrap();
    assert_eq!((lost.swapped, lost.version), (false, created.version));
    assert!(
        region
            .write(2, swap(created.version, b"c"))
            .unwrap()
            .swapped
    );
    let gone = WriteOp {
        expected_version: region.get(b"k").unwrap().stamp.0,
        ..op(Kind::CasDelete, b"k", b"")
    };
    assert!(region.write(3, gone).unwrap().swapped);
    assert_eq!(region.get(b"k"), None);
}

#[test]
fn entries_of_one_batch_see_each_other() {
    let mut region = Region::new();
    let swap = WriteOp {
        expected_version: 0,
        ..op(Kind::CasPut, b"k", b"x")
    };
    let results = region.writes(
        0,
        vec![
            put(b"k", b"1"),
            swap,
            op(Kind::Delete, b"k", b""),
            op(Kind::Delete, b"k", b""),
        ],
    );
    let results: Vec<_> = results.into_iter().map(Result::unwrap).collect();
    assert!(!results[1].swapped);
    assert_eq!((results[2].existed, results[3].existed), (true, false));
    assert_eq!(region.state.namespaces[&NamespaceId(1)].keys, 0);
}

#[test]
fn a_repeated_request_id_is_answered_once_and_the_same() {
    let mut region = Region::new();
    let swap = with_id(
        WriteOp {
            expected_version: 0,
            ..op(Kind::CasPut, b"k", b"x")
        },
        b"id-1",
    );
    let first = region.write(0, swap.clone()).unwrap();
    let again = region.write(1, swap).unwrap();
    assert_eq!(
        again,
        Applied {
            replayed: true,
            ..first
        }
    );
    // In one batch, too.
    let twice = with_id(put(b"j", b"1"), b"id-2");
    let results = region.writes(2, vec![twice.clone(), twice]);
    assert_eq!(
        results[0].as_ref().unwrap().version,
        results[1].as_ref().unwrap().version
    );
    assert_eq!(region.state.revision, 2);
}

#[test]
fn a_request_id_used_for_something_else_is_refused() {
    let mut region = Region::new();
    region.write(0, with_id(put(b"k", b"1"), b"id")).unwrap();
    let error = region
        .write(1, with_id(put(b"k", b"2"), b"id"))
        .unwrap_err();
    assert_eq!(error.reason, Reason::InvalidArgument);
    assert_eq!(&region.get(b"k").unwrap().value[..], b"1");
}

#[test]
fn an_id_is_remembered_for_its_retention_and_then_refused_if_its_age_shows() {
    let mut region = Region::new();
    let old = with_id(put(b"k", b"1"), &uuid_v7(0, 1));
    region.write(0, old.clone()).unwrap();
    region.write(1, put(b"k", b"2")).unwrap();
    let within = RETENTION_MS - 1;
    assert!(region.write(within, old.clone()).unwrap().replayed);
    // Generations turn over; the first is gone for good after the second turn.
    for turn in 1..=3 {
        region
            .write(turn * (RETENTION_MS + 1), put(b"other", b"x"))
            .unwrap();
    }
    let error = region.write(4 * RETENTION_MS, old).unwrap_err();
    assert_eq!(
        (error.reason, error.is_unknown()),
        (Reason::RequestIdExpired, true)
    );
    assert_eq!(&region.get(b"k").unwrap().value[..], b"2");
    let rows = region
        .engine
        .scan(Family::RequestIds, &KeyRange::all(), false)
        .count();
    assert_eq!(rows, 0);
}

#[test]
fn expiry_is_judged_by_the_regions_time_and_swept_by_a_tick() {
    let mut region = Region::new();
    region
        .write(
            0,
            WriteOp {
                ttl_ms: 100,
                ..put(b"k", b"1")
            },
        )
        .unwrap();
    assert!(region.get(b"k").is_some());
    region.write(100, put(b"other", b"x")).unwrap();
    assert_eq!(
        region.get(b"k"),
        None,
        "hidden as soon as the region's time has come"
    );
    let created = region
        .write(
            101,
            WriteOp {
                expected_version: 0,
                ..op(Kind::CasPut, b"k", b"2")
            },
        )
        .unwrap();
    assert!(created.swapped && !created.existed);
    assert_eq!(region.expiry_rows(), 0);
    region
        .write(
            102,
            WriteOp {
                ttl_ms: 50,
                ..put(b"gone", b"1")
            },
        )
        .unwrap();
    region.run(command::Kind::Tick(raft::Tick {
        stamp: stamp(140).0,
    }));
    assert!(region.get(b"gone").is_some());
    region.run(command::Kind::Tick(raft::Tick {
        stamp: stamp(152).0,
    }));
    assert_eq!((region.get(b"gone"), region.expiry_rows()), (None, 0));
    assert_eq!(region.state.namespaces[&NamespaceId(1)].keys, 2);
}

#[test]
fn a_huge_ttl_does_not_wrap_around() {
    let mut region = Region::new();
    region
        .write(
            0,
            WriteOp {
                ttl_ms: i64::MAX,
                ..put(b"k", b"1")
            },
        )
        .unwrap();
    assert!(region.get(b"k").is_some());
}

#[test]
fn another_epoch_mode_range_or_namespace_is_refused_and_leaves_no_trace() {
    let mut region = Region::new();
    let reason = |result: Result<Applied, Error>| {
        let error = result.unwrap_err();
        assert_eq!(
            error.metadata.get("outcome").map(String::as_str),
            Some("not_applied")
        );
        error.reason
    };
    assert_eq!(
        reason(region.write(
            0,
            WriteOp {
                epoch: 2,
                ..put(b"k", b"1")
            }
        )),
        Reason::ModeChanged
    );
    assert_eq!(
        reason(region.write(
            0,
            WriteOp {
                namespace_id: 9,
                ..put(b"k", b"1")
            }
        )),
        Reason::NotReady
    );
    assert_eq!(
        reason(region.write(
            0,
            WriteOp {
                namespace_id: 0,
                ..put(b"k", b"1")
            }
        )),
        Reason::NotReady
    );
    region
        .state
        .namespaces
        .get_mut(&NamespaceId(1))
        .unwrap()
        .mode = Mode::Eventual;
    assert_eq!(
        reason(region.write(0, put(b"k", b"1"))),
        Reason::ModeChanged
    );
    assert_eq!((region.state.revision, region.recount().0), (0, 0));
}

#[test]
fn a_loaded_state_is_the_one_that_was_written() {
    let mut region = Region::new();
    region
        .write(
            0,
            with_id(
                WriteOp {
                    ttl_ms: 100,
                    ..put(b"k", b"1")
                },
                b"id",
            ),
        )
        .unwrap();
    region.write(1, put(b"j", b"2")).unwrap();
    let loaded = RegionState::load(region.state.descriptor.clone(), &region.engine).unwrap();
    assert_eq!(loaded.namespaces, region.state.namespaces);
    assert_eq!(
        (loaded.last_stamp, loaded.revision, loaded.ids),
        (
            region.state.last_stamp,
            region.state.revision,
            region.state.ids
        )
    );
    assert_eq!(loaded.namespaces[&NamespaceId(1)].epoch, Epoch::FIRST);
}

#[derive(Clone, Debug)]
enum Step {
    Write {
        key: u8,
        kind: u8,
        ttl: bool,
        id: Option<u8>,
        expect_current: bool,
    },
    Tick,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u8..4, 0u8..4, any::<bool>(), prop::option::of(0u8..6), any::<bool>())
            .prop_map(|(key, kind, ttl, id, expect_current)| Step::Write { key, kind, ttl, id, expect_current }),
        1 => Just(Step::Tick),
    ]
}

proptest! {
    /// However entries are cut into batches, rows, answers and digests come out the same; and counts and
    /// digest always equal what the rows say.
    #[test]
    fn batching_changes_nothing_and_digests_tell_the_truth(
        steps in prop::collection::vec(step(), 1..60), cuts in prop::collection::vec(1usize..8, 60),
    ) {
        let commands: Vec<raft::Command> = steps.iter().enumerate().map(|(at, step)| {
            let at_ms = at as u64 * 40;
            let kind = match step {
                Step::Tick => command::Kind::Tick(raft::Tick { stamp: stamp(at_ms).0 }),
                Step::Write { key, kind, ttl, id, expect_current } => {
                    let kinds = [Kind::Put, Kind::Delete, Kind::CasPut, Kind::CasDelete];
                    let mut write = op(kinds[usize::from(*kind)], &[*key], &[at as u8]);
                    write.ttl_ms = if *ttl { 100 } else { 0 };
                    write.expected_version = u64::from(*expect_current);
                    if let Some(id) = id { write.request_id = vec![*id].into(); }
                    command::Kind::Writes(raft::WriteBatch { stamp: stamp(at_ms).0, request_id_retention_ms: 500, ops: vec![write] })
                }
            };
            raft::Command { kind: Some(kind) }
        }).collect();
        let (mut one, mut many) = (Region::new(), Region::new());
        let mut answers = Vec::new();
        for command in &commands {
            let mut applier = Applier::new(StoreId::new(1).unwrap(), &mut one.state, &one.engine);
            answers.push(applier.command(command).unwrap());
            let (batch, _) = applier.finish().unwrap();
            one.engine.write(&batch).unwrap();
            let counted = &one.state.namespaces[&NamespaceId(1)];
            prop_assert_eq!((counted.keys, counted.bytes, counted.digest), one.recount());
        }
        let mut rest = &commands[..];
        let mut batched = Vec::new();
        for cut in cuts.iter().cycle() {
            if rest.is_empty() { break }
            let upto = (*cut).min(rest.len());
            // As the state machine does: a command that starts a batch ends the one before it.
            let end = (1..upto).find(|at| Applier::starts_batch(&rest[*at])).unwrap_or(upto);
            let (now, later) = rest.split_at(end);
            rest = later;
            let mut applier = Applier::new(StoreId::new(1).unwrap(), &mut many.state, &many.engine);
            for command in now { batched.push(applier.command(command).unwrap()); }
            let (batch, _) = applier.finish().unwrap();
            many.engine.write(&batch).unwrap();
        }
        prop_assert_eq!(answers, batched);
        prop_assert_eq!(&one.state.namespaces, &many.state.namespaces);
        prop_assert_eq!(one.recount(), many.recount());
        prop_assert_eq!(one.expiry_rows(), many.expiry_rows());
    }
}

#[path = "apply_switch_tests.rs"]
mod switch;
