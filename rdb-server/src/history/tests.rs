//! Watches over histories of one namespace: what is told once, what again, and what is not held any more.

use super::change::{At, Change, Kind, Own, Time};
use super::place::{LogPlace, Lost, Place};
use super::ring::{Cursor, Ended, Head, Keys, Ring};
use super::{HISTORY_BYTES, History};
use crate::region::state::{Fence, NamespaceState};
use bytes::Bytes;
use proptest::prelude::*;
use rdb_types::{
    Dot, Epoch, Mode, NamespaceId, Record, RegionId, SessionToken, Stamp, StoreId, VersionVector,
    WatchToken,
};
use std::collections::BTreeMap;

const NAMESPACE: NamespaceId = NamespaceId(5);
const REGION: RegionId = RegionId(2);
const STRONG: Time = Time {
    since: Epoch(0),
    eventual: false,
};
const EVENTUAL: Time = Time {
    since: Epoch(0),
    eventual: true,
};

fn all() -> Keys {
    Keys::Prefix(Bytes::new())
}

fn store(id: u64) -> StoreId {
    StoreId::new(id).unwrap()
}

fn vector(parts: &[(u64, u64)]) -> VersionVector {
    parts.iter().map(|(id, at)| (store(*id), *at)).collect()
}

/// The change at this place in the log; its version is its revision.
fn logged(kind: Kind, index: u64, nth: u32, revision: u64) -> Change {
    let record = Record {
        stamp: Stamp(revision),
        epoch: Epoch(1),
        value: Bytes::from_static(b"v"),
        ..Record::default()
    };
    Change {
        revision,
        ..Change::new(kind, b"k", &record, Epoch(0), At::Log { index, nth })
    }
}

fn own(key: &str, origin: u64, sequence: u64, stamp: u64) -> Change {
    let record = Record {
        stamp: Stamp(stamp),
        origin_sequence: sequence,
        epoch: Epoch(2),
        ..Record::default()
    };
    let dot = Some(Dot {
        origin: store(origin),
        sequence,
    });
    let at = At::Own { dot, buried_ms: 0 };
    Change::new(Kind::Put, key.as_bytes(), &record, Epoch(0), at)
}

fn head(next_index: u64, revision: u64) -> Head {
    Head {
        next_index,
        revision,
    }
}

fn told(ring: &Ring, cursor: &mut Cursor, head: Head) -> Result<Vec<u64>, Ended> {
    let mut told = Vec::new();
    loop {
        let piece = ring.look(cursor, &all(), head)?;
        told.extend(piece.changes.iter().map(|change| change.version));
        if !piece.more {
            return Ok(told);
        }
    }
}

fn strong(changes: impl IntoIterator<Item = Change>) -> Ring {
    let mut ring = Ring::new(STRONG, Epoch(1), Own::default(), None);
    changes.into_iter().for_each(|change| ring.push(change));
    ring
}

#[test]
fn a_revision_is_followed_by_what_expired_behind_it() {
    let ring = strong([
        logged(Kind::Put, 3, 0, 1),
        logged(Kind::Put, 3, 1, 2),
        logged(Kind::Expire, 4, 0, 2),
        logged(Kind::Put, 5, 0, 3),
    ]);
    let head = head(6, 3);
    for (after, wanted) in [(0, &[1, 2, 2, 3][..]), (2, &[2, 3]), (3, &[])] {
        let mut cursor = ring
            .watch_from(Place::after(STRONG, Epoch(1), after))
            .unwrap();
        assert_eq!(told(&ring, &mut cursor, head).unwrap(), wanted, "{after}");
        assert_eq!(cursor.place.log, LogPlace::Next(6, 0));
    }
}

#[test]
fn what_was_let_go_is_compacted_and_a_reader_that_stood_there_overrun() {
    let mut ring = strong((1..=4).map(|at| logged(Kind::Put, at, 0, at)));
    let mut slow = ring.watch_from(Place::after(STRONG, Epoch(1), 0)).unwrap();
    assert!(ring.forget_one() && ring.forget_one());
    assert_eq!(told(&ring, &mut slow, head(5, 4)), Err(Ended::Overrun));
    let from = |after| ring.watch_from(Place::after(STRONG, Epoch(1), after));
    assert!(from(1).is_none());
    assert_eq!(
        told(&ring, &mut from(2).unwrap(), head(5, 4)).unwrap(),
        [3, 4]
    );
    let oldest = ring.oldest(head(5, 4));
    assert_eq!((oldest.revision, oldest.log), (2, LogPlace::Next(2, 1)));
    assert!(ring.watch_from(oldest).is_some());
}

