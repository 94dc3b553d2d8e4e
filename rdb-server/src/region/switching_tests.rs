//! Each step of a change of mode, and each that does not count.

use super::*;
use rdb_proto::raft::{AbortSeal, BeginSeal, Seal, SetEventual};
use rdb_types::{Reason, VersionVector};

fn store(id: u64) -> StoreId {
    StoreId::new(id).unwrap()
}

fn members() -> Members {
    let three: BTreeSet<StoreId> = [1, 2, 3].map(store).into();
    Members {
        voters: three.clone(),
        all: three,
    }
}

fn vector(parts: &[(u64, u64)]) -> VersionVector {
    parts.iter().map(|(id, last)| (store(*id), *last)).collect()
}

fn step(attempt: u64, expected_epoch: u64, step: Step) -> SwitchStep {
    SwitchStep {
        namespace_id: 7,
        attempt,
        expected_epoch,
        step: Some(step),
    }
}

fn begin(missing: &[u32]) -> Step {
    Step::BeginSeal(BeginSeal {
        accept_missing: missing.to_vec(),
    })
}

fn seal(participants: &[u32]) -> Step {
    Step::Seal(Seal {
        fence: convert::vector_to_wire(&vector(&[(1, 5), (2, 3)])),
        digest: Digest(9).to_bytes().to_vec().into(),
        expiry_cut_ms: 70,
        last_stamp: 1,
        participants: participants.to_vec(),
    })
}

fn abort(why: &str) -> Step {
    Step::AbortSeal(AbortSeal { why: why.into() })
}

fn open() -> Step {
    Step::SetEventual(SetEventual {})
}

/// Takes steps one after the other and tells what became of each.
fn story(state: &mut NamespaceState, steps: Vec<SwitchStep>) -> Vec<String> {
    let mut told = Vec::new();
    for step in steps {
        let before = state.clone();
        let change = match take(state, &members(), &step) {
            Ok(change) => format!("{change:?}"),
            Err(error) => {
                assert_eq!(error.reason, Reason::StaleEpoch);
                assert_eq!(*state, before, "what does not count changes nothing");
                "-".to_owned()
            }
        };
        let sealing = if state.sealing.is_some() {
            "sealing"
        } else {
            state.mode.as_str()
        };
        told.push(format!(
            "{change} {sealing}({}) attempt {}",
            state.epoch, state.attempt
        ));
    }
    told
}

#[test]
fn there_and_back() {
    let mut state = NamespaceState::new(Mode::Strong);
    let told = story(
        &mut state,
        vec![
            step(1, 1, open()),
            step(2, 2, begin(&[])),
            step(2, 3, abort("store 3 does not answer")),
            step(2, 4, begin(&[])),
            step(2, 5, seal(&[1, 2, 3])),
            step(3, 6, open()),
        ],
    );
    assert_eq!(
        told,
        [
            "Opened eventual(2) attempt 1",
            "Begun sealing(3) attempt 2",
            "Aborted eventual(4) attempt 2",
            "Begun sealing(5) attempt 2",
            "Sealed strong(6) attempt 2",
            "Opened eventual(7) attempt 3",
        ]
    );
    let fence = vector(&[(1, 5), (2, 3)]);
    assert_eq!(
        state.fences,
        [Fence {
            epoch: Epoch(6),
            vector: fence
        }]
    );
    assert_eq!((state.digest, state.buried_through_ms), (Digest(9), 70));
    assert_eq!(state.last_abort, "");
}

