//! A namespace goes from one owner to the other and back; what it holds stays where it is.

use super::*;
use crate::eventual::state::load_ids;
use crate::eventual::{Fold, conflicts};
use rdb_proto::raft::{AbortSeal, BeginSeal, Seal, SetEventual, SwitchStep, switch_step::Step};
use rdb_storage::KeyRange;
use rdb_types::{Epoch, Mode, VersionVector};

const ONE: NamespaceId = NamespaceId(1);

/// A replica of a region with one namespace: its log's side, and its own writer's.
struct Replica {
    region: Region,
    attempt: u64,
}

impl Replica {
    fn strong() -> Replica {
        let mut region = Region::new();
        let node = |id: u64| (id, crate::raft::StoreNode::default());
        let members = crate::raft::Membership::new(
            vec![[1, 2, 3].into()],
            [1, 2, 3].map(node).into_iter().collect::<BTreeMap<_, _>>(),
        );
        let members = members.unwrap();
        region.state.membership =
            crate::raft::StoredMembership::new(Some(crate::raft::log_id(1, 1)), members);
        Replica { region, attempt: 0 }
    }

    fn namespace(&self) -> &NamespaceState {
        &self.region.state.namespaces[&ONE]
    }

    fn own(&self) -> EventualState {
        EventualState::load(rdb_types::RegionId(2), ONE, &self.region.engine).unwrap()
    }

    fn step(&mut self, step: Step) {
        self.attempt += 1;
        let step = SwitchStep {
            namespace_id: 1,
            attempt: self.attempt,
            expected_epoch: self.namespace().epoch.0,
            step: Some(step),
        };
        let answer = self.region.run(command::Kind::SwitchStep(step));
        assert_eq!(answer, done());
    }

    fn open(&mut self) {
        self.step(Step::SetEventual(SetEventual {}));
    }

    fn begin(&mut self) {
        self.step(Step::BeginSeal(BeginSeal::default()));
    }

    /// Seals just what is here.
    fn seal(&mut self, cut_ms: u64) {
        let own = self.own();
        self.step(Step::Seal(Seal {
            fence: convert::vector_to_wire(&own.vector),
            digest: own.digest.to_bytes().to_vec().into(),
            expiry_cut_ms: cut_ms,
            last_stamp: own.last_stamp.0,
            participants: vec![1, 2, 3],
        }));
    }