#[test]
fn a_watch_begins_at_what_is_next_and_ends_with_the_mode_after_all_that_came_before() {
    let mut ring = strong([logged(Kind::Put, 1, 0, 1)]);
    let mut cursor = ring.watch_from_now(head(2, 1));
    assert!(told(&ring, &mut cursor, head(2, 1)).unwrap().is_empty());
    ring.push(logged(Kind::Put, 2, 0, 2));
    ring.is_in(EVENTUAL, Epoch(2), 2, Own::default);
    ring.push(own("k", 1, 1, 3));
    let piece = ring.look(&mut cursor, &all(), head(4, 2)).unwrap();
    assert_eq!((piece.changes.len(), piece.more), (1, true));
    let ended = ring.look(&mut cursor, &all(), head(4, 2)).unwrap_err();
    let (time, epoch) = (EVENTUAL, Epoch(2));
    assert_eq!(ended, Ended::Turned { time, epoch });
    // From there it goes on without a gap.
    let mut on = ring.watch_from(cursor.place).unwrap();
    assert_eq!(told(&ring, &mut on, head(4, 2)).unwrap(), [3]);
}

/// Regression: a watch from a revision before a switch there and back began in the present time, and told nothing of
/// what lay in between.
#[test]
fn a_revision_of_before_a_switch_is_followed_by_all_that_came_since() {
    const AGAIN: Time = Time {
        since: Epoch(3),
        eventual: false,
    };
    let mut ring = strong([logged(Kind::Put, 1, 0, 1), logged(Kind::Put, 2, 0, 2)]);
    ring.is_in(EVENTUAL, Epoch(2), 2, Own::default);
    ring.push(own("k", 1, 1, 3));
    // Other namespaces of the region are written to meanwhile.
    ring.is_in(AGAIN, Epoch(4), 6, Own::default);
    let mut later = logged(Kind::Put, 9, 0, 7);
    (later.epoch, later.since) = (Epoch(4), AGAIN.since);
    ring.push(later);
    let from = |ring: &Ring, revision| {
        let mut cursor = ring.watch_from(ring.behind(revision)?)?;
        Some(told(ring, &mut cursor, head(10, 7)).unwrap())
    };
    assert_eq!(from(&ring, 0).unwrap(), [1, 2, 3, 7]);
    assert_eq!(from(&ring, 1).unwrap(), [2, 3, 7]);
    assert_eq!(from(&ring, 2).unwrap(), [3, 7]);
    assert_eq!(from(&ring, 6).unwrap(), [7]);
    assert_eq!(from(&ring, 7).unwrap(), [0; 0]);
    // What its token says goes on there, too.
    let place = ring.behind(1).unwrap();
    assert_eq!((place.time, place.epoch), (STRONG, Epoch(1)));
    // What is not held any more is not passed over.
    ring.forget_one();
    ring.forget_one();
    assert_eq!(from(&ring, 1), None);
    assert_eq!(from(&ring, 2).unwrap(), [3, 7]);
}

#[test]
fn a_snapshot_ends_watches_and_only_what_comes_behind_it_is_held() {
    let mut ring = strong([logged(Kind::Put, 1, 0, 1)]);
    let mut cursor = ring.watch_from_now(head(2, 1));
    let before = cursor.place.clone();
    let lost = Lost {
        time: STRONG,
        next: (9, 0),
        revision: 8,
        own: Own::default(),
    };
    ring.replace(STRONG, Epoch(1), Own::default(), lost);
    assert_eq!(told(&ring, &mut cursor, head(9, 8)), Err(Ended::Replaced));
    assert!(ring.watch_from(before).is_none());
    assert!(ring.watch_from(Place::after(STRONG, Epoch(1), 8)).is_some());
}

#[test]
fn an_eventual_watch_is_not_told_older_than_what_it_was_told_of_a_key() {
    let mut ring = Ring::new(EVENTUAL, Epoch(2), Own::default(), None);
    for change in [own("k", 1, 1, 1), own("k", 2, 1, 2), own("other", 1, 2, 3)] {
        ring.push(change);
    }
    let seen = |vector| Place {
        vector,
        ..Place::after(EVENTUAL, Epoch(2), 0)
    };
    // It was told of the second, which came elsewhere before the first.
    let mut cursor = ring.watch_from(seen(vector(&[(2, 1)]))).unwrap();
    assert_eq!(told(&ring, &mut cursor, head(0, 0)).unwrap(), [3]);
    // What only comes here now is told, although it was elsewhere.
    let mut cursor = ring.watch_from(seen(vector(&[(1, 2), (2, 2)]))).unwrap();
    ring.push(own("k", 2, 2, 9));
    assert_eq!(told(&ring, &mut cursor, head(0, 0)).unwrap(), [9]);
}