#[test]
fn what_was_delayed_does_not_come_back() {
    let mut state = NamespaceState::new(Mode::Eventual);
    let told = story(
        &mut state,
        vec![
            step(1, 1, begin(&[])),
            // A second leader began the same.
            step(1, 1, begin(&[])),
            step(1, 2, abort("why")),
            // A seal of the epoch that was given up, and a beginning of an attempt that was cancelled.
            step(1, 2, seal(&[1, 2, 3])),
            step(2, 3, abort("")),
            step(1, 3, begin(&[])),
            // It does not fit the state.
            step(2, 3, open()),
            step(2, 3, seal(&[1, 2, 3])),
        ],
    );
    assert_eq!(
        told,
        [
            "Begun sealing(2) attempt 1",
            "- sealing(2) attempt 1",
            "Aborted eventual(3) attempt 1",
            "- eventual(3) attempt 1",
            "Told eventual(3) attempt 2",
            "- eventual(3) attempt 2",
            "- eventual(3) attempt 2",
            "- eventual(3) attempt 2",
        ]
    );
    assert_eq!(state.last_abort, "why");
}

#[test]
fn participants_are_a_quorum_and_the_same_to_the_end() {
    let mut state = NamespaceState::new(Mode::Eventual);
    let told = story(
        &mut state,
        vec![
            step(1, 1, begin(&[2, 3])),
            step(1, 1, begin(&[3])),
            step(1, 2, seal(&[1, 2, 3])),
            step(1, 2, seal(&[1, 2])),
        ],
    );
    assert_eq!(
        told,
        [
            "- eventual(1) attempt 0",
            "Begun sealing(2) attempt 1",
            "- sealing(2) attempt 1",
            "Sealed strong(3) attempt 1",
        ]
    );
}

#[test]
fn a_replica_goes_on_only_with_just_what_was_sealed() {
    let mut state = NamespaceState::new(Mode::Eventual);
    story(&mut state, vec![step(1, 1, begin(&[3]))]);
    let Step::Seal(seal) = seal(&[1, 2]) else {
        unreachable!()
    };
    let own = EventualState {
        vector: vector(&[(1, 5), (2, 3)]),
        digest: Digest(9),
        ..EventualState::default()
    };
    assert_eq!(may_go_on(&state, store(1), &seal, &own), Ok(()));
    assert!(
        may_go_on(&state, store(3), &seal, &own).is_err(),
        "no participant"
    );
    for wrong in [
        EventualState {
            vector: vector(&[(1, 5)]),
            ..own.clone()
        },
        EventualState {
            vector: vector(&[(1, 5), (2, 4)]),
            ..own.clone()
        },
        EventualState {
            digest: Digest(8),
            ..own.clone()
        },
        EventualState {
            partial: vector(&[(2, 9)]),
            ..own.clone()
        },
    ] {
        assert!(
            may_go_on(&state, store(1), &seal, &wrong).is_err(),
            "{wrong:?}"
        );
    }
}

#[test]
fn times_are_told_apart_by_the_last_seal() {
    let mut later = NamespaceState::new(Mode::Eventual);
    let first = later.clone();
    story(&mut later, vec![step(1, 1, begin(&[]))]);
    assert!(same_time(&first, &later), "while it is sealed, too");
    assert_eq!(fence_after(&first, &later), None);
    story(&mut later, vec![step(1, 2, seal(&[1, 2, 3]))]);
    assert!(!same_time(&first, &later));
    assert_eq!(fence_after(&first, &later).unwrap().epoch, Epoch(3));
    let strong = later.clone();
    story(&mut later, vec![step(2, 3, open())]);
    assert!(!same_time(&first, &later) && !same_time(&strong, &later));
    let second = later.clone();
    assert_eq!(fence_after(&first, &later).unwrap().epoch, Epoch(3));
    for _ in 0..2 * FENCES_KEPT {
        let (attempt, epoch) = (later.attempt + 1, later.epoch.0);
        story(
            &mut later,
            vec![
                step(attempt, epoch, begin(&[])),
                step(attempt, epoch + 1, seal(&[1, 2, 3])),
                step(attempt + 1, epoch + 2, open()),
            ],
        );
    }
    assert_eq!(later.fences.len(), FENCES_KEPT);
    assert!(fence_after(&second, &later).unwrap().epoch > Epoch(3));
}