    /// Runs the replica's own writer.
    fn fold(&mut self, work: impl FnOnce(&mut Fold<'_>)) {
        let region = rdb_types::RegionId(2);
        let ids = load_ids(region, &self.region.engine).unwrap();
        let mut fold = Fold::new(StoreId::new(1).unwrap(), region, &self.region.engine, ids);
        fold.knowing(self.region.state.ids);
        let own = self.own();
        fold.with(ONE, || own);
        work(&mut fold);
        let folded = fold.finish();
        self.region.engine.write(&folded.batch).unwrap();
    }

    fn write_here(&mut self, at_ms: u64, op: WriteOp) -> Applied {
        let epoch = self.namespace().epoch;
        let mut applied = None;
        self.fold(|fold| {
            let accepted = fold.accept(&op, epoch, stamp(at_ms), false, RETENTION_MS);
            applied = Some(accepted.unwrap().unwrap());
        });
        applied.unwrap()
    }

    fn in_epoch(&self, op: WriteOp) -> WriteOp {
        WriteOp {
            epoch: self.namespace().epoch.0,
            ..op
        }
    }

    fn write(&mut self, at_ms: u64, op: WriteOp) -> Applied {
        let op = self.in_epoch(op);
        self.region.write(at_ms, op).unwrap()
    }

    fn value(&self, key: &[u8]) -> Option<Bytes> {
        let record = self.region.get(key)?;
        (!record.tombstone).then_some(record.value)
    }

    /// Live records, counted afresh.
    fn recount(&self) -> (u64, Digest) {
        let (mut keys, mut digest) = (0, Digest::default());
        let range = KeyRange {
            start: GlobalKey::namespace_start(ONE),
            end: None,
        };
        for item in self.region.engine.scan(Family::Data, &range, false) {
            let (key, value) = item.unwrap();
            let record = Record::decode(value).unwrap();
            if self.namespace().counts(&record) {
                keys += 1;
                digest.add(&GlobalKey::from_bytes(key).unwrap().user_key(), &record);
            }
        }
        (keys, digest)
    }

    fn rows(&self, family: Family) -> usize {
        self.region
            .engine
            .scan(family, &KeyRange::all(), false)
            .count()
    }
}

use rdb_types::Digest;

#[test]
fn what_a_namespace_holds_goes_along_both_ways() {
    let mut replica = Replica::strong();
    replica.write(1, put(b"a", b"1"));
    let strong = replica.write(2, put(b"b", b"1"));
    replica.open();
    assert_eq!(replica.namespace().mode, Mode::Eventual);
    let own = replica.own();
    assert_eq!((own.keys, own.digest), (2, replica.namespace().digest));
    assert!(
        own.last_stamp.0 >= strong.version,
        "a write that comes is beyond all that was"
    );
    replica.write_here(10, put(b"b", b"2"));
    replica.write_here(11, put(b"c", b"2"));
    replica.write_here(12, op(Kind::Delete, b"a", b""));
    assert!(replica.rows(Family::OriginLog) == 3 && replica.rows(Family::Expiry) == 1);
    replica.begin();
    replica.seal(0);
    assert_eq!(replica.namespace().mode, Mode::Strong);
    assert_eq!(replica.rows(Family::OriginLog), 0);
    let state = replica.namespace();
    assert_eq!((state.keys, state.digest), replica.recount());
    assert_eq!(state.keys, 2);
    assert_eq!(replica.value(b"b").as_deref(), Some(&b"2"[..]));
    // What was deleted is absent to whoever writes, whether or not the tombstone still stands there.
    let created = replica.write(13, op(Kind::CasPut, b"a", b"3"));
    assert!(created.swapped && !created.existed);
    let state = replica.namespace();
    assert_eq!((state.keys, state.digest), replica.recount());
    assert!(replica.region.state.last_stamp > stamp(12));
    // The second eventual time goes on with the numbers of the first.
    replica.open();
    replica.write_here(20, put(b"d", b"4"));
    let one = StoreId::new(1).unwrap();
    assert_eq!(replica.own().vector.get(one), 4);
    assert_eq!(replica.own().last_seal, replica.namespace().last_seal());
}

#[test]
fn what_is_dead_is_swept_and_never_seen() {
    let mut replica = Replica::strong();
    replica.open();
    for key in 0..300u32 {
        replica.write_here(1 + u64::from(key), put(&key.to_be_bytes(), b"v"));
    }
    for key in 0..300u32 {
        replica.write_here(
            400 + u64::from(key),
            op(Kind::Delete, &key.to_be_bytes(), b""),
        );
    }
    replica.begin();
    replica.seal(0);
    assert_eq!(replica.namespace().keys, 0);
    assert_eq!(replica.recount(), (0, Digest::default()));
    replica.write(1000, put(&7u32.to_be_bytes(), b"new"));
    replica.write(1001, put(b"x", b"y"));
    replica.write(1002, put(b"x", b"z"));
    assert_eq!(replica.rows(Family::Expiry), 0, "a few batches are enough");
    assert_eq!(replica.rows(Family::Data), 2);
    assert!(!replica.region.state.unswept.contains(&ONE));
    assert_eq!(
        replica.value(&7u32.to_be_bytes()).as_deref(),
        Some(&b"new"[..])
    );
    let state = replica.namespace();
    assert_eq!((state.keys, state.digest), replica.recount());
}

#[test]
fn what_expires_keeps_its_time_in_either_mode() {
    let mut replica = Replica::strong();
    let ttl = |key: &[u8], ttl_ms| WriteOp {
        ttl_ms,
        ..put(key, b"v")
    };
    replica.write(0, ttl(b"strong", 1000));
    replica.open();
    replica.write_here(1, ttl(b"eventual", 2000));
    // The record of the log expires in the eventual time, where nobody numbered it.
    replica.fold(|fold| {
        assert!(fold.expire(ONE, T0 + 1500).unwrap());
    });
    assert_eq!(replica.own().keys, 1);
    replica.begin();
    replica.seal(replica.own().expired_through_ms);
    let state = replica.namespace();
    assert_eq!((state.keys, state.digest), replica.recount());
    assert_eq!(replica.value(b"strong"), None);
    assert!(replica.value(b"eventual").is_some());
    // The other expires through the log, as if it had never been anywhere else.
    let tick = raft::Tick {
        stamp: stamp(2500).0,
    };
    replica.region.run(command::Kind::Tick(tick));
    assert_eq!(replica.namespace().keys, 0);
    assert_eq!(replica.rows(Family::Expiry), 0);
    assert_eq!(replica.rows(Family::Data), 0, "nothing is left of either");
}

#[test]
fn a_repeat_is_known_across_a_switch() {
    let mut replica = Replica::strong();
    let write = with_id(put(b"k", b"v"), b"id-1");
    let first = replica.write(1, write.clone());
    replica.open();
    let again = replica.write_here(10, write);
    assert!(again.replayed && again.version == first.version);
}

#[test]
fn writes_that_were_set_aside_are_listed_with_what_won() {
    let mut replica = Replica::strong();
    let won = replica.write(5, put(b"k", b"won"));
    let row = |key: &'static [u8], stamp| raft::ConflictRow {
        key: Bytes::from_static(key),
        stamp,
        value: Bytes::from_static(b"lost"),
        ..Default::default()
    };
    // As the store that tells has put them on its own list: it did not know yet what stands in their place.
    let mut own = replica.own();
    let mut batch = rdb_storage::WriteBatch::new();
    let region = rdb_types::RegionId(2);
    for row in [row(b"k", 77), row(b"k", won.version)] {
        let mut changes = conflicts::ConflictChanges::default();
        let view = &replica.region.engine;
        changes
            .add(view, region, ONE, row, &mut own, &mut batch)
            .unwrap();
    }
    own.write_row(region, ONE, &mut batch);
    replica.region.engine.write(&batch).unwrap();
    let told = raft::SetAside {
        namespace_id: 1,
        rows: vec![row(b"k", 77), row(b"gone", 78), row(b"k", won.version)],
        bound_bytes: 0,
    };
    for _ in 0..2 {
        assert_eq!(
            replica.region.run(command::Kind::SetAside(told.clone())),
            done()
        );
    }
    let read = |key: &[u8], stamp| {
        let engine = &replica.region.engine;
        conflicts::read(engine, rdb_types::RegionId(2), ONE, Stamp(stamp), key).unwrap()
    };
    let listed = read(b"k", 77).unwrap();
    assert!(listed.set_aside && listed.winner_stamp == won.version);
    assert_eq!(read(b"gone", 78).unwrap().winner_stamp, 0);
    assert_eq!(read(b"k", won.version), None, "it is what won");
    assert_eq!(replica.own().conflicts, 2);
    let remove = raft::RemoveSetAside {
        namespace_id: 1,
        rows: vec![raft::ConflictPlace {
            stamp: 77,
            key: Bytes::from_static(b"k"),
        }],
    };
    assert_eq!(
        replica.region.run(command::Kind::RemoveSetAside(remove)),
        done()
    );
    assert_eq!(replica.own().conflicts, 1);
}