#[test]
fn expiries_of_an_eventual_time_are_told_unless_they_were() {
    let mut ring = Ring::new(EVENTUAL, Epoch(2), Own::default(), None);
    let mut expiry = own("k", 1, 1, 7);
    expiry.kind = Kind::Expire;
    if let At::Own { buried_ms, .. } = &mut expiry.at {
        *buried_ms = 100;
    }
    ring.push(expiry);
    let seen = |sequence, told| Place {
        vector: vector(&[(1, sequence)]),
        expired_through_ms: told,
        ..Place::after(EVENTUAL, Epoch(2), 0)
    };
    for (place, wanted) in [
        (seen(1, Some(100)), &[][..]),
        (seen(1, Some(99)), &[7]),
        (seen(1, None), &[7]),
        (seen(0, Some(200)), &[7]),
    ] {
        let mut cursor = ring.watch_from(place.clone()).unwrap();
        assert_eq!(
            told(&ring, &mut cursor, head(0, 0)).unwrap(),
            wanted,
            "{place:?}"
        );
    }
    assert!(ring.forget_one());
    assert!(ring.watch_from(seen(1, Some(99))).is_none());
    assert!(ring.watch_from(seen(1, Some(100))).is_some());
    assert!(ring.watch_from(seen(0, Some(100))).is_none());
}

#[test]
fn a_session_token_says_in_which_time_it_was() {
    let fence = |epoch| Fence {
        epoch: Epoch(epoch),
        vector: VersionVector::new(),
    };
    let state = NamespaceState {
        epoch: Epoch(9),
        fences: vec![fence(4), fence(8)],
        ..NamespaceState::new(Mode::Eventual)
    };
    let time = |token: &SessionToken, state: &NamespaceState| {
        let time = Place::of_session(token, state).unwrap().time;
        (time.since.0, time.eventual)
    };
    let token = |epoch| SessionToken::new(REGION, NAMESPACE, Epoch(epoch));
    for (epoch, wanted) in [
        (1, (0, false)),
        (2, (0, true)),
        (4, (4, false)),
        (5, (4, true)),
        (8, (8, false)),
        (9, (8, true)),
    ] {
        assert_eq!(time(&token(epoch), &state), wanted, "{epoch}");
    }
    let eventual = NamespaceState::new(Mode::Eventual);
    assert_eq!(time(&token(1), &eventual), (0, true));
    let forgotten = NamespaceState {
        fences: (11..19).map(fence).collect(),
        epoch: Epoch(18),
        ..NamespaceState::new(Mode::Strong)
    };
    assert!(Place::of_session(&token(5), &forgotten).is_none());
}

#[test]
fn memory_is_bounded_whatever_is_written() {
    let history = History::default();
    history.bound(10);
    let state = NamespaceState::new(Mode::Strong);
    let states = |from| [(NamespaceId(from), &state), (NamespaceId(from + 1), &state)];
    let big = |index| {
        let record = Record {
            value: vec![0; 4 << 20].into(),
            ..Record::default()
        };
        let at = At::Log { index, nth: 0 };
        Change::new(Kind::Put, b"k", &record, Epoch(0), at)
    };
    for index in 1..40 {
        let changes = [7, 8].map(|namespace| (NamespaceId(namespace), big(index)));
        history.applied(
            head(index + 1, index),
            states(7).into_iter(),
            changes.into(),
        );
        assert!(history.bytes() <= HISTORY_BYTES);
    }
    for index in 40..100 {
        let small = (NamespaceId(9), logged(Kind::Put, index, 0, index));
        history.applied(head(index + 1, index), states(9).into_iter(), vec![small]);
    }
    assert_eq!(history.oldest(NamespaceId(9)).unwrap().revision, 89);
}

/// A replica that began to keep a history at an entry and keeps this many changes.
fn replica(changes: &[Change], began: u64, most: usize, upto: u64) -> (Ring, Head) {
    let before = changes.iter().filter(|change| entry(change) < began);
    let lost = Lost {
        time: STRONG,
        next: (began, 0),
        revision: before.map(|change| change.revision).max().unwrap_or(0),
        own: Own::default(),
    };
    let mut ring = Ring::new(STRONG, Epoch(1), Own::default(), Some(lost));
    let mut revision = 0;
    for change in changes.iter().filter(|change| entry(change) < upto) {
        revision = revision.max(change.revision);
        if entry(change) >= began {
            ring.push(change.clone());
        }
    }
    while ring.count() > most && ring.forget_one() {}
    (ring, head(upto, revision))
}

