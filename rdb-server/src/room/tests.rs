//! How full a disk is, and what follows from it.

use super::*;

const MIB: u64 = 1 << 20;
const RESERVE: u64 = 256 * MIB;

fn look(judge: &mut RoomJudge, free_mib: u64, held_mib: u64) -> (Level, Act) {
    let space = Space {
        free_bytes: free_mib * MIB,
        total_bytes: 100_000 * MIB,
    };
    judge.look(Some(space), held_mib * MIB, false, RESERVE)
}

#[test]
fn a_disk_fills_and_empties_with_a_step_between_entering_and_leaving() {
    let mut judge = RoomJudge::default();
    for (free, held, level, act) in [
        // What is to be held is held as soon as there is room for it above the reserve.
        (310, 0, Level::Ample, Act::Keep),
        (320, 0, Level::Ample, Act::Hold(64 * MIB)),
        (900, 64, Level::Ample, Act::Keep),
        (192, 64, Level::Ample, Act::Keep),
        (191, 64, Level::Short, Act::Keep),
        (255, 64, Level::Short, Act::Keep),
        (64, 64, Level::Short, Act::Keep),
        (63, 64, Level::Out, Act::Keep),
        // Given up: what it held is room like any other, so the level does not change by it.
        (15, 64, Level::Out, Act::GiveUp),
        (79, 0, Level::Out, Act::Keep),
        (191, 0, Level::Out, Act::Keep),
        (192, 0, Level::Short, Act::Keep),
        (128, 0, Level::Short, Act::Keep),
        (319, 0, Level::Short, Act::Keep),
        (320, 0, Level::Ample, Act::Hold(64 * MIB)),
    ] {
        assert_eq!(
            look(&mut judge, free, held),
            (level, act),
            "{free} free, {held} held"
        );
    }
}

#[test]
fn a_write_that_found_no_room_gets_the_reserve_at_once() {
    let mut judge = RoomJudge::default();
    let space = Space {
        free_bytes: 5_000 * MIB,
        total_bytes: 100_000 * MIB,
    };
    // A quota, say, of which the file system does not tell.
    let found = judge.look(Some(space), 64 * MIB, true, RESERVE);
    assert_eq!(found, (Level::Out, Act::GiveUp));
    let found = judge.look(Some(space), 0, false, RESERVE);
    assert_eq!(found, (Level::Ample, Act::Hold(64 * MIB)));
    // Nobody knows how much room there is.
    assert_eq!(judge.look(None, 0, true, RESERVE), (Level::Out, Act::Keep));
    assert_eq!(
        judge.look(None, 0, false, RESERVE),
        (Level::Ample, Act::Keep)
    );
}

#[test]
fn a_small_file_system_keeps_a_tenth_and_none_keeps_none() {
    assert_eq!(kept_bytes(RESERVE, 1000 * MIB), 100 * MIB);
    assert_eq!(kept_bytes(RESERVE, 100_000 * MIB), RESERVE);
    let mut judge = RoomJudge::default();
    let small = |free_mib| {
        Some(Space {
            free_bytes: free_mib * MIB,
            total_bytes: 100 * MIB,
        })
    };
    assert_eq!(judge.look(small(9), 0, false, RESERVE).0, Level::Short);
    assert_eq!(judge.look(small(0), 0, false, 0), (Level::Ample, Act::Keep));
    assert_eq!(judge.look(small(0), 0, true, 0), (Level::Out, Act::Keep));
    // What another configuration held is given back with the next look that finds room.
    assert_eq!(
        judge.look(small(50), MIB, false, 0),
        (Level::Ample, Act::Hold(0))
    );
}

#[test]
fn a_region_takes_data_while_a_quorum_has_room() {
    use Voter::{Ample, Short, Silent};
    for (voters, takes) in [
        (&[Ample][..], true),
        (&[Short], false),
        (&[Ample, Ample, Short], true),
        (&[Ample, Short, Short], false),
        (&[Short, Short, Short], false),
        // The one that is short would have to take part in everything.
        (&[Ample, Silent, Short], false),
        (&[Ample, Ample, Silent], true),
        // No quorum at all is another matter, and said in other words.
        (&[Short, Silent, Silent], true),
        (&[Ample, Silent, Silent], true),
        (&[Ample, Ample, Ample, Short, Short], true),
        (&[Ample, Ample, Silent, Short, Short], false),
    ] {
        assert_eq!(judge_region(voters), takes, "{voters:?}");
    }
}

fn op(kind: write_op::Kind) -> WriteOp {
    WriteOp {
        kind: kind.into(),
        ..Default::default()
    }
}

fn applied(version: u64) -> WriteResult {
    let applied = write_result::Applied {
        version,
        ..Default::default()
    };
    WriteResult {
        outcome: Some(write_result::Outcome::Applied(applied)),
    }
}

#[test]
fn of_a_mixed_request_only_what_grows_is_refused() {
    use write_op::Kind::{CasDelete, CasPut, Delete, Put};
    let no_room = NoRoom::in_region(RegionId(2), &[StoreId::new(3).unwrap()]);
    let ops = [Put, Delete, CasPut, CasDelete].map(op).to_vec();
    let (sieve, taken) = Sieve::new(ops.clone(), no_room);
    let kinds: Vec<_> = taken.iter().map(WriteOp::kind).collect();
    assert_eq!(kinds, [Delete, CasDelete]);
    let answers = sieve.answers(vec![applied(1), applied(2)]);
    assert_eq!((&answers[1], &answers[3]), (&applied(1), &applied(2)));
    for refused in [&answers[0], &answers[2]] {
        let Some(write_result::Outcome::Error(error)) = &refused.outcome else {
            panic!("it grows: {refused:?}");
        };
        assert_eq!(error.reason, "NO_SPACE");
        assert_eq!(error.metadata["outcome"], "not_applied");
        assert_eq!(error.metadata["stores"], "3");
    }
    let (_, taken) = Sieve::new(ops, NoRoom::stalled(StoreId::new(1).unwrap(), RegionId(2)));
    assert!(taken.is_empty(), "not even a delete finds room");
}

#[test]
fn every_refusal_for_room_says_when_to_come_back_and_what_became_of_the_write() {
    let me = StoreId::new(1).unwrap();
    for no_room in [
        NoRoom::here(me, RegionId(2)),
        NoRoom::stalled(me, RegionId(2)),
        NoRoom::in_region(RegionId(2), &[me]),
    ] {
        assert!(no_room.error.retry_after(false).is_some());
        assert!(!no_room.error.is_unknown());
        assert!(no_room.error.message.contains("the write was not applied"));
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_store_said_of_its_room_is_forgotten_after_a_while() {
    let (rooms, other) = (Rooms::default(), StoreId::new(2).unwrap());
    assert_eq!(rooms.of(other), Level::Ample);
    rooms.heard(other, Level::from_wire(7));
    assert_eq!(rooms.of(other), Level::Out);
    tokio::time::sleep(FRESH).await;
    assert_eq!(rooms.of(other), Level::Ample);
}