/// Nothing may come after what is told for long: so the bound is kept by the very batch.
#[test]
fn what_others_tell_of_is_within_the_bound_at_once_and_the_oldest_is_pushed_out() {
    let mut replica = Replica::strong();
    replica.open();
    replica.begin();
    replica.seal(0);
    let row = |stamp: u64| raft::ConflictRow {
        key: Bytes::from(format!("key {stamp:03}")),
        stamp,
        origin: 3,
        sequence: stamp,
        value: Bytes::from(vec![b'v'; 100]),
        ..Default::default()
    };
    let told = |stamps: std::ops::Range<u64>| {
        command::Kind::SetAside(raft::SetAside {
            namespace_id: 1,
            rows: stamps.map(row).collect(),
            bound_bytes: 10_000,
        })
    };
    for stamps in [200..250, 100..200] {
        assert_eq!(replica.region.run(told(stamps)), done());
        let own = replica.own();
        assert!(own.conflict_bytes <= 10_000, "{own:?}");
    }
    let own = replica.own();
    assert_eq!(own.conflicts + own.conflicts_dropped, 150);
    let listed = |stamp: u64| {
        let key = format!("key {stamp:03}");
        let engine = &replica.region.engine;
        let region = rdb_types::RegionId(2);
        conflicts::read(engine, region, ONE, Stamp(stamp), key.as_bytes()).unwrap()
    };
    let first = (100..250).find(|stamp| listed(*stamp).is_some()).unwrap();
    assert_eq!(
        250 - first,
        own.conflicts,
        "the newest are left, whoever came first"
    );
}