fn entry(change: &Change) -> u64 {
    match change.at {
        At::Log { index, .. } => index,
        At::Own { .. } => 0,
    }
}

proptest! {
    /// However a strong watch goes from store to store, it is told every change once, or that one is gone.
    #[test]
    fn a_strong_watch_is_told_every_change_once(
        entries in prop::collection::vec(0u32..4, 1..12),
        stores in prop::collection::vec((0u64..12, 1usize..30, 0u64..14, 0usize..4), 1..6),
    ) {
        let mut changes = Vec::new();
        for (index, count) in (1u64..).zip(&entries) {
            for nth in 0..*count {
                let revision = changes.len() as u64 + 1;
                changes.push(logged(Kind::Put, index, nth, revision));
            }
        }
        let end = entries.len() as u64 + 1;
        let (mut place, mut seen) = (Place::after(STRONG, Epoch(1), 0), Vec::new());
        for (began, most, upto, pieces) in stores.into_iter().chain([(0, 99, end, 99)]) {
            let (ring, head) = replica(&changes, began, most, upto.min(end));
            // A store that is behind makes the watch wait.
            if head.revision < place.revision {
                continue;
            }
            let Some(mut cursor) = ring.watch_from(place.clone()) else { continue };
            for _ in 0..=pieces {
                let piece = ring.look(&mut cursor, &all(), head).unwrap();
                seen.extend(piece.changes.iter().map(|change| change.version));
            }
            // It travels.
            let token = WatchToken(vec![cursor.place.token(REGION, NAMESPACE)]).encode();
            let token = WatchToken::decode(&token).unwrap();
            let state = NamespaceState::new(Mode::Strong);
            place = Place::of_watch(token.place(REGION).unwrap(), &state).unwrap();
            prop_assert_eq!(place.log, cursor.place.log);
        }
        let wanted: Vec<u64> = (1..=changes.len() as u64).collect();
        prop_assert_eq!(seen, wanted);
    }

    /// However an eventual watch goes from replica to replica, what it was told last of each key is what
    /// is there in the end, once the last replica has it all.
    #[test]
    fn an_eventual_watch_ends_with_what_is_there(
        writes in prop::collection::vec((1u64..4, 0u8..3), 1..14),
        stores in prop::collection::vec(prop::collection::vec(1u64..4, 0..14), 1..5),
    ) {
        let mut logs: BTreeMap<u64, Vec<Change>> = BTreeMap::new();
        for (stamp, (origin, key)) in (1u64..).zip(writes) {
            let log = logs.entry(origin).or_default();
            let key = format!("k{key}");
            log.push(own(&key, origin, log.len() as u64 + 1, stamp));
        }
        let everything: Vec<u64> = (1..4).flat_map(|origin| vec![origin; 14]).collect();
        let mut place = Place::after(EVENTUAL, Epoch(2), 0);
        let mut seen: BTreeMap<Bytes, u64> = BTreeMap::new();
        let mut there: BTreeMap<Bytes, u64> = BTreeMap::new();
        for order in stores.into_iter().chain([everything]) {
            let mut ring = Ring::new(EVENTUAL, Epoch(2), Own::default(), None);
            let mut applied = VersionVector::new();
            there.clear();
            let mut cursor = None;
            for (at, origin) in order.iter().enumerate() {
                // Some of it is there before the watch comes, some comes later.
                if at == order.len() / 2 {
                    cursor = ring.watch_from(place.clone());
                }
                let log = logs.get(origin).map_or(&[][..], |log| log);
                let next = applied.get(store(*origin));
                let Some(change) = log.get(next as usize) else { continue };
                applied.raise(store(*origin), next + 1);
                let standing = there.get(&change.key).copied().unwrap_or(0);
                let wins = change.version > standing;
                if wins {
                    there.insert(change.key.clone(), change.version);
                    ring.push(change.clone());
                }
                let own = Own { vector: applied.clone(), expired_through_ms: 0 };
                ring.mark(own, Epoch(2), wins);
            }
            let Some(mut cursor) = cursor.or_else(|| ring.watch_from(place.clone())) else {
                return Err(TestCaseError::fail("nothing was let go"));
            };
            loop {
                let piece = ring.look(&mut cursor, &all(), head(0, 0)).unwrap();
                for change in &piece.changes {
                    seen.insert(change.key.clone(), change.version);
                }
                if !piece.more {
                    break;
                }
            }
            place = cursor.place;
        }
        prop_assert_eq!(seen, there);
    }
}