/// The first answer was lost with a leader, and the store that took the request asks the next one again, which has
/// made the namespace eventual meanwhile. Found by seed 30395.
#[test]
fn a_write_that_was_applied_is_not_refused_when_its_repeat_comes_after_a_switch() {
    let mut replica = Replica::strong();
    let asked = replica.in_epoch(with_id(put(b"k", b"1"), b"an id"));
    let first = replica.region.write(1, asked.clone()).unwrap();
    replica.open();
    let again = Applied {
        replayed: true,
        ..first
    };
    assert_eq!(replica.region.write(2, asked).unwrap(), again);
    let new = replica
        .region
        .write(3, with_id(put(b"k", b"2"), b"another"));
    assert_eq!(new.unwrap_err().reason, Reason::ModeChanged);
}

#[test]
fn what_was_written_or_removed_since_a_seal_is_known_of_every_key() {
    let mut replica = Replica::strong();
    replica.open();
    let eventual = replica.namespace().epoch;
    for (at_ms, key) in [(1, b"kept"), (2, b"over"), (3, b"gone")] {
        replica.write_here(at_ms, put(key, b"in the eventual time"));
    }
    let touched = |replica: &Replica, key: &[u8]| {
        let standing = replica.region.get(key);
        let state = replica.namespace();
        state.is_touched_since(eventual, standing.as_ref(), &replica.own().floor)
    };
    replica.begin();
    replica.seal(0);
    for key in [&b"kept"[..], b"over", b"gone", b"never there"] {
        assert!(!touched(&replica, key), "{key:?}: nothing happened since");
    }
    // In the next eventual time a tombstone leaves nothing once it is dropped, but the floor.
    replica.open();
    assert!(!touched(&replica, b"never there"));
    let state = replica.namespace();
    let mut dropped = replica.own();
    dropped.vector.raise(StoreId::new(1).unwrap(), 4);
    dropped.raise_floor();
    assert!(state.is_touched_since(eventual, None, &dropped.floor));
    let standing = replica.region.get(b"kept");
    assert!(!state.is_touched_since(eventual, standing.as_ref(), &dropped.floor));

    let mut replica = Replica::strong();
    replica.open();
    for (at_ms, key) in [(1, b"kept"), (2, b"over"), (3, b"gone")] {
        replica.write_here(at_ms, put(key, b"in the eventual time"));
    }
    replica.begin();
    replica.seal(0);
    replica.write(1000, put(b"over", b"after the seal"));
    assert!(touched(&replica, b"over"));
    assert!(!touched(&replica, b"kept") && !touched(&replica, b"never there"));
    replica.write(1001, op(Kind::Delete, b"gone", b""));
    assert!(touched(&replica, b"gone"));
    assert!(!touched(&replica, b"kept"));
    // Nothing stands there, and something was removed since: it may have been this one.
    assert!(touched(&replica, b"never there"));
}

#[test]
fn a_seal_that_is_given_up_leaves_everything_with_the_replica() {
    let mut replica = Replica::strong();
    replica.open();
    replica.write_here(1, put(b"k", b"v"));
    let before = replica.own();
    replica.begin();
    replica.step(Step::AbortSeal(AbortSeal {
        why: "store 3 does not answer".into(),
    }));
    let state = replica.namespace();
    assert_eq!((state.mode, state.epoch), (Mode::Eventual, Epoch(4)));
    assert_eq!(state.last_abort, "store 3 does not answer");
    assert_eq!(replica.own(), before);
    assert_ne!(before.vector, VersionVector::new());
}

/// All rows of one kind or another, but for those that say what the region and its namespaces are.
fn rows(replica: &Replica) -> Vec<(Family, Bytes, Bytes)> {
    let families = Family::ALL.into_iter();
    let whole = KeyRange {
        start: Bytes::new(),
        end: None,
    };
    families
        .filter(|family| *family != Family::Region)
        .flat_map(|family| {
            let rows = replica.region.engine.scan(family, &whole, false);
            rows.map(move |row| {
                let (key, value) = row.unwrap();
                (family, key, value)
            })
        })
        .collect()
}

#[test]
fn a_namespace_that_is_dropped_leaves_nothing_and_takes_nothing_of_another() {
    const OTHER: NamespaceId = NamespaceId(2);
    let mut replica = Replica::strong();
    let install = |namespace: NamespaceId| {
        command::Kind::InstallNamespace(raft::InstallNamespace {
            namespace_id: namespace.0,
            mode: 1,
            first_epoch: 0,
        })
    };
    replica.region.run(install(OTHER));
    let of = |namespace: NamespaceId, op: WriteOp| WriteOp {
        namespace_id: namespace.0,
        ttl_ms: 60_000,
        ..op
    };
    let other = with_id(of(OTHER, put(b"k", b"other's")), b"id-0");
    replica.region.writes(1, vec![other]);
    let before = rows(&replica);

    // Records, what expires, answers, a log, the dead, conflicts.
    let strong = with_id(of(ONE, put(b"k", b"strong")), b"id-1");
    replica.region.writes(2, vec![strong]);
    replica.open();
    let epoch = replica.namespace().epoch.0;
    replica.write_here(3, with_id(of(ONE, put(b"l", b"eventual")), b"id-2"));
    replica.write_here(4, op(Kind::Delete, b"l", b""));
    let mut own = replica.own();
    let mut batch = rdb_storage::WriteBatch::new();
    let row = raft::ConflictRow {
        key: Bytes::from_static(b"k"),
        stamp: 7,
        ..Default::default()
    };
    let region = rdb_types::RegionId(2);
    conflicts::ConflictChanges::default()
        .add(
            &replica.region.engine,
            region,
            ONE,
            row,
            &mut own,
            &mut batch,
        )
        .unwrap();
    own.write_row(region, ONE, &mut batch);
    replica.region.engine.write(&batch).unwrap();
    let families: BTreeSet<_> = rows(&replica).into_iter().map(|row| row.0.name()).collect();
    for family in [
        Family::Data,
        Family::Expiry,
        Family::RequestIds,
        Family::OriginLog,
        Family::Conflicts,
    ] {
        assert!(families.contains(family.name()), "{family} {families:?}");
    }

    let drop = command::Kind::DropNamespace(raft::DropNamespace { namespace_id: 1 });
    for _ in 0..2 {
        assert_eq!(replica.region.run(drop.clone()), done());
        assert_eq!(rows(&replica), before);
    }
    assert_eq!(replica.own(), EventualState::default());
    let state = &replica.region.state;
    assert_eq!(state.dropped, BTreeMap::from([(ONE, Epoch(epoch))]));
    assert!(!state.namespaces.contains_key(&ONE) && state.namespaces.contains_key(&OTHER));
    let loaded = RegionState::load(state.descriptor.clone(), &replica.region.engine).unwrap();
    assert_eq!(
        (loaded.dropped, loaded.namespaces),
        (state.dropped.clone(), state.namespaces.clone())
    );

    // What was delayed does not bring it back.
    let Answer::Error(refused) = replica.region.run(install(ONE)) else {
        panic!("it was installed again")
    };
    assert_eq!(refused.reason, "NAMESPACE_NOT_FOUND");
    let late = replica.region.writes(9, vec![of(ONE, put(b"k", b"late"))]);
    assert_eq!(
        late[0].as_ref().unwrap_err().reason,
        Reason::NamespaceNotFound
    );
    assert_eq!(rows(&replica), before);
}

#[test]
fn a_name_that_was_used_before_begins_with_the_epoch_that_it_is_told() {
    let mut region = Region::new();
    region.run(command::Kind::InstallNamespace(raft::InstallNamespace {
        namespace_id: 5,
        mode: 2,
        first_epoch: 9,
    }));
    assert_eq!(region.state.namespaces[&NamespaceId(5)].epoch, Epoch(9));
}
